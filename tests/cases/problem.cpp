#include "cases/problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checks.h"
#include "dtype.h"

namespace moba::cases {
namespace {

using AllTypes = OneOf<double, float, BFloat16, Float16, std::int32_t, std::int64_t>;

template <class T>
double value_of(T element) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<double>(element);
  } else {
    return to_double(element);
  }
}

}  // namespace

HostTensor::HostTensor(DType dtype, std::vector<std::int64_t> shape, Layout layout) {
  view_.dtype = dtype;
  view_.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), view_.shape.begin());
  // kStrided: [heads, rows, dim + 3] with a gap of 5 elements after each head; last axis contiguous.
  const bool strided = layout == Layout::kStrided && view_.rank == 3;
  std::int64_t elements = 1;
  if (strided) {
    view_.stride = {shape[2] + 3, shape[0] * (shape[2] + 3) + 5, 1, 0};
    elements = shape[1] * view_.stride[1];
  } else {
    for (int axis = view_.rank - 1; axis >= 0; --axis) {
      view_.stride[static_cast<std::size_t>(axis)] = elements;
      elements *= shape[static_cast<std::size_t>(axis)];
    }
  }
  const bool integer = dtype == DType::kInt32 || dtype == DType::kInt64;
  memory_.assign(static_cast<std::size_t>(elements * size_of(dtype)), integer ? std::byte{0x7f} : std::byte{0xff});
}

std::size_t HostTensor::offset_of(std::int64_t index) const {
  std::int64_t offset = 0;
  for (int axis = view_.rank - 1; axis >= 0; --axis) {
    const std::size_t a = static_cast<std::size_t>(axis);
    offset += index % view_.shape[a] * view_.stride[a];
    index /= view_.shape[a];
  }
  return static_cast<std::size_t>(offset);
}

double HostTensor::get(std::int64_t index) const {
  return dispatch("tensor", dtype(), AllTypes{},
                  [&]<class T>() { return value_of(reinterpret_cast<const T*>(memory_.data())[offset_of(index)]); });
}

void HostTensor::set(std::int64_t index, double value) {
  dispatch("tensor", dtype(), AllTypes{}, [&]<class T>() {
    T& element = reinterpret_cast<T*>(memory_.data())[offset_of(index)];
    if constexpr (std::is_integral_v<T>) {
      element = static_cast<T>(value);
    } else {
      element = round_to<T>(value);
    }
  });
}

std::vector<double> HostTensor::values() const {
  std::vector<double> result(static_cast<std::size_t>(numel()));
  if (memory_.size() == result.size() * static_cast<std::size_t>(size_of(dtype()))) {  // contiguous: the quick way
    dispatch("tensor", dtype(), AllTypes{}, [&]<class T>() {
      const T* elements = reinterpret_cast<const T*>(memory_.data());
      for (std::size_t i = 0; i < result.size(); ++i) result[i] = value_of(elements[i]);
    });
    return result;
  }
  for (std::int64_t i = 0; i < numel(); ++i) result[static_cast<std::size_t>(i)] = get(i);
  return result;
}

void HostTensor::fill(const std::vector<double>& values) {
  for (std::int64_t i = 0; i < numel(); ++i) set(i, values[static_cast<std::size_t>(i)]);
}

HostTensor HostTensor::to(DType dtype, Layout layout) const {
  const std::vector<std::int64_t> shape(view_.shape.begin(), view_.shape.begin() + view_.rank);
  HostTensor result(dtype, shape, layout);
  for (std::int64_t i = 0; i < numel(); ++i) result.set(i, get(i));
  return result;
}

HostTensor int64_tensor(const std::vector<std::int64_t>& values) {
  HostTensor result(DType::kInt64, {static_cast<std::int64_t>(values.size())});
  std::copy(values.begin(), values.end(), result.view().as<std::int64_t>());
  return result;
}

HostTensor offsets_of(const std::vector<std::int64_t>& lengths, DType dtype) {
  HostTensor result(dtype, {static_cast<std::int64_t>(lengths.size()) + 1});
  std::int64_t offset = 0;
  result.set(0, 0.0);
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    offset += lengths[s];
    result.set(static_cast<std::int64_t>(s) + 1, static_cast<double>(offset));
  }
  return result;
}

HostTensor random_tensor(std::mt19937_64& random, DType dtype, std::vector<std::int64_t> shape) {
  HostTensor result(dtype, std::move(shape));
  std::normal_distribution<double> normal;
  for (std::int64_t i = 0; i < result.numel(); ++i) result.set(i, normal(random));
  return result;
}

bool same_bits(const HostTensor& a, const HostTensor& b) {
  if (a.dtype() != b.dtype() || a.view().shape != b.view().shape) return false;
  return dispatch("tensor", a.dtype(), AllTypes{}, [&]<class T>() {
    const HostTensor x = a.to(a.dtype()), y = b.to(b.dtype());  // contiguous
    return x.numel() == 0 ||
           std::memcmp(x.view().data, y.view().data, sizeof(T) * static_cast<std::size_t>(x.numel())) == 0;
  });
}

