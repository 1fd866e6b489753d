// What the host can see of a call, checked before anything runs. Every message names the argument, its value, the rule
// and the remedy. Values inside cu_seqlens and lists are not looked at: backends clamp those.
#pragma once

#include <string>

#include "moba/backend.h"
#include "moba/error.h"
#include "moba/kv_cache.h"
#include "moba/options.h"
#include "moba/paged_kv_cache.h"

namespace moba {

/// Throws Error (kInvalidArgument) "<argument> is <value>; it must be <rule>. <remedy>" unless `holds`.
void require(bool holds, const std::string& argument, const std::string& value, const std::string& rule,
             const std::string& remedy);

/// One verb each: shapes, dtypes, strides, devices, numbers, and whether `backend` can do it.
void check_pool(const Backend& backend, const PoolArgs& args);
void check_score(const Backend& backend, const ScoreArgs& args);
void check_select(const Backend& backend, const SelectArgs& args);
void check_invert(const Backend& backend, const InvertArgs& args);
void check_attend(const Backend& backend, const AttendArgs& args);
/// q, k, v, batch, selection and page table in host memory; neither scale nor result.
void check_attended(const AttendArgs& args);
void check_attend_backward(const Backend& backend, const AttendBackwardArgs& args);
void check_merge(const Backend& backend, const MergeArgs& args);

/// The buffers of a cache, and that its length lies in [0, capacity].
void check_kv_cache(const Backend& backend, const KvCache& cache);

/// The buffers of a paged cache, its pool and page size; not what tables and lengths say.
void check_paged_kv_cache(const Backend& backend, const PagedKvCache& cache);

/// Offsets of sequences, [sequences + 1]: rank, dtype, device, and a length that counts in 32 bits; not their values.
void check_offsets(const Backend& backend, const char* argument, const ConstTensorView& offsets);

/// q [Tq, H, D] and k [Tk, HK, D]: ranks, head dims, head counts, dtypes and device. For calls that derive more.
void check_queries_and_keys(const Backend& backend, const ConstTensorView& q, const ConstTensorView& k);

/// A tensor that must be present, of this rank.
void check_rank(const char* argument, const ConstTensorView& view, int rank, const char* axes);

/// A floating-point dtype that the backend takes.
void check_float(const Backend& backend, const char* argument, DType dtype);

void check_page_size(std::int64_t page_size);

/// An extent list as "[4, 2, 64]".
std::string shape_text(const ConstTensorView& view);

/// No extent is negative, and the bytes of the view can be counted in 64 bits. Axes of 0 count as 1: what is empty must
/// be so without an overflow.
void check_countable(const std::string& argument, const ConstTensorView& view);

/// A tensor that must be present, of this dtype and shape, on the device of the backend, last axis contiguous.
/// `axes` says the shape in words, such as "[Tk, HK, D]"; an extent of -1 is free.
void check_tensor(const Backend& backend, const char* argument, const ConstTensorView& view, DType dtype,
                  std::initializer_list<std::int64_t> shape, const char* axes);

/// The same for representatives of keys of a dtype: of that dtype, or float32 (float64 beside float64).
void check_representatives(const Backend& backend, const char* argument, const ConstTensorView& view, DType keys,
                           std::initializer_list<std::int64_t> shape, const char* axes);

/// The same for a tensor that is written: no axis may have stride 0.
void check_output(const Backend& backend, const char* argument, const TensorView& view, DType dtype,
                  std::initializer_list<std::int64_t> shape, const char* axes);

/// float32, or float64 beside float64: the dtype of lse, scores and running sums.
constexpr DType accumulator_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

/// The dtype of representatives of keys of this dtype.
constexpr DType representative_dtype(const AttentionOptions& options, DType keys) {
  return options.representative_dtype == RepresentativeDType::kFloat32 ? accumulator_dtype(keys) : keys;
}

}  // namespace moba
