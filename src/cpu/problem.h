// The sizes of one attention call, and how its rows are cut into tasks. What a row's result is never depends on the
// cut: each row folds in its keys tile by tile in ascending order, and the tiles' borders depend on positions alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/pairs.h"
#include "moba/backend.h"
#include "sequences.h"

namespace moba::cpu {

inline constexpr std::int64_t kRowTile = 32;   // query rows of one product
inline constexpr std::int64_t kKeyTile = 256;  // keys of one product: K and V of a tile stay in the second-level cache

inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr double kLn2 = 0.6931471805599453;

struct Dims {
  std::int64_t heads, kv_heads, group;  // group: query heads of one key/value head
  std::int64_t dim, value_dim;          // D, Dv

  Dims(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v)
      : heads(q.shape[1]), kv_heads(k.shape[1]), group(heads / kv_heads), dim(q.shape[2]), value_dim(v.shape[2]) {}
};

/// Rows [first, first + count) of tensor[:, head, :] as an operand.
template <class View>
Rows rows_of(const View& tensor, std::int64_t first, std::int64_t head, std::int64_t count) {
  const char* data = static_cast<const char*>(tensor.data);
  return {tensor.dtype, data + (first * tensor.stride[0] + head * tensor.stride[1]) * size_of(tensor.dtype),
          tensor.stride[0], count, tensor.shape[2]};
}

/// bfloat16 rows of a tensor as an operand.
inline PairSource pair_source(const Rows& rows) {
  return {static_cast<const std::uint16_t*>(rows.data), rows.stride, nullptr, rows.rows, rows.columns};
}

inline void* row_pointer(const TensorView& tensor, std::int64_t row, std::int64_t head) {
  return static_cast<char*>(tensor.data) + (row * tensor.stride[0] + head * tensor.stride[1]) * size_of(tensor.dtype);
}

/// Query rows of one sequence that one task computes, for all query heads of one key/value head. Row r of query head h
/// of the group has the id h * rows + r - row_begin.
struct Chunk {
  std::int64_t sequence = 0;
  std::int64_t row_begin = 0, rows = 0;     // packed rows, each of which sees at least one key
  std::int64_t key_begin = 0, key_end = 0;  // positions of the keys to fold in; a list folds in all it names
};

/// Calls use(sequence, row_begin, rows) for runs of at most `most` rows that see a key.
template <class Use>
void for_each_row_run(const Sequences& sequences, std::int64_t most, Use&& use) {
  for (std::int64_t s = 0; s < sequences.count(); ++s) {
    const Sequence sequence = sequences[s];
    const std::int64_t end = sequence.q_begin + sequence.q_length;
    std::int64_t row = sequence.q_begin + std::max<std::int64_t>(0, sequence.q_length - sequence.k_length);
    for (; row < end; row += most) use(sequence, row, std::min(most, end - row));
  }
}

/// Calls use(begin, end) for the packed rows that see no key: those of no sequence, and the first of a sequence with
/// more queries than keys.
template <class Use>
void for_each_keyless_run(const Sequences& sequences, std::int64_t total_q, Use&& use) {
  std::int64_t cursor = 0;
  for (std::int64_t s = 0; s < sequences.count(); ++s) {
    const Sequence sequence = sequences[s];
    const std::int64_t keyless = std::clamp<std::int64_t>(sequence.q_length - sequence.k_length, 0, sequence.q_length);
    if (cursor < sequence.q_begin + keyless) use(cursor, sequence.q_begin + keyless);
    cursor = sequence.q_begin + sequence.q_length;
  }
  if (cursor < total_q) use(cursor, total_q);
}

/// Calls use(begin, end) for the packed keys of no sequence.
template <class Use>
void for_each_keyless_gap(const Sequences& sequences, std::int64_t total_k, Use&& use) {
  std::int64_t cursor = 0;
  for (std::int64_t s = 0; s < sequences.count(); ++s) {
    if (cursor < sequences[s].k_begin) use(cursor, sequences[s].k_begin);
    cursor = sequences[s].k_begin + sequences[s].k_length;
  }
  if (cursor < total_k) use(cursor, total_k);
}

/// Later rows see more keys. Position i of n in an order in which every contiguous share has near the mean work: last,
/// first, last but one, second, …
constexpr std::int64_t balanced(std::int64_t i, std::int64_t n) {
  return i % 2 == 0 ? n - 1 - i / 2 : i / 2;
}

/// The most rows a chunk may have so that the scratch of all threads fits the workspace: `wanted`, halved as often as
/// needed. bytes(rows) is what one thread needs; `fixed` is shared by all. Throws Error (kWorkspace).
template <class Bytes>
std::int64_t rows_that_fit(Context& context, std::int64_t wanted, std::int64_t fixed, const char* verb, Bytes&& bytes) {
  std::int64_t rows = wanted;
  const std::int64_t threads = context.num_threads();
  while (rows > 1 && fixed + threads * bytes(rows) > context.workspace_limit()) rows = (rows + 1) / 2;
  const std::int64_t needed = fixed + threads * bytes(rows);
  if (needed > context.workspace_limit()) {
    throw Error(ErrorCode::kWorkspace, "workspace_limit is " + std::to_string(context.workspace_limit()) + " bytes; " +
                                           verb + " needs at least " + std::to_string(needed) + " for " +
                                           std::to_string(threads) +
                                           " threads. Raise Context::workspace_limit or use fewer threads.");
  }
  return rows;
}

/// Rows of a chunk. A list wants chunks so long that a block is met by four row tiles on average, since it is packed
/// anew for each chunk; 512 (row, head) pairs repay packing otherwise. Never so long that fewer than 32 tasks are left,
/// nor that all threads together hold more than `wanted_bytes`, as long as chunks of one row tile can help it.
template <class Bytes>
std::int64_t chunk_rows(Context& context, const Selection& selection, const Dims& dims, std::int64_t total_rows,
                        std::int64_t blocks, std::int64_t row_tile, std::int64_t fixed, std::int64_t wanted_bytes,
                        const char* verb, Bytes&& bytes) {
  std::int64_t ids = 512;
  if (selection.kind == SelectionKind::kList) {
    const std::int64_t budget = std::max<std::int64_t>(1, selection.budget());
    ids = std::clamp<std::int64_t>(4 * row_tile * blocks / budget, 1024, 32768);
  }
  ids = std::min(ids, total_rows * dims.heads / 32);
  std::int64_t rows = std::max(row_tile, ids / dims.group);
  while (rows * dims.group > row_tile && rows > 1 && context.num_threads() * bytes(rows) > wanted_bytes) {
    rows = (rows + 1) / 2;
  }
  return rows_that_fit(context, rows, fixed, verb, bytes);
}

}  // namespace moba::cpu
