// The pass of attend_backward that computes dq: chunks of query rows walk their keys as in the forward pass.
#include "cpu/query_sums_pairs.h"

namespace moba::cpu {
namespace {

/// What one thread needs.
struct Workspace {
  Workspace(Context& context, const Selection& selection, const Dims& dims, std::int64_t ids, std::int64_t blocks)
      : q(context, ids * padded(dims.dim), "query rows"),
        dq(context, ids * padded(dims.dim), "gradients of query rows"),
        dout(context, ids * padded(dims.value_dim), "gradients of output rows"),
        lse(context, ids, "lse of each row"),
        delta(context, ids, "delta of each row"),
        dlse(context, ids, "dlse of each row"),
        k_rows(context, kKeyTile * panels(dims.dim) * kPanel, "a tile of keys"),
        operands(context, dims),
        lists(context, selection, ids, blocks) {}

  static std::int64_t bytes(const Selection& selection, const Dims& dims, std::int64_t ids, std::int64_t blocks) {
    return 4 * (ids * (2 * padded(dims.dim) + padded(dims.value_dim) + 3) + kKeyTile * panels(dims.dim) * kPanel) +
           KeyOperands::bytes(dims) + BlockLists::bytes(selection, ids, blocks);
  }

  Scratch<float> q, dq, dout, lse, delta, dlse, k_rows;
  KeyOperands operands;
  BlockLists lists;
  std::int64_t keys = 0;  // of the tile at hand
  bool k_is_finite = true;
};

void load_chunk(Workspace& w, const Kernels& kernel, const AttendBackwardArgs& args, const Dims& dims,
                const RowTerms& terms, const Chunk& chunk, std::int64_t kv_head) {
  const float scale = static_cast<float>(args.softmax_scale * kLog2E);
  for (std::int64_t h = 0; h < dims.group; ++h) {
    const std::int64_t head = kv_head * dims.group + h, id = h * chunk.rows;
    kernel.load_rows(rows_of(args.q, chunk.row_begin, head, chunk.rows), scale, w.q.data() + id * padded(dims.dim),
                     padded(dims.dim));
    kernel.load_rows(rows_of(args.dout, chunk.row_begin, head, chunk.rows), 1.0f,
                     w.dout.data() + id * padded(dims.value_dim), padded(dims.value_dim));
    const RowTermsView of_head = terms.of_head(head);
    std::copy_n(of_head.lse + chunk.row_begin, chunk.rows, w.lse.data() + id);
    std::copy_n(of_head.delta + chunk.row_begin, chunk.rows, w.delta.data() + id);
    std::copy_n(of_head.dlse + chunk.row_begin, chunk.rows, w.dlse.data() + id);
  }
  std::fill_n(w.dq.data(), dims.group * chunk.rows * padded(dims.dim), 0.0f);
}

void add_tile(Workspace& w, const Kernels& kernel, const Dims& dims, RowTile& tile) {
  const std::int64_t first = tile.first_column() / kPanel * kPanel;
  const std::int64_t columns = tile.end_column() - first;
  for (std::int64_t i = 0; i < tile.count; ++i) {
    tile.begin[i] -= static_cast<std::int32_t>(first);
    tile.end[i] -= static_cast<std::int32_t>(first);
  }
  const ScoreTile scores{.scores = w.operands.scores.data(),
                         .row_stride = kKeyTile,
                         .rows = tile.count,
                         .columns = columns,
                         .begin = tile.begin,
                         .end = tile.end,
                         .ids = tile.ids};
  w.operands.differentiate(kernel, dims, scores, first, w.q.data(), w.dout.data(), tile.ids,
                           {w.lse.data(), w.delta.data(), w.dlse.data()});
  Product dq{.m = tile.count,
             .n = dims.dim,
             .k = columns,
             .a = w.operands.slopes.data(),
             .a_row = kKeyTile,
             .b = w.k_rows.data() + first * kPanel,
             .b_panel_stride = w.keys * kPanel,
             .c = w.dq.data(),
             .c_row = padded(dims.dim),
             .c_ids = tile.ids,
             .accumulate = true};
  if (w.k_is_finite) {
    kernel.multiply(dq);
    return;
  }
  // 0 * NaN is NaN: where K holds one, every row is given exactly the keys it sees.
  for (std::int64_t i = 0; i < tile.count; ++i) {
    if (w.lse[tile.ids[i]] == kNegativeInfinity) continue;
    dq.m = 1;
    dq.k = tile.end[i] - tile.begin[i];
    dq.a = w.operands.slopes.data() + i * kKeyTile + tile.begin[i];
    dq.b = w.k_rows.data() + (first + tile.begin[i]) * kPanel;
    dq.c_ids = tile.ids + i;
    kernel.multiply(dq);
  }
}

/// dq of a chunk by products of float32 numbers.
class QuerySums {
 public:
  static constexpr std::int64_t kRowTile = cpu::kRowTile;
  static std::int64_t bytes(const AttendBackwardArgs& args, const Dims& dims, std::int64_t ids, std::int64_t blocks) {
    return Workspace::bytes(args.selection, dims, ids, blocks);
  }
  QuerySums(Context& context, const AttendBackwardArgs& args, const Dims& dims, const Sequences& sequences,
            const RowTerms& terms, std::int64_t ids, std::int64_t blocks)
      : context_(context),
        args_(args),
        dims_(dims),
        sequences_(sequences),
        terms_(terms),
        w_(context, args.selection, dims, ids, blocks) {}

