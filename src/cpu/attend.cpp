// attend: softmax over the keys each row sees.
//
// A task is a chunk of query rows of one key/value head, with the heads of its group as further rows. It walks the
// chunk's keys in ascending order; for a list that is block by block, each block's K and V packed once and met with all
// rows of the chunk that chose it, gathered by id. Every row keeps its running softmax (maximum, sum, output) in
// scratch, so that there are no partial results to merge and a row's bits do not depend on who shares its chunk.
#include "cpu/attend_rows.h"
#include "cpu/verbs.h"

namespace moba::cpu {
namespace {

void clear_keyless_rows(const AttendRows& call) {
  const Scratch<float> zeros(call.context, call.out_row(), "a row of zeros");
  std::fill_n(zeros.data(), call.out_row(), 0.0f);
  const TensorView& out = call.args.result.out;
  for_each_keyless_run(call.sequences, call.args.q.shape[0], [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t head = 0; head < call.dims.heads; ++head) {
        call.kernel.store_row(zeros.data(), 1.0f, call.dims.value_dim, out.dtype, row_pointer(out, row, head));
        call.lse(head, row) = kNegativeInfinity;
      }
    }
  });
}

}  // namespace

void attend_many(const AttendRows& call) {
  const Selection& selection = call.args.selection;
  const auto for_each_sequence = [&](std::int64_t most, auto&& use) {
    for_each_row_run(call.sequences, call.args.q.shape[0] + 1,
                     [&](const Sequence& sequence, std::int64_t first, std::int64_t rows) {
                       if (call.is_few(rows)) return;
                       for (std::int64_t row = first; row < first + rows; row += most) {
                         use(sequence, row, std::min(most, first + rows - row));
                       }
                     });
  };

  std::int64_t total_rows = 0;
  AttendWorkspace::Sizes sizes{0, kKeyTile, 0};
  for_each_sequence(call.args.q.shape[0] + 1, [&](const Sequence& sequence, std::int64_t, std::int64_t rows) {
    total_rows += rows;
    if (selection.kind == SelectionKind::kList) {
      sizes.blocks = std::max(sizes.blocks, sequence.blocks(selection.block_size));
    }
  });
  if (total_rows == 0) return;
  const auto bytes = [&](std::int64_t rows) {
    return AttendWorkspace::bytes(selection, call.dims, {rows * call.dims.group, sizes.key_tile, sizes.blocks});
  };
  const std::int64_t most =
      chunk_rows(call.context, selection, call.dims, total_rows, sizes.blocks, 0, "attend", bytes);
  sizes.ids = most * call.dims.group;

  std::int64_t count = 0;
  for_each_sequence(most, [&](const Sequence&, std::int64_t, std::int64_t) { ++count; });
  const Scratch<Chunk> chunks(call.context, count, "tasks");
  count = 0;
  for_each_sequence(most, [&](const Sequence& sequence, std::int64_t row, std::int64_t rows) {
    chunks[count++] = {sequence.index, row, rows, 0, sequence.k_length};
  });

  call.context.parallel_for(count * call.dims.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    AttendWorkspace w(call.context, selection, call.dims, sizes);
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t kv_head = task / count;
      const Chunk& chunk = chunks[balanced(task % count, count)];
      call.start(w, chunk, kv_head, 0);
      call.fold(w, chunk, kv_head, 0, false);
      call.finish(chunk, kv_head, w.maximum.data(), w.sum.data(), w.out.data());
    }
  });
}

void attend(Context& context, const AttendArgs& args) {
  const AttendRows call(context, args);
  clear_keyless_rows(call);
  attend_many(call);
  attend_few(call);
}

}  // namespace moba::cpu
