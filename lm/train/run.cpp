#include "lm/train/run.h"

#include <fmt/core.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "lm/checkpoint/pretrained.h"
#include "lm/data/prefetch.h"
#include "lm/train/flops.h"
#include "lm/train/model_folder.h"
#include "lm/train/resume_parts.h"
#include "lm/util/device.h"
#include "lm/util/files.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

// Steps the host may be ahead: one running and one waiting keep the device busy.
constexpr std::size_t kStepsInFlight = 2;
// Any number; only another than training's, so that validation reads other windows of the same text.
constexpr std::uint64_t kValidationSeed = 0x5A11D;
// Share of validate_tokens that is read once more with facts woven in.
constexpr std::int64_t kRecallShare = 2;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::int64_t data_threads(const TrainConfig& config, torch::Device device) {
  if (config.run.data_threads > 0) return config.run.data_threads;
  if (device.is_cpu()) return 1;
  return std::clamp<std::int64_t>(std::thread::hardware_concurrency() / 2, 1, 4);
}

}  // namespace

Run::Run(const TrainConfig& config, const RunInputs& inputs, const RunFolder& folder, torch::Device device,
         const TrainArguments& arguments)
    : config_(config),
      inputs_(inputs),
      folder_(folder),
      device_(device),
      log_(arguments.log),
      budget_(arguments.max_minutes),
      schedule_(config),
      model_config_(config.model.config),
      sums_(device),
      pacer_(device, kStepsInFlight) {
  make_model();
  restore(arguments.resume);
  peak_tflops_ = config.run.peak_tflops > 0 ? config.run.peak_tflops : peak_bf16_tflops(gpu_name(device));
  reporter_ = std::make_unique<Reporter>(folder_.metrics(), folder_.events(), step_, log_);
  write_file_atomically(folder_.config(), config.source.dump(2) + "\n");
  const std::string gpu = gpu_name(device);
  reporter_->notice(fmt::format("{} parameters on {}{}, {} tokens of text in {} documents, {} steps from step {}",
                                model_config_.parameter_count(), device.str(), gpu.empty() ? "" : " (" + gpu + ")",
                                inputs_.train.tokens(), inputs_.train.documents(), schedule_.steps(), step_));
}

void Run::make_model() {
  model_ = Model(model_config_);
  if (const auto& directory = config_.model.init_from) {
    const Pretrained source = load_pretrained(*directory, torch::kCPU, torch::kFloat32);
    load_weights(copy_weights(source.model), model_, directory->string());
  } else {
    model_->init_weights(config_.run.seed);
  }
  model_->to(device_);
  model_->train();
  model_->set_compute_dtype(config_.run.dtype == "bf16" ? torch::kBFloat16 : torch::kFloat32);
  optimizer_ = std::make_unique<AdamW>(model_, config_.optimizer);
}

// From the newest checkpoint, or from resume files where they are further on.
void Run::restore(bool resume) {
  if (!resume) return;
  remove_leftovers(folder_.checkpoints());
  const std::vector<std::filesystem::path> checkpoints = list_checkpoints(folder_.checkpoints());
  std::optional<TrainPosition> from;
  std::filesystem::path where;
  if (!checkpoints.empty()) {
    where = checkpoints.front();
    from = read_position(where);
  }
  bool compact = false;
  if (const auto& parts = config_.run.resume_parts; parts && has_resume_parts(*parts)) {
    TrainPosition position = read_resume_position(*parts);
    compact = !from || position.step > from->step;
    if (compact) {
      where = *parts;
      from = std::move(position);
    }
  }
  if (!from) {
    if (log_) log_(fmt::format("{}: nothing to resume there; starting at step 0", folder_.root.string()));
    return;
  }
  check_same_model(*from, where.string());
  if (compact) {
    load_resume_parts(where, model_, *optimizer_);
  } else {
    load_checkpoint(where, model_, *optimizer_);
  }
  if (log_) log_(fmt::format("resuming from {} at step {}", where.string(), from->step));
  if (log_ && from->schedule != schedule_to_json(config_))
    log_("note: the schedule is not the one this checkpoint was made under; the new one holds from here on");
  sums_.load_state(from->figures, where.string());
  step_ = from->step;
}

