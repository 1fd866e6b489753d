// One leg of a training run: from the newest checkpoint (or the beginning) to its end, its time or a signal.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <torch/torch.h>

#include "lm/config/train_config.h"
#include "lm/data/batch.h"
#include "lm/data/token_store.h"
#include "lm/train/checkpoint.h"
#include "lm/train/optimizer.h"
#include "lm/train/pacer.h"
#include "lm/train/report.h"
#include "lm/train/run_folder.h"
#include "lm/train/schedule.h"
#include "lm/train/step.h"
#include "lm/train/stop.h"
#include "lm/train/train.h"

namespace moba::lm {

struct RunInputs {
  TokenStore train;
  std::optional<TokenStore> valid;
};

class Run {
 public:
  /// Makes the model and brings it to where the run stands. `config` and `inputs` outlive this.
  Run(const TrainConfig& config, const RunInputs& inputs, const RunFolder& folder, torch::Device device,
      const TrainArguments& arguments);

  TrainOutcome train();

 private:
  using Clock = std::chrono::steady_clock;

  // Figures on their way from the device.
  struct Pending {
    FigureSums::Snapshot snapshot;
    std::int64_t step = 0;  // steps done
    std::int64_t mark = 0;  // the pacer's mark behind the copy
    double flops = 0;       // of the steps it covers
  };

  void make_model();
  void restore(bool resume);
  void check_same_model(const TrainPosition& position, const std::string& where) const;
  TrainOutcome loop();
  std::optional<TrainOutcome> reason_to_stop(const SignalWatch& signals) const;
  void take_figures();
  void emit(bool wait);
  void validate();
  StepFigures measure(std::unique_ptr<BatchSource>& source, double recall_fraction, std::int64_t tokens);
  void save();
  void save_resume_parts();
  void finish();
  TrainPosition position() const;
  ModelConfig config_with_plan() const;
  double flops_between(std::int64_t first, std::int64_t last) const;
  std::optional<std::filesystem::path> tokenizer_file() const;

  const TrainConfig& config_;
  const RunInputs& inputs_;
  RunFolder folder_;
  torch::Device device_;
  std::function<void(const std::string&)> log_;
  TimeBudget budget_;
  Schedule schedule_;
  ModelConfig model_config_;
  Model model_{nullptr};
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<Reporter> reporter_;
  std::unique_ptr<BatchSource> valid_text_, valid_recall_;  // made when first needed
  FigureSums sums_;
  DevicePacer pacer_;
  std::optional<Pending> pending_;
  std::int64_t step_ = 0;  // steps done
  double flops_ = 0;       // since the last figures were taken
  double flops_per_second_ = 0;
  double step_seconds_ = 0;
  double save_seconds_ = 2;  // a first guess; then what the last checkpoint took
  double peak_tflops_ = 0;
  Clock::time_point interval_begin_;
};

}  // namespace moba::lm
