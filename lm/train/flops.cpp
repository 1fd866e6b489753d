#include "lm/train/flops.h"

#include <algorithm>

namespace moba::lm {
namespace {

// The mean number of keys a query attends in a sequence of `length`.
double mean_keys(const AttentionOptions& options, double length) {
  const double full = (length + 1) / 2;
  if (options.kind == Kind::kWindow)
    return std::min(full, static_cast<double>(options.window) + static_cast<double>(options.sink));
  if (options.kind != Kind::kMoba) return full;
  const auto block = static_cast<double>(options.block_size);
  return std::min(full, static_cast<double>(options.top_k - 1) * block + (block + 1) / 2);
}

double mean_representatives(const AttentionOptions& options, double length) {
  return options.kind == Kind::kMoba ? length / static_cast<double>(options.block_size) / 2 : 0;
}

}  // namespace

double step_flops(const ModelConfig& model, const PhaseConfig& phase) {
  const auto length = static_cast<double>(phase.sequence_length);
  const double width = static_cast<double>(model.num_attention_heads) * static_cast<double>(model.head_dim);
  // The embedding is looked up; only a tied one is multiplied too, by the head.
  double weights = static_cast<double>(model.parameter_count());
  if (!model.tie_word_embeddings) weights -= static_cast<double>(model.vocab_size * model.hidden_size);
  double per_token = 6 * weights;
  for (std::int64_t i = 0; i < model.num_hidden_layers; ++i) {
    const AttentionOptions options = phase.plan.layer(i);
    per_token += 12 * width * mean_keys(options, length) + 2 * width * mean_representatives(options, length);
  }
  return per_token * static_cast<double>(phase.batch_tokens);
}

}  // namespace moba::lm
