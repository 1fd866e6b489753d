// The five verbs and the transpose, as one table that each backend fills.
#pragma once

#include <cstdint>
#include <span>

#include "moba/context.h"
#include "moba/options.h"
#include "moba/page_table.h"
#include "moba/selection.h"
#include "moba/tensor.h"

namespace moba {

/// Several sequences laid end to end. Both offset tensors are int32 or int64 [sequences + 1], on the tensors' device,
/// and are not read by the host where that is a GPU; the maxima are upper bounds that the host knows.
struct PackedBatch {
  ConstTensorView cu_seqlens_q;
  ConstTensorView cu_seqlens_k;
  std::int64_t max_seqlen_q = 0;
  std::int64_t max_seqlen_k = 0;
  std::int64_t sequences() const { return cu_seqlens_k.shape[0] - 1; }
};

// Values of cu_seqlens are clamped, not trusted: an offset to [its predecessor, total tokens], a length to its maximum.
// Packed rows that no sequence holds, and rows with no key, give {0, -inf}, zero gradients and an empty list.

/// Attention over a part of the keys: out [Tq, H, Dv] (float32, float64 or the input dtype) and its log-sum-exp,
/// natural logarithm, float32 (float64 beside float64) [H, Tq]. A row with no key is {0, -inf}.
struct Partial {
  TensorView out;
  TensorView lse;
};

// Shapes: Tq, Tk packed tokens; H query heads; HK key/value heads, H % HK == 0; D head dim; Dv value dim; B block size;
// R = block_rows(Tk, sequences, B). The last axis of every tensor has stride 1; other strides are free. q, k, v, out
// and gradients share one dtype among float32, bfloat16, float16 (and float64 in the reference).

/// Head dims and value dims that a backend must take: every integer between these.
inline constexpr std::int64_t kMinHeadDim = 8;
inline constexpr std::int64_t kMaxHeadDim = 256;

/// representatives[block row, hk, :] = mean of the block's keys: their float32 sum in token order (float64 for
/// float64), divided by their number, rounded once to the dtype of the representatives. Rows that no block owns are
/// left as they are. Representatives have the dtype of k, or float32 (float64 beside float64): here and below.
struct PoolArgs {
  ConstTensorView k;  // [Tk, HK, D]
  PackedBatch batch;  // cu_seqlens_k is used
  std::int64_t block_size = 0;
  TensorView representatives;  // [R, HK, D]
};

/// scores[row, h, i] = q[row, h] · representative of block i, unscaled, accumulated in float32; -inf where block i is
/// not wholly before the row's own block, and where the product is NaN. For diagnosis and tests: rows x blocks.
struct ScoreArgs {
  ConstTensorView q;                // [Tq, H, D]
  ConstTensorView representatives;  // [R, HK, D]
  PackedBatch batch;
  std::int64_t block_size = 0;
  TensorView scores;  // float32 (float64 beside float64) [Tq, H, ceil(max_seqlen_k / B)]
};

/// What decides beside the scores; the defaults are MoBA's. The fields are those of AttentionOptions.
struct ChoiceRule {
  bool force_previous = false;
  std::int64_t sink_blocks = 0;
  ShareScore share_score = ShareScore::kSumLogit;
  double softmax_scale = 1.0;  // > 0; kSumProb uses it
};

/// The budget best past blocks of each row: those that the rule forces, then by score, ties to the lower index. Fills
/// `selection.blocks`, also for rows without a past (all -1). A selection head that serves several query heads scores
/// by theirs as `rule.share_score` says. Never chosen but by force: a block whose product with a query of the list is
/// NaN, or whose score is -inf (for kSumProb: where every product is). Does not keep scores: memory is O(rows *
/// budget). budget >= sink_blocks + force_previous, or the most past blocks that a row has.
struct SelectArgs {
  ConstTensorView q;                // [Tq, H, D]
  ConstTensorView representatives;  // [R, HK, D]; with a page table [pages, HK, D], a block's row being its last page
  PackedBatch batch;
  Selection selection;  // kList, with room in `blocks`
  ChoiceRule rule = {};
  PageTable page_table = {};  // only where `supports_pages`
};

struct InvertArgs {
  PackedBatch batch;
  Selection selection;          // kList
  std::int64_t rows = 0;        // Tq
  std::int64_t total_keys = 0;  // Tk
  Inverse inverse;
};

struct AttendArgs {
  ConstTensorView q;  // [Tq, H, D]
  ConstTensorView k;  // [Tk, HK, D]; with a page table the pool, [pages * page_size, HK, D]
  ConstTensorView v;  // [Tk, HK, Dv], likewise
  PackedBatch batch;
  Selection selection;
  double softmax_scale = 0.0;  // > 0
  Partial result;              // out [Tq, H, Dv] in the dtype of q, lse [H, Tq]
  PageTable page_table = {};   // only where `supports_pages`
};

/// With the lse of the whole row, the gradient is a sum over blocks. dS = P * (dP - delta + dlse).
struct AttendBackwardArgs {
  ConstTensorView q, k, v;  // as in AttendArgs
  PackedBatch batch;
  Selection selection;
  double softmax_scale = 0.0;
  ConstTensorView out;   // [Tq, H, Dv]: the forward's
  ConstTensorView lse;   // [H, Tq]: the forward's
  ConstTensorView dout;  // [Tq, H, Dv]
  ConstTensorView dlse;  // [H, Tq], or absent for zero
  TensorView dq;         // [Tq, H, D]
  TensorView dk;         // [Tk, HK, D]
  TensorView dv;         // [Tk, HK, Dv]
};

/// lse = log sum exp(lse_i), out = sum exp(lse_i - lse) out_i, in the order given. Exact for parts over disjoint keys;
/// associative and commutative up to rounding; {0, -inf} is the neutral element; never NaN from finite parts. The
/// result may be one of the parts.
struct MergeArgs {
  std::span<const Partial> parts;
  Partial result;
};

class DevicePages;  // device_pages.h

/// A set of implementations of the verbs. Stateless: one constant object a backend, safe to use from any thread.
/// Arguments were checked by the caller (`checks.h`); results are the same bits for any `Context::num_threads`.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  virtual bool supports(DType dtype) const = 0;
  /// Where its tensors must live.
  virtual DeviceKind device() const { return DeviceKind::kCpu; }
  /// Whether `select` and `attend` follow a page table.
  virtual bool supports_pages() const { return false; }
  /// What it does for a PagedKvCache in memory that the host does not reach, or null.
  virtual const DevicePages* device_pages() const { return nullptr; }

  virtual void pool(Context& context, const PoolArgs& args) const = 0;
  virtual void score(Context& context, const ScoreArgs& args) const = 0;
  virtual void select(Context& context, const SelectArgs& args) const = 0;
  virtual void invert(Context& context, const InvertArgs& args) const = 0;
  virtual void attend(Context& context, const AttendArgs& args) const = 0;
  virtual void attend_backward(Context& context, const AttendBackwardArgs& args) const = 0;
  virtual void merge(Context& context, const MergeArgs& args) const = 0;
};

/// Plain loops in double precision: the oracle, and a complete backend. float64, float32, bfloat16, float16 on the CPU.
const Backend& reference_backend();

/// SIMD and the caller's threads: float32, bfloat16, float16 on the CPU.
const Backend& cpu_backend();

}  // namespace moba
