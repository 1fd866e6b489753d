// One training step: forward, loss, backward over the parts of a batch, update; its figures stay on the device.
#pragma once

#include <cstdint>
#include <string>

#include <torch/torch.h>
#include <nlohmann/json.hpp>

#include "lm/data/batch.h"
#include "lm/model/model.h"
#include "lm/train/optimizer.h"

namespace moba::lm {

/// Means over the steps since the last report. Shares and losses are NaN where nothing was counted.
struct StepFigures {
  double loss = 0;           // weighted nats a token: what is minimised
  double text_loss = 0;      // nats a token of plain text
  double recall = 0;         // share of answer tokens whose arg-max is right
  double exact = 0;          // share of answers with every token right
  double gradient_norm = 0;  // before clipping
  std::int64_t skipped = 0;  // steps whose gradient was not finite
  std::int64_t steps = 0;
};

/// Sums kept on the device and read back rarely.
class FigureSums {
 public:
  explicit FigureSums(torch::Device device);

  /// What must be added for the batch on the host side.
  void count(const StepBatch& batch);
  /// From one forward pass: nll, weights, mask [T]; logits [T, V]; the batch's part on the device.
  void add_forward(const torch::Tensor& logits, const torch::Tensor& nll, const MicroBatch& part, double weight_sum);
  void add_update(const AdamW::StepInfo& info);

  /// A copy of the sums that the device fills in when it gets there, and the counts; the sums start again at zero.
  struct Snapshot {
    torch::Tensor sums;  // float64 [6] on the CPU, page-locked for CUDA
    std::int64_t steps = 0, text_tokens = 0, answer_tokens = 0, facts = 0, tokens = 0;
    /// Only after the device has reached the copy.
    StepFigures figures() const;
  };
  Snapshot take();

  /// The sums as they stand, for a checkpoint: a line that spans a stop then says what it would have said. Waits for
  /// the device.
  nlohmann::json state() const;
  /// Error names `where` when it is not such a state.
  void load_state(const nlohmann::json& state, const std::string& where);

 private:
  torch::Device device_;
  torch::Tensor sums_;  // float64 [6]: loss, text nats, right tokens, right answers, norm, skipped steps
  Snapshot counts_;
};

/// The part's tensors on the device, copied without waiting.
MicroBatch to_device(const MicroBatch& part, torch::Device device);

/// Forward, backward and update for all parts of the batch; figures go into `sums`.
void train_step(Model& model, AdamW& optimizer, const StepBatch& batch, const PhaseConfig& phase, double learning_rate,
                FigureSums& sums);

/// Forward only.
void validate_step(Model& model, const StepBatch& batch, const PhaseConfig& phase, FigureSums& sums);

}  // namespace moba::lm
