// What a run tells: a line, a record of metrics.jsonl and TensorBoard scalars every few steps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "lm/train/step.h"
#include "lm/train/tensorboard.h"
#include "lm/util/device.h"

namespace moba::lm {

struct StepReport {
  std::int64_t step = 0;    // steps done
  std::int64_t steps = 0;   // of the run
  std::int64_t tokens = 0;  // seen so far
  StepFigures figures;
  double learning_rate = 0;
  double tokens_per_second = 0;
  double tflops = 0;        // per second
  double peak_tflops = 0;   // 0: unknown, no MFU
  double seconds_left = 0;  // 0: unknown
  MemoryUse memory;
  std::string attention;  // the phase's plan in short
  std::int64_t sequence_length = 0;
};

struct ValidationReport {
  std::int64_t step = 0;
  StepFigures text;    // plain text
  StepFigures recall;  // facts woven in; steps = 0: not measured
};

/// "step 120/6000 | loss 1.234 | …"
std::string step_line(const StepReport& report);

/// "1:02:03", "4:05"
std::string clock_text(double seconds);

class Reporter {
 public:
  /// Appends to metrics.jsonl of the run's folder, dropping first what it holds beyond `first_step` (those steps are
  /// run again). Error when a file cannot be written.
  Reporter(const std::filesystem::path& metrics, const std::filesystem::path& events, std::int64_t first_step,
           std::function<void(const std::string&)> log);

  void notice(const std::string& line);
  void step(const StepReport& report);
  void validation(const ValidationReport& report);

 private:
  void append(const std::string& record);

  std::filesystem::path metrics_file_;
  std::ofstream metrics_;
  EventWriter events_;
  std::function<void(const std::string&)> log_;
};

}  // namespace moba::lm
