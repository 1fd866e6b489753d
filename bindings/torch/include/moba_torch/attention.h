// Attention over torch tensors: differentiable, on CPU and CUDA. The C++ face of the operators of namespace `moba`.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>

#include "moba/options.h"

namespace moba {
struct PagedKvCache;
}

namespace moba::torch_ops {

/// Packed sequences. Offsets are int32 or int64 [sequences + 1] on the device of q; the maxima are upper bounds.
struct SequenceBatch {
  at::Tensor cu_seqlens_q;
  at::Tensor cu_seqlens_k;
  std::int64_t max_seqlen_q = 0;
  std::int64_t max_seqlen_k = 0;

  /// Queries and keys of the same lengths.
  static SequenceBatch self(at::Tensor cu_seqlens, std::int64_t max_seqlen) {
    return {cu_seqlens, cu_seqlens, max_seqlen, max_seqlen};
  }
};

/// q [Tq, H, D], k [Tk, HK, D], v [Tk, HK, Dv] -> out [Tq, H, Dv], lse float32 [H, Tq] (float64 beside float64).
/// Gradients flow to q, k, v through out and through lse; none through the choice of blocks. CPU tensors run the CPU
/// backend (float64: the reference), CUDA tensors native kernels or the portable backend. Throws moba::Error (Python
/// sees ValueError).
/// `check_values` reads back what kernels clamp (cu_seqlens out of range, …) and throws; it waits for the device.
std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const SequenceBatch& batch, const AttentionOptions& options,
                                             bool check_values = false);

/// Keys, values and cached representatives of one layer and one sequence, in tensors it owns. No gradients. On a GPU
/// for which there are native kernels, and with options that they take, these attend it: one row in a launch or two.
class KvCache {
 public:
  /// Room for `capacity` tokens. `options` of kind moba make it keep representatives for options.block_size,
  /// in options.representative_dtype.
  KvCache(std::int64_t capacity, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t value_dim,
          const AttentionOptions& options, at::TensorOptions tensor_options);

  /// k [n, HK, D], v [n, HK, Dv]; any n >= 0. Throws moba::Error when the capacity is exceeded, writing nothing.
  void append(const at::Tensor& k, const at::Tensor& v);

  /// Attention of the last n = q.size(0) tokens held: q [n, H, D] -> out [n, H, Dv], lse [H, n]. `options` may be the
  /// cache's own, or of kind full / window (full attention at decode over a MoBA prefill).
  std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q, const AttentionOptions& options) const;

  /// Forgets the tokens from `length` on.
  void truncate(std::int64_t length);

  std::int64_t length() const { return length_; }
  std::int64_t capacity() const { return capacity_; }

 private:
  struct Pages;
  /// What the native kernels write and read: the cache as one of pages.
  moba::PagedKvCache paged() const;
  /// The row of the last token by the native kernels.
  std::tuple<at::Tensor, at::Tensor> decode(const at::Tensor& q, const AttentionOptions& options) const;
  void set_length(std::int64_t length);

  at::Tensor k_, v_, representatives_, running_sum_;
  std::shared_ptr<Pages> pages_;  // where native kernels serve
  std::int64_t capacity_ = 0;
  std::int64_t block_size_ = 0;
  RepresentativeDType representative_dtype_ = RepresentativeDType::kInput;
  std::int64_t length_ = 0;
};

}  // namespace moba::torch_ops