  void run(const Chunk& chunk, std::int64_t kv_head) {
    const Kernels& kernel = kernels();
    const Sequence sequence = sequences_[chunk.sequence];
    load_chunk(w_, kernel, args_, dims_, terms_, chunk, kv_head);
    if (args_.selection.kind == SelectionKind::kList) {
      w_.lists.fill(context_, args_.selection, sequence, chunk, kv_head, dims_);
    }
    for_each_tile(
        args_.selection, sequence, chunk, dims_, w_.lists, TileShape{},
        [&](std::int64_t key, std::int64_t keys) {
          const Rows k = rows_of(args_.k, sequence.k_begin + key, kv_head, keys);
          w_.operands.pack(kernel, k, rows_of(args_.v, sequence.k_begin + key, kv_head, keys));
          w_.k_is_finite = kernel.pack_rows(k, w_.k_rows.data());
          w_.keys = keys;
        },
        [&](RowTile& tile) { add_tile(w_, kernel, dims_, tile); });
    for (std::int64_t id = 0; id < dims_.group * chunk.rows; ++id) {
      kernel.store_row(
          w_.dq.data() + id * padded(dims_.dim), static_cast<float>(args_.softmax_scale), dims_.dim, args_.dq.dtype,
          row_pointer(args_.dq, chunk.row_begin + id % chunk.rows, kv_head * dims_.group + id / chunk.rows));
    }
  }

 private:
  Context& context_;
  const AttendBackwardArgs& args_;
  const Dims& dims_;
  const Sequences& sequences_;
  const RowTerms& terms_;
  Workspace w_;
};

/// Sums: QuerySums or PairQuerySums.
template <class Sums>
void for_each_chunk(Context& context, const AttendBackwardArgs& args, const Dims& dims, const Sequences& sequences,
                    const RowTerms& terms) {
  const Selection& selection = args.selection;
  std::int64_t blocks = 0;
  if (selection.kind == SelectionKind::kList) {
    for (std::int64_t s = 0; s < sequences.count(); ++s) {
      blocks = std::max(blocks, sequences[s].blocks(selection.block_size));
    }
  }
  const std::int64_t most =
      chunk_rows(context, selection, dims, args.q.shape[0], blocks, Sums::kRowTile, RowTerms::bytes(args),
                 context.workspace_limit(), "attend_backward",
                 [&](std::int64_t rows) { return Sums::bytes(args, dims, rows * dims.group, blocks); });
  std::int64_t count = 0;
  for_each_row_run(sequences, most, [&](const Sequence&, std::int64_t, std::int64_t) { ++count; });
  Scratch<Chunk> chunks(context, count, "tasks");
  count = 0;
  for_each_row_run(sequences, most, [&](const Sequence& sequence, std::int64_t row, std::int64_t rows) {
    chunks[count++] = {sequence.index, row, rows, 0, sequence.k_length};
  });
  context.parallel_for(count * dims.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    Sums sums(context, args, dims, sequences, terms, most * dims.group, blocks);
    for (std::int64_t task = begin; task < end; ++task) {
      sums.run(chunks[balanced(task % count, count)], task / count);
    }
  });
}

}  // namespace

void query_gradients(Context& context, const AttendBackwardArgs& args, const Dims& dims, const Sequences& sequences,
                     const RowTerms& terms) {
  if (uses_pairs(args)) {
    for_each_chunk<PairQuerySums>(context, args, dims, sequences, terms);
  } else {
    for_each_chunk<QuerySums>(context, args, dims, sequences, terms);
  }
}

}  // namespace moba::cpu