void Run::check_same_model(const TrainPosition& position, const std::string& where) const {
  if (position.seed != config_.run.seed)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("run.seed = {}: {} was trained with {}, which places it in the data", config_.run.seed,
                            where, position.seed));
  const nlohmann::json mine = to_json(model_config_);
  for (const auto& [key, value] : mine.items()) {
    // The plan may change at any step, and positions have no weights.
    if (key == "moba" || key == "max_position_embeddings") continue;
    const nlohmann::json theirs = position.model.is_object() ? position.model.value(key, nlohmann::json()) : value;
    if (theirs == value) continue;
    throw Error(ErrorCode::kInvalidArgument, fmt::format("model.{} = {}: {} has {}; a run cannot change its model", key,
                                                         value.dump(), where, theirs.dump()));
  }
}

TrainOutcome Run::train() {
  if (step_ >= schedule_.steps() && std::filesystem::exists(folder_.final_model())) {
    reporter_->notice(fmt::format("{}: the run is finished already", folder_.root.string()));
    return TrainOutcome::kFinished;
  }
  const TrainOutcome outcome = loop();
  emit(/*wait=*/true);
  save();
  if (outcome == TrainOutcome::kFinished) finish();
  save_resume_parts();
  return outcome;
}

TrainOutcome Run::loop() {
  const BatchSource source(inputs_.train, config_.recall, config_.run.seed, device_.is_cuda());
  const std::int64_t threads = data_threads(config_, device_);
  Prefetcher batches([&](std::int64_t step) { return source.make(step, schedule_.phase(step)); }, step_,
                     schedule_.steps(), threads, 2 * threads);
  const SignalWatch signals;
  interval_begin_ = Clock::now();
  std::string attention;
  while (step_ < schedule_.steps()) {
    if (const std::optional<TrainOutcome> stop = reason_to_stop(signals)) return *stop;
    const PhaseConfig& phase = schedule_.phase(step_);
    const std::string now = fmt::format("attention {}, {} tokens a sequence, {} a step", phase.plan.summary(),
                                        phase.sequence_length, phase.batch_tokens);
    if (now != attention) reporter_->notice(fmt::format("step {}: {}", step_, now));
    attention = now;

    train_step(model_, *optimizer_, batches.next(), phase, schedule_.learning_rate(step_), sums_);
    flops_ += step_flops(model_config_, phase);
    ++step_;
    if (step_ % config_.run.log_every == 0 || step_ == schedule_.steps()) take_figures();
    pacer_.mark();
    emit(/*wait=*/false);
    if (config_.run.validate_every > 0 && step_ % config_.run.validate_every == 0) validate();
    if (step_ % config_.run.checkpoint_every == 0 && step_ < schedule_.steps()) save();
  }
  return TrainOutcome::kFinished;
}

std::optional<TrainOutcome> Run::reason_to_stop(const SignalWatch& signals) const {
  if (signals.stop_asked()) {
    reporter_->notice("stopping: a signal asked for it");
    return TrainOutcome::kInterrupted;
  }
  // The steps in flight, the next one, and twice a checkpoint, for disks differ from moment to moment.
  const double reserve = static_cast<double>(kStepsInFlight + 1) * step_seconds_ + 2 * save_seconds_;
  if (budget_.spent(reserve)) {
    reporter_->notice("stopping: the time is up");
    return TrainOutcome::kStoppedByTime;
  }
  return std::nullopt;
}

void Run::take_figures() {
  emit(/*wait=*/true);  // with a line every step or two, the last one may still be on its way
  pending_ = Pending{sums_.take(), step_, pacer_.marks() + 1, flops_};  // the next mark stands behind the copy
  flops_ = 0;
}

void Run::emit(bool wait) {
  if (!pending_) return;
  if (pacer_.reached() < pending_->mark) {
    if (!wait) return;
    synchronize(device_);
  }
  const Pending pending = *std::exchange(pending_, std::nullopt);
  const PhaseConfig& phase = schedule_.phase(pending.step - 1);
  const double seconds = std::max(1e-9, seconds_since(interval_begin_));
  interval_begin_ = Clock::now();
  step_seconds_ = seconds / static_cast<double>(std::max<std::int64_t>(1, pending.snapshot.steps));
  flops_per_second_ = pending.flops / seconds;

  StepReport report;
  report.step = pending.step;
  report.steps = schedule_.steps();
  report.tokens = schedule_.tokens_before(pending.step);
  report.figures = pending.snapshot.figures();
  report.learning_rate = schedule_.learning_rate(pending.step - 1);
  report.tokens_per_second = static_cast<double>(pending.snapshot.tokens) / seconds;
  report.tflops = flops_per_second_ / 1e12;
  report.peak_tflops = peak_tflops_;
  report.seconds_left = flops_between(pending.step, schedule_.steps()) / flops_per_second_;
  report.memory = memory_use(device_);
  report.attention = phase.plan.summary();
  report.sequence_length = phase.sequence_length;
  reporter_->step(report);
  if (report.figures.skipped == report.figures.steps && report.figures.steps >= 3)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("optimizer.lr = {}: no gradient was finite in the {} steps before step {}; lower it and "
                            "resume from a checkpoint before them",
                            config_.optimizer.lr, report.figures.steps, pending.step));
}

