#include "bench/decode_layer.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "bench/attend_problem.h"
#include "bench/ceiling.h"
#include "bench/reference_rows.h"
#include "bindings/torch/core.h"
#include "moba/error.h"
#include "moba/pipeline.h"

namespace moba::app {
namespace {

constexpr std::int64_t kQueries = 64;

}  // namespace

std::string DecodeCase::text() const {
  return fmt::format("decode n={} sequences={} heads={}/{} d={} B={} k={} page={} {}", n, sequences, heads, kv_heads,
                     head_dim, block_size, top_k, page_size, dtype);
}

AttentionOptions DecodeCase::options(Share share) const {
  AttentionOptions options;
  options.block_size = block_size;
  options.top_k = top_k;
  options.share = share;
  return options;
}

AttentionOptions DecodeCase::full() const {
  AttentionOptions options;
  options.kind = Kind::kFull;
  return options;
}

DecodeLayer::DecodeLayer(const DecodeCase& wanted) : case_(wanted) {
  torch::manual_seed(20250218);
  const torch::NoGradGuard no_gradients;
  const auto draw = [&](std::int64_t rows, std::int64_t heads) {
    return torch::randn({rows, heads, case_.head_dim}, torch::kFloat32);
  };
  const torch::Dtype dtype = dtype_of(case_.dtype);
  const torch::Tensor common = draw(kQueries * case_.sequences, case_.kv_heads);
  queries_ = (std::sqrt(case_.alike) * common.repeat_interleave(case_.heads / case_.kv_heads, 1) +
              std::sqrt(1 - case_.alike) * draw(kQueries * case_.sequences, case_.heads))
                 .to(dtype);

  // Together more than four last-level caches, as far as 16 batches reach.
  const std::int64_t token_bytes = 2 * case_.kv_heads * case_.head_dim * static_cast<std::int64_t>(elementSize(dtype));
  const std::int64_t batch_bytes = case_.sequences * case_.n * token_bytes;
  const std::int64_t batches = std::clamp<std::int64_t>(4 * last_level_cache() / batch_bytes + 1, 2, 16);
  const std::int64_t sequences = batches * case_.sequences;
  const std::int64_t pages = (case_.n + case_.page_size - 1) / case_.page_size;
  cache_ = std::make_unique<torch_ops::PagedKvCache>(
      torch_ops::PagedKvCache::Sizes{sequences * pages, case_.page_size, sequences, case_.n, case_.kv_heads,
                                     case_.head_dim, case_.head_dim},
      case_.options(Share::kHead), torch::TensorOptions(dtype));
  k_ = torch::empty({case_.n, case_.kv_heads, case_.head_dim}, dtype);
  v_ = torch::empty_like(k_);
  for (std::int64_t begin = 0; begin < case_.n; begin += case_.page_size) {
    const std::int64_t count = std::min(case_.page_size, case_.n - begin);
    for (std::int64_t s = 0; s < sequences; ++s) {
      const torch::Tensor k = draw(count, case_.kv_heads).to(dtype), v = draw(count, case_.kv_heads).to(dtype);
      if (s == 0) k_.narrow(0, begin, count).copy_(k);
      if (s == 0) v_.narrow(0, begin, count).copy_(v);
      const SequenceTokens part{s, count};
      cache_->append({&part, 1}, k, v);
    }
  }
  for (std::int64_t b = 0; b < batches; ++b) {
    batches_.emplace_back();
    for (std::int64_t s = 0; s < case_.sequences; ++s) batches_.back().push_back({b * case_.sequences + s, 1});
  }
}

torch::Tensor DecodeLayer::query(std::int64_t turn) const {
  return queries_.narrow(0, turn % kQueries * case_.sequences, case_.sequences);
}

void DecodeLayer::step(const AttentionOptions& options) {
  const std::int64_t turn = turn_++;
  cache_->attend(batches_[static_cast<std::size_t>(turn) % batches_.size()], query(turn), options);
}

ReadCount DecodeLayer::reads(const AttentionOptions& options) {
  ReadCount total;
  for (std::int64_t turn = 0; turn < kQueries; ++turn) {
    ReadCount reads;
    cache_->attend(batches_[static_cast<std::size_t>(turn) % batches_.size()], query(turn), options, &reads);
    total.blocks_read += reads.blocks_read;
    total.blocks_chosen += reads.blocks_chosen;
    total.keys_read += reads.keys_read;
    total.keys_chosen += reads.keys_chosen;
    total.key_bytes += reads.key_bytes;
    total.representative_bytes += reads.representative_bytes;
  }
  return total;
}

double DecodeLayer::verify(const AttentionOptions& options) {
  const torch::NoGradGuard no_gradients;
  const auto [out, lse] = cache_->attend(batches_.front(), query(0), options);
  const std::int64_t group = case_.heads / case_.kv_heads;
  const std::int64_t offsets_q[2] = {0, 1}, offsets_k[2] = {0, case_.n};
  PackedBatch batch;
  batch.cu_seqlens_q = ConstTensorView(offsets_q, DType::kInt64, {2});
  batch.cu_seqlens_k = ConstTensorView(offsets_k, DType::kInt64, {2});
  batch.max_seqlen_q = 1;
  batch.max_seqlen_k = case_.n;
  double error = 0;
  for (std::int64_t kv_head : {std::int64_t{0}, case_.kv_heads - 1}) {
    const torch::Tensor q = query(0).narrow(0, 0, 1).narrow(1, kv_head * group, group);
    const torch::Tensor k = k_.narrow(1, kv_head, 1), v = v_.narrow(1, kv_head, 1);
    const torch::Tensor expected = torch::empty(q.sizes(), q.options());
    const torch::Tensor expected_lse = torch::empty({group, 1}, torch::kFloat32);
    torch_ops::TorchContext context;
    attention(context, reference_backend(), options, torch_ops::view_of(q), torch_ops::view_of(k),
              torch_ops::view_of(v), batch, {torch_ops::view_of(expected), torch_ops::view_of(expected_lse)});
    error = std::max(error, relative_error(out.narrow(0, 0, 1).narrow(1, kv_head * group, group), expected));
    error = std::max(error, relative_error(lse.narrow(0, kv_head * group, group).narrow(1, 0, 1), expected_lse));
  }
  const double tolerance = tolerance_of(case_.dtype);
  if (!(error <= tolerance)) {
    throw Error(ErrorCode::kMismatch,
                fmt::format("{}: it differs from the reference by {:g} of the greatest value, more than {:g}; "
                            "a wrong answer is not timed",
                            case_.text(), error, tolerance));
  }
  return error;
}

}  // namespace moba::app
