#include "lm/train/step.h"

#include <limits>
#include <vector>

#include "moba/error.h"

namespace moba::lm {
namespace {

enum Sum : std::int64_t { kLoss, kText, kRight, kExact, kNorm, kSkipped, kSums };

// Cross-entropy in nats of every row. logits float32 [T, V], targets int64 [T] -> float32 [T].
torch::Tensor negative_log_likelihood(const torch::Tensor& logits, const torch::Tensor& targets) {
  return at::cross_entropy_loss(logits, targets, /*weight=*/{}, at::Reduction::None);
}

// Forward of one part; returns its share of the step's loss.
torch::Tensor forward_part(Model& model, const MicroBatch& part, const PhaseConfig& phase, double weight_sum,
                           FigureSums& sums) {
  const TokenBatch tokens{part.tokens, part.cu_seqlens, part.max_seqlen};
  ForwardOptions options;
  options.checkpoint_activations = phase.checkpoint_activations;
  const torch::Tensor logits = model->forward(tokens, phase.plan, options);  // [T, V]
  const torch::Tensor nll = negative_log_likelihood(logits, part.targets);   // [T]
  sums.add_forward(logits.detach(), nll.detach(), part, weight_sum);
  return (nll * part.weights).sum() / weight_sum;
}

}  // namespace

FigureSums::FigureSums(torch::Device device)
    : device_(device), sums_(torch::zeros({kSums}, torch::TensorOptions().dtype(torch::kFloat64).device(device))) {}

void FigureSums::count(const StepBatch& batch) {
  counts_.steps += 1;
  counts_.tokens += batch.tokens;
  counts_.text_tokens += batch.text_tokens;
  counts_.answer_tokens += batch.answer_tokens;
  counts_.facts += batch.facts;
}

void FigureSums::add_forward(const torch::Tensor& logits, const torch::Tensor& nll, const MicroBatch& part,
                             double weight_sum) {
  const torch::NoGradGuard no_grad;
  sums_[kLoss] += torch::dot(nll, part.weights) / weight_sum;
  sums_[kText] += torch::dot(nll, part.text_mask);
  if (part.facts == 0) return;
  const torch::Tensor guess = logits.index_select(0, part.answer_rows).argmax(1);
  const torch::Tensor wrong = guess.ne(part.targets.index_select(0, part.answer_rows)).to(torch::kFloat32);  // [A]
  sums_[kRight] += part.answer_rows.size(0) - wrong.sum();
  const torch::Tensor wrong_of = torch::zeros({part.facts}, wrong.options()).index_add_(0, part.answer_facts, wrong);
  sums_[kExact] += wrong_of.eq(0).sum();
}

void FigureSums::add_update(const AdamW::StepInfo& info) {
  const torch::NoGradGuard no_grad;
  sums_[kNorm] += info.gradient_norm;
  sums_[kSkipped] += info.skipped;
}

FigureSums::Snapshot FigureSums::take() {
  Snapshot snapshot = counts_;
  snapshot.sums = torch::empty({kSums}, torch::TensorOptions().dtype(torch::kFloat64).pinned_memory(device_.is_cuda()));
  snapshot.sums.copy_(sums_, /*non_blocking=*/true);
  sums_.zero_();
  counts_ = {};
  return snapshot;
}

nlohmann::json FigureSums::state() const {
  const torch::Tensor sums = sums_.to(torch::kCPU);
  const double* value = sums.data_ptr<double>();
  return {{"sums", std::vector<double>(value, value + kSums)},
          {"counts", {counts_.steps, counts_.tokens, counts_.text_tokens, counts_.answer_tokens, counts_.facts}}};
}

void FigureSums::load_state(const nlohmann::json& state, const std::string& where) {
  try {
    const auto sums = state.at("sums").get<std::vector<double>>();
    const auto counts = state.at("counts").get<std::vector<std::int64_t>>();
    if (sums.size() == kSums && counts.size() == 5) {
      sums_.copy_(torch::tensor(sums, torch::kFloat64));
      counts_ = {{}, counts[0], counts[2], counts[3], counts[4], counts[1]};
      return;
    }
  } catch (const nlohmann::json::exception&) {
    // Reported below, as a wrong size is.
  }
  throw Error(ErrorCode::kInvalidArgument, where + ": figures: not the sums of a run");
}

StepFigures FigureSums::Snapshot::figures() const {
  const double* value = sums.data_ptr<double>();
  const auto mean = [](double sum, std::int64_t count) {
    return count > 0 ? sum / static_cast<double>(count) : std::numeric_limits<double>::quiet_NaN();
  };
  StepFigures figures;
  figures.loss = mean(value[kLoss], steps);
  figures.text_loss = mean(value[kText], text_tokens);
  figures.recall = mean(value[kRight], answer_tokens);
  figures.exact = mean(value[kExact], facts);
  figures.gradient_norm = mean(value[kNorm], steps);
  figures.skipped = static_cast<std::int64_t>(value[kSkipped]);
  figures.steps = steps;
  return figures;
}

MicroBatch to_device(const MicroBatch& part, torch::Device device) {
  if (device.is_cpu()) return part;
  MicroBatch copy = part;
  for (torch::Tensor* tensor : {&copy.tokens, &copy.targets, &copy.weights, &copy.text_mask, &copy.cu_seqlens,
                                &copy.answer_rows, &copy.answer_facts}) {
    *tensor = tensor->to(device, /*non_blocking=*/true);
  }
  return copy;
}

void train_step(Model& model, AdamW& optimizer, const StepBatch& batch, const PhaseConfig& phase, double learning_rate,
                FigureSums& sums) {
  const torch::Device device = model->parameters().front().device();
  sums.count(batch);
  for (const MicroBatch& part : batch.parts)
    forward_part(model, to_device(part, device), phase, batch.weight_sum, sums).backward();
  sums.add_update(optimizer.step(learning_rate));
}

void validate_step(Model& model, const StepBatch& batch, const PhaseConfig& phase, FigureSums& sums) {
  const torch::NoGradGuard no_grad;
  const torch::Device device = model->parameters().front().device();
  sums.count(batch);
  for (const MicroBatch& part : batch.parts)
    forward_part(model, to_device(part, device), phase, batch.weight_sum, sums);
}

}  // namespace moba::lm