StepFigures Run::measure(std::unique_ptr<BatchSource>& source, double recall_fraction, std::int64_t tokens) {
  if (!source) {
    RecallConfig recall = config_.recall;
    recall.fraction = recall_fraction;
    source = std::make_unique<BatchSource>(*inputs_.valid, recall, kValidationSeed, device_.is_cuda());
  }
  const PhaseConfig& phase = schedule_.phase(step_ - 1);
  FigureSums sums(device_);
  for (std::int64_t i = 0; i * phase.batch_tokens < tokens; ++i)
    validate_step(model_, source->make(i, phase), phase, sums);
  const FigureSums::Snapshot snapshot = sums.take();
  synchronize(device_);
  return snapshot.figures();
}

void Run::validate() {
  emit(/*wait=*/true);
  synchronize(device_);
  const Clock::time_point begin = Clock::now();
  model_->eval();
  ValidationReport report;
  report.step = step_;
  report.text = measure(valid_text_, 0, config_.run.validate_tokens);
  if (config_.recall.fraction > 0)
    report.recall = measure(valid_recall_, 1, config_.run.validate_tokens / kRecallShare);
  model_->train();
  reporter_->validation(report);
  interval_begin_ += Clock::now() - begin;  // a pause, not training
}

void Run::save() {
  emit(/*wait=*/true);
  synchronize(device_);
  const Clock::time_point begin = Clock::now();
  save_checkpoint(folder_.checkpoints(), model_, config_with_plan(), *optimizer_, position(), tokenizer_file(),
                  config_.run.keep_checkpoints);
  save_seconds_ = seconds_since(begin);
  reporter_->notice(fmt::format("checkpoint of step {} written in {:.1f} s", step_, save_seconds_));
  interval_begin_ += Clock::now() - begin;
}

void Run::save_resume_parts() {
  if (!config_.run.resume_parts) return;
  write_resume_parts(*config_.run.resume_parts, model_, *optimizer_, position(), config_.run.resume_parts_mb << 20);
  reporter_->notice(fmt::format("resume files written to {}", config_.run.resume_parts->string()));
}

void Run::finish() {
  std::filesystem::path made = folder_.final_model();
  made += ".unfinished";
  ModelConfig config = config_with_plan();
  config.rope_theta = config_.model.final_rope_theta.value_or(config.rope_theta);
  write_model_folder(made, model_, config, torch::kBFloat16, schedule_to_json(config_), tokenizer_file());
  replace_folder(made, folder_.final_model());
  reporter_->notice(fmt::format("finished: the model is in {}", folder_.final_model().string()));
}

TrainPosition Run::position() const {
  return {step_, config_.run.seed, schedule_to_json(config_), config_.source, to_json(model_config_), sums_.state()};
}

ModelConfig Run::config_with_plan() const {
  ModelConfig config = model_config_;
  config.plan = schedule_.phase(std::max<std::int64_t>(0, step_ - 1)).plan;
  return config;
}

double Run::flops_between(std::int64_t first, std::int64_t last) const {
  double flops = 0;
  for (std::size_t i = 0; i < config_.phases.size(); ++i) {
    const std::int64_t begin = std::max(first, config_.phases[i].step);
    const std::int64_t end = i + 1 < config_.phases.size() ? std::min(last, config_.phases[i + 1].step) : last;
    if (end > begin) flops += static_cast<double>(end - begin) * step_flops(model_config_, config_.phases[i]);
  }
  return flops;
}

std::optional<std::filesystem::path> Run::tokenizer_file() const {
  if (config_.data.tokenizer == "bytes") return std::nullopt;
  return config_.data.tokenizer;
}

}  // namespace moba::lm