Problem::Problem(const Case& c)
    : options(c.options), cu_seqlens_q(offsets_of(c.q_lengths)), cu_seqlens_k(offsets_of(c.k_lengths, DType::kInt64)) {
  std::mt19937_64 random(c.seed);
  q = random_tensor(random, c.dtype, {c.total_q(), c.heads, c.head_dim});
  k = random_tensor(random, c.dtype, {c.total_k(), c.kv_heads, c.head_dim});
  v = random_tensor(random, c.dtype, {c.total_k(), c.kv_heads, c.value_dim});
  dout = random_tensor(random, c.dtype, {c.total_q(), c.heads, c.value_dim});
  dlse = random_tensor(random, accumulator_dtype(c.dtype), {c.heads, c.total_q()});
  for (std::int64_t length : c.q_lengths) max_seqlen_q = std::max(max_seqlen_q, length);
  for (std::int64_t length : c.k_lengths) max_seqlen_k = std::max(max_seqlen_k, length);

  const std::int64_t row = c.kv_heads * c.head_dim;
  if (c.total_k() == 0) return;
  switch (c.data) {
    case Data::kNormal: break;
    case Data::kEqualKeys:
      for (std::int64_t i = row; i < k.numel(); ++i) k.set(i, k.get(i % row));
      break;
    case Data::kHugeKey:
      for (std::int64_t i = c.total_k() / 3 * row; i < (c.total_k() / 3 + 1) * row; ++i) k.set(i, 100.0 * k.get(i));
      break;
    case Data::kLarge:
      for (std::int64_t i = 0; i < q.numel(); ++i) q.set(i, 10.0 * q.get(i));
      break;
    case Data::kSkewed:
      // Queries and the keys of every fifth block share a direction: most rows want the same few blocks.
      for (std::int64_t i = 0; i < q.numel(); ++i) q.set(i, q.get(i) + (i % c.head_dim == 0 ? 4.0 : 0.0));
      for (std::int64_t t = 0; t < c.total_k(); ++t) {
        if (t / c.options.block_size % 5 != 0) continue;
        for (std::int64_t h = 0; h < c.kv_heads; ++h) {
          const std::int64_t i = t * row + h * c.head_dim;
          k.set(i, k.get(i) + 4.0);
        }
      }
      break;
  }
}

PackedBatch Problem::batch() const {
  PackedBatch result;
  result.cu_seqlens_q = cu_seqlens_q.view();
  result.cu_seqlens_k = cu_seqlens_k.view();
  result.max_seqlen_q = max_seqlen_q;
  result.max_seqlen_k = max_seqlen_k;
  return result;
}

double Problem::scale() const {
  return options.softmax_scale > 0 ? options.softmax_scale : 1.0 / std::sqrt(static_cast<double>(head_dim()));
}

Problem Problem::to(DType dtype, Layout layout) const {
  Problem result;
  result.options = options;
  result.q = q.to(dtype, layout);
  result.k = k.to(dtype, layout);
  result.v = v.to(dtype, layout);
  result.dout = dout.to(dtype, layout);
  result.dlse = dlse.to(accumulator_dtype(dtype));
  result.cu_seqlens_q = cu_seqlens_q.to(cu_seqlens_q.dtype());
  result.cu_seqlens_k = cu_seqlens_k.to(cu_seqlens_k.dtype());
  result.max_seqlen_q = max_seqlen_q;
  result.max_seqlen_k = max_seqlen_k;
  return result;
}

Choice choose(Context& context, const Backend& backend, const Problem& problem) {
  Choice choice;
  choice.selection =
      plan_selection(problem.options, problem.rows(), problem.heads(), problem.kv_heads(), problem.max_seqlen_k);
  if (choice.selection.kind != SelectionKind::kList) return choice;
  const TensorView& blocks = choice.selection.blocks;
  choice.list = HostTensor(DType::kInt32, {blocks.shape[0], blocks.shape[1], blocks.shape[2]});
  choice.selection.blocks = choice.list.view();
  select(context, backend, problem.options, problem.q.view(), problem.k.view(), {}, problem.batch(), choice.selection);
  return choice;
}

Results run(Context& context, const Backend& backend, const Problem& problem, const Selection& selection,
            bool backward) {
  const DType dtype = problem.q.dtype();
  const std::int64_t rows = problem.rows(), keys = problem.keys(), heads = problem.heads();
  Results r;
  r.out = HostTensor(dtype, {rows, heads, problem.value_dim()});
  r.lse = HostTensor(accumulator_dtype(dtype), {heads, rows});
  attend(context, backend,
         {problem.q.view(),
          problem.k.view(),
          problem.v.view(),
          problem.batch(),
          selection,
          problem.options.softmax_scale,
          {r.out.view(), r.lse.view()}});
  if (!backward) return r;
  r.dq = HostTensor(dtype, {rows, heads, problem.head_dim()});
  r.dk = HostTensor(dtype, {keys, problem.kv_heads(), problem.head_dim()});
  r.dv = HostTensor(dtype, {keys, problem.kv_heads(), problem.value_dim()});
  attend_backward(
      context, backend,
      {problem.q.view(), problem.k.view(), problem.v.view(), problem.batch(), selection, problem.options.softmax_scale,
       r.out.view(), r.lse.view(), problem.dout.view(), problem.dlse.view(), r.dq.view(), r.dk.view(), r.dv.view()});
  return r;
}

Results run(Context& context, const Backend& backend, const Problem& problem, bool backward) {
  const Choice choice = choose(context, backend, problem);
  return run(context, backend, problem, choice.selection, backward);
}

}  // namespace moba::cases
