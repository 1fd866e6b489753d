// Tensors of a case, and what a backend makes of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "cases/cases.h"
#include "moba/moba.h"

namespace moba::cases {

/// Where the elements lie: one after the other; or head by head with odd gaps, as views of larger tensors do.
enum class Layout { kContiguous, kStrided };

/// A tensor in host memory. New ones are poisoned: NaN in every float, 0x7f7f7f7f… in every integer.
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DType dtype, std::vector<std::int64_t> shape, Layout layout = Layout::kContiguous);

  /// Of this object's memory, which moves with it; writable even where the object is constant.
  TensorView view() const {
    TensorView view = view_;
    view.data = const_cast<std::byte*>(memory_.data());
    return view;
  }
  DType dtype() const { return view_.dtype; }
  std::int64_t numel() const { return view_.present() ? view_.numel() : 0; }
  /// By index in row-major order of the shape, whatever the layout.
  double get(std::int64_t index) const;
  void set(std::int64_t index, double value);
  std::vector<double> values() const;
  void fill(const std::vector<double>& values);
  /// The same values in another dtype or layout.
  HostTensor to(DType dtype, Layout layout = Layout::kContiguous) const;

 private:
  std::size_t offset_of(std::int64_t index) const;
  std::vector<std::byte> memory_;
  TensorView view_;  // without its data pointer
};

HostTensor int64_tensor(const std::vector<std::int64_t>& values);
/// 0 and the running sums of the lengths.
HostTensor offsets_of(const std::vector<std::int64_t>& lengths, DType dtype = DType::kInt32);
/// Independent standard normal numbers.
HostTensor random_tensor(std::mt19937_64& random, DType dtype, std::vector<std::int64_t> shape);
/// Equal in every bit (the same NaNs too).
bool same_bits(const HostTensor& a, const HostTensor& b);

/// q, k, v, an output gradient and cu_seqlens.
struct Problem {
  AttentionOptions options;
  HostTensor q, k, v, dout, dlse;
  HostTensor cu_seqlens_q, cu_seqlens_k;
  std::int64_t max_seqlen_q = 0, max_seqlen_k = 0;

  explicit Problem(const Case& c);
  Problem() = default;

  PackedBatch batch() const;
  double scale() const;
  std::int64_t rows() const { return q.view().shape[0]; }
  std::int64_t keys() const { return k.view().shape[0]; }
  std::int64_t heads() const { return q.view().shape[1]; }
  std::int64_t kv_heads() const { return k.view().shape[1]; }
  std::int64_t head_dim() const { return q.view().shape[2]; }
  std::int64_t value_dim() const { return v.view().shape[2]; }
  /// The same problem with every float tensor in another dtype or layout (values are rounded to it).
  Problem to(DType dtype, Layout layout = Layout::kContiguous) const;
};

/// A Selection with the memory of its list.
struct Choice {
  Selection selection;
  HostTensor list;
};

/// The choice of the problem's method, made by `backend`.
Choice choose(Context& context, const Backend& backend, const Problem& problem);

/// out, lse and gradients.
struct Results {
  HostTensor out, lse, dq, dk, dv;
};

/// Attention with the given choice; with gradients through out and lse where `backward`.
Results run(Context& context, const Backend& backend, const Problem& problem, const Selection& selection,
            bool backward = true);
/// run() with the choice of the same backend.
Results run(Context& context, const Backend& backend, const Problem& problem, bool backward = true);

}  // namespace moba::cases
