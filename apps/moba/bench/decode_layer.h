// One layer's cache in pages, several batches of sequences long, and the decode steps that are timed over it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "moba/options.h"
#include "moba_torch/paged_kv_cache.h"

namespace moba::app {

struct DecodeCase {
  std::int64_t n = 32768;      // tokens of each sequence
  std::int64_t sequences = 1;  // of one step
  std::int64_t heads = 16;
  std::int64_t kv_heads = 16;
  std::int64_t head_dim = 128;
  std::int64_t block_size = 512;
  std::int64_t top_k = 3;
  std::int64_t page_size = 64;
  double alike = 0;  // how much the queries of a group agree: 0 independent, 1 equal
  std::string dtype = "bf16";

  std::string text() const;
  /// The step's options with MoBA and that choice, or with every key.
  AttentionOptions options(Share share) const;
  AttentionOptions full() const;
};

/// Normal random tensors with a fixed seed. Steps go round several queries and batches of sequences: what one step
/// reads, the one before must not have left in the processor's caches. Pages of the sequences alternate in the pool.
class DecodeLayer {
 public:
  explicit DecodeLayer(const DecodeCase& wanted);

  /// The step that follows, over the next batch.
  void step(const AttentionOptions& options);

  /// What the steps read on average, over every query.
  ReadCount reads(const AttentionOptions& options);
  std::int64_t queries() const { return queries_.size(0) / case_.sequences; }

  /// One step's answer for the first sequence against the double-precision reference, the first and the last group of
  /// heads; throws moba::Error (kMismatch) where they differ by more than the dtype allows. Returns the greatest error,
  /// relative to the greatest value.
  double verify(const AttentionOptions& options);

 private:
  torch::Tensor query(std::int64_t turn) const;

  DecodeCase case_;
  torch::Tensor queries_;  // [queries * sequences, H, D]
  torch::Tensor k_, v_;    // of the first sequence
  std::unique_ptr<torch_ops::PagedKvCache> cache_;
  std::vector<std::vector<SequenceTokens>> batches_;
  std::int64_t turn_ = 0;
};

}  // namespace moba::app
