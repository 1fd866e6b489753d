// Folding keys into the running softmax of a chunk's rows.
#include "cpu/attend_rows.h"

#include <cmath>
#include <cstring>

namespace moba::cpu {
namespace {

constexpr std::int64_t kTilesAhead = 3;  // of 32 keys: 16 KiB each for two tensors of head dim 128

/// Copies the tokens [key, key + keys) of one head to `memory`, one behind the other.
Rows gather(const TokenRows& place, const ConstTensorView& tensor, std::int64_t head, std::int64_t key,
            std::int64_t keys, std::byte* memory) {
  const std::int64_t bytes = tensor.shape[2] * size_of(tensor.dtype);
  std::byte* to = memory;
  for (const std::int64_t end = key + keys; key < end;) {
    const TokenRows::Run run = place.run(key, end);
    const Rows from = rows_of(tensor, run.row, head, run.count);
    for (std::int64_t i = 0; i < run.count; ++i, to += bytes) {
      std::memcpy(to, static_cast<const std::byte*>(from.data) + i * from.stride * size_of(tensor.dtype),
                  static_cast<std::size_t>(bytes));
    }
    key += run.count;
  }
  return {tensor.dtype, memory, tensor.shape[2], keys, tensor.shape[2]};
}

}  // namespace

AttendRows::KeysAndValues AttendRows::tile_at(const TokenRows& place, std::int64_t kv_head, std::int64_t key,
                                              std::int64_t keys, std::byte* gathered) const {
  const TokenRows::Run run = place.run(key, key + keys);
  if (run.count == keys) return {rows_of(args.k, run.row, kv_head, keys), rows_of(args.v, run.row, kv_head, keys)};
  return {gather(place, args.k, kv_head, key, keys, gathered),
          gather(place, args.v, kv_head, key, keys, gathered + keys * dims.dim * size_of(args.k.dtype))};
}

void AttendRows::start(AttendWorkspace& w, const Chunk& chunk, std::int64_t kv_head, std::int64_t first_id) const {
  // Scores are kept in units of log2, so that the softmax is made of powers of 2.
  const float scale = static_cast<float>(args.softmax_scale * kLog2E);
  for (std::int64_t h = 0; h < dims.group; ++h) {
    kernel.load_rows(rows_of(args.q, chunk.row_begin, kv_head * dims.group + h, chunk.rows), scale,
                     w.q.data() + (first_id + h * chunk.rows) * padded(dims.dim), padded(dims.dim));
  }
  std::fill_n(w.maximum.data() + first_id, ids(chunk), kNegativeInfinity);
  std::fill_n(w.sum.data() + first_id, ids(chunk), 0.0f);
  std::fill_n(w.out.data() + first_id * out_row(), ids(chunk) * out_row(), 0.0f);
}

void AttendRows::fold(AttendWorkspace& w, const Chunk& chunk, std::int64_t kv_head, std::int64_t first_id,
                      bool few) const {
  if (few && few_have_pairs) return fold_few_pairs(w, chunk, kv_head, first_id);
  const Sequence sequence = sequences[chunk.sequence];
  const TokenRows place = token_rows(sequence);
  if (args.selection.kind == SelectionKind::kList) {
    w.lists.fill(context, args.selection, sequence, chunk, kv_head, dims);
  }
  for_each_tile(
      args.selection, sequence, chunk, dims, w.lists, TileShape{kRowTile, few ? kFewRowsKeyTile : kKeyTile},
      [&](std::int64_t key, std::int64_t keys) {
        const KeysAndValues tile = tile_at(place, kv_head, key, keys, w.gathered.data());
        if (few) {
          kernel.load_rows(tile.k, 1.0f, w.k.data(), padded(dims.dim));
        } else {
          kernel.pack_transposed(tile.k, w.staging.data(), w.k.data());
        }
        w.v_is_finite = kernel.pack_rows(tile.v, w.v.data());
        w.keys = keys;
      },
      [&](RowTile& tile) { fold_tile(w, tile, first_id, few); });
}

void AttendRows::fold_few_pairs(AttendWorkspace& w, const Chunk& chunk, std::int64_t kv_head,
                                std::int64_t first_id) const {
  const PairKernels& pairs = *pair_kernels();
  const Sequence sequence = sequences[chunk.sequence];
  const TokenRows place = token_rows(sequence);
  const TileShape shape{kRowTile, kFewRowsKeyTile};
  const bool has_list = args.selection.kind == SelectionKind::kList;
  if (has_list) w.lists.fill(context, args.selection, sequence, chunk, kv_head, dims);

  // The tiles ahead are asked for while one is worked on: a head's keys lie a token apart, which no prefetcher of the
  // processor follows, and each page of them must be looked up.
  const std::int64_t size = has_list ? args.selection.block_size : sequence.k_length;
  const std::int64_t first_position = sequence.position(chunk.row_begin), last = first_position + chunk.rows - 1;
  const auto first_of_block = [&](std::int64_t block) {  // or of the next one that some row sees
    while (has_list && block < first_position / size && w.lists.count(block) == 0) ++block;
    return block * size;
  };
  std::int64_t ahead = has_list ? first_of_block(0) : chunk.key_begin + kTilesAhead * kFewRowsKeyTile;
  const auto ask = [&] {
    if (ahead > last) return;
    const std::int64_t block = ahead / size;
    const std::int64_t end = std::min({ahead + kFewRowsKeyTile, (block + 1) * size, sequence.k_length});
    for (std::int64_t key = ahead; key < end;) {
      const TokenRows::Run run = place.run(key, end);
      for (const ConstTensorView* tensor : {&args.k, &args.v}) {
        const Rows rows = rows_of(*tensor, run.row, kv_head, run.count);
        const char* row = static_cast<const char*>(rows.data);
        for (std::int64_t i = 0; i < run.count; ++i, row += 2 * rows.stride) {
          for (std::int64_t byte = 0; byte < 2 * rows.columns; byte += 64) __builtin_prefetch(row + byte, 0, 2);
        }
      }
      key += run.count;
    }
    ahead = end < (block + 1) * size ? end : first_of_block(block + 1);
  };
  for (std::int64_t i = 0; has_list && i < kTilesAhead; ++i) ask();  // else the calls for earlier tiles did

  const float scale = static_cast<float>(args.softmax_scale * kLog2E);
  PairSource k, v;
  for_each_tile(
      args.selection, sequence, chunk, dims, w.lists, shape,
      [&](std::int64_t key, std::int64_t keys) {
        ask();
        const KeysAndValues tile = tile_at(place, kv_head, key, keys, w.gathered.data());
        k = pair_source(tile.k);
        v = pair_source(tile.v);
      },
      [&](const RowTile& tile) {
        for (std::int64_t i = 0; i < tile.count; ++i) {
          const std::int64_t head = kv_head * dims.group + tile.ids[i] / chunk.rows;
          const std::int64_t row = chunk.row_begin + tile.ids[i] % chunk.rows;
          pairs.dot_row(k, pair_source(rows_of(args.q, row, head, 1)).data, scale, w.scores.data() + i * w.score_row);
        }
        float* out = w.out.data() + first_id * out_row();
        kernel.softmax(
            {.scores = w.scores.data(),
             .row_stride = w.score_row,
             .rows = tile.count,
             .columns = k.rows,
             .begin = tile.begin,
             .end = tile.end,
             .ids = tile.ids},
            {.maximum = w.maximum.data() + first_id, .sum = w.sum.data() + first_id, .out = out, .out_row = out_row()});
        for (std::int64_t i = 0; i < tile.count; ++i) {  // exactly the keys that the row sees: 0 * NaN is NaN
          PairSource seen = v;
          seen.data += tile.begin[i] * v.stride;
          seen.rows = tile.end[i] - tile.begin[i];
          pairs.add_row(seen, w.scores.data() + i * w.score_row + tile.begin[i], out + tile.ids[i] * out_row());
        }
      });
}

void AttendRows::fold_tile(AttendWorkspace& w, RowTile& tile, std::int64_t first_id, bool few) const {
  // Columns before the first panel that any row sees are left out.
  const std::int64_t first = tile.first_column() / kPanel * kPanel;
  const std::int64_t columns = tile.end_column() - first;
  for (std::int64_t i = 0; i < tile.count; ++i) {
    tile.begin[i] -= static_cast<std::int32_t>(first);
    tile.end[i] -= static_cast<std::int32_t>(first);
  }
  const float* q = w.q.data() + first_id * padded(dims.dim);
  if (few) {
    for (std::int64_t i = 0; i < tile.count; ++i) {
      kernel.dot_rows(w.k.data() + first * padded(dims.dim), padded(dims.dim), columns, padded(dims.dim),
                      q + tile.ids[i] * padded(dims.dim), w.scores.data() + i * w.score_row);
    }
  } else {
    kernel.multiply({.m = tile.count,
                     .n = columns,
                     .k = dims.dim,
                     .a = q,
                     .a_row = padded(dims.dim),
                     .a_ids = tile.ids,
                     .b = w.k.data() + first * dims.dim,
                     .b_panel_stride = dims.dim * kPanel,
                     .c = w.scores.data(),
                     .c_row = w.score_row});
  }
  float* out = w.out.data() + first_id * out_row();
  kernel.softmax(
      {.scores = w.scores.data(),
       .row_stride = w.score_row,
       .rows = tile.count,
       .columns = columns,
       .begin = tile.begin,
       .end = tile.end,
       .ids = tile.ids},
      {.maximum = w.maximum.data() + first_id, .sum = w.sum.data() + first_id, .out = out, .out_row = out_row()});

  Product pv{.m = tile.count,
             .n = dims.value_dim,
             .k = columns,
             .a = w.scores.data(),
             .a_row = w.score_row,
             .b = w.v.data() + first * kPanel,
             .b_panel_stride = w.keys * kPanel,
             .c = out,
             .c_row = out_row(),
             .c_ids = tile.ids,
             .accumulate = true};
  if (w.v_is_finite) {
    kernel.multiply(pv);
    return;
  }
  // 0 * NaN is NaN: where V holds one, every row is given exactly the keys it sees.
  for (std::int64_t i = 0; i < tile.count; ++i) {
    pv.m = 1;
    pv.k = tile.end[i] - tile.begin[i];
    pv.a = w.scores.data() + i * w.score_row + tile.begin[i];
    pv.b = w.v.data() + (first + tile.begin[i]) * kPanel;
    pv.c_ids = tile.ids + i;
    kernel.multiply(pv);
  }
}

void AttendRows::finish(const Chunk& chunk, std::int64_t kv_head, const float* maximum, const float* sum,
                        float* out) const {
  for (std::int64_t id = 0; id < ids(chunk); ++id) {
    const std::int64_t head = kv_head * dims.group + id / chunk.rows, row = chunk.row_begin + id % chunk.rows;
    float* values = out + id * out_row();
    const bool empty = sum[id] == 0.0f;  // every score was -inf
    if (empty) std::fill_n(values, out_row(), 0.0f);
    kernel.store_row(values, empty ? 0.0f : 1.0f / sum[id], dims.value_dim, args.result.out.dtype,
                     row_pointer(args.result.out, row, head));
    const double log2_sum = static_cast<double>(maximum[id]) + std::log2(static_cast<double>(sum[id]));
    lse(head, row) = empty ? kNegativeInfinity : static_cast<float>(log2_sum * kLn2);
  }
}

}  // namespace moba::cpu
