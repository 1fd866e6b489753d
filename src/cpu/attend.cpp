// attend: softmax over the keys each row sees.
//
// A task is a chunk of query rows of one key/value head, with the heads of its group as further rows. It walks the
// chunk's keys in ascending order; for a list that is block by block, each block's K and V packed once and met with all
// rows of the chunk that chose it, gathered by id. Every row keeps its running softmax (maximum, sum, output) in
// scratch, so that there are no partial results to merge and a row's bits do not depend on who shares its chunk.
#include "cpu/attend_pairs.h"
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

// A forward pass stays below 64 MB of scratch, the lists of its choice apart, on any machine.
constexpr std::int64_t kWantedBytes = std::int64_t{60} << 20;

/// The rows that are not few (see kFewRows), cut into chunks, by the means of Fold: its kRowTile, bytes() and run().
template <class Fold>
void attend_chunks(const AttendRows& call) {
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

  std::int64_t total_rows = 0, blocks = 0;
  for_each_sequence(call.args.q.shape[0] + 1, [&](const Sequence& sequence, std::int64_t, std::int64_t rows) {
    total_rows += rows;
    if (selection.kind == SelectionKind::kList) blocks = std::max(blocks, sequence.blocks(selection.block_size));
  });
  if (total_rows == 0) return;
  const auto bytes = [&](std::int64_t rows) { return Fold::bytes(call, rows * call.dims.group, blocks); };
  const std::int64_t most = chunk_rows(call.context, selection, call.dims, total_rows, blocks, Fold::kRowTile, 0,
                                       kWantedBytes, "attend", bytes);

  std::int64_t count = 0;
  for_each_sequence(most, [&](const Sequence&, std::int64_t, std::int64_t) { ++count; });
  const Scratch<Chunk> chunks(call.context, count, "tasks");
  count = 0;
  for_each_sequence(most, [&](const Sequence& sequence, std::int64_t row, std::int64_t rows) {
    chunks[count++] = {sequence.index, row, rows, 0, sequence.k_length};
  });

  call.context.parallel_for(count * call.dims.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    Fold fold(call, most * call.dims.group, blocks);
    for (std::int64_t task = begin; task < end; ++task) {
      fold.run(chunks[balanced(task % count, count)], task / count);
    }
  });
}

/// Products of float32 numbers.
class FloatFold {
 public:
  static constexpr std::int64_t kRowTile = cpu::kRowTile;
  static std::int64_t bytes(const AttendRows& call, std::int64_t ids, std::int64_t blocks) {
    return AttendWorkspace::bytes(call.args.selection, call.dims, sizes(call, ids, blocks));
  }
  FloatFold(const AttendRows& call, std::int64_t ids, std::int64_t blocks)
      : call_(call), w_(call.context, call.args.selection, call.dims, sizes(call, ids, blocks)) {}
  void run(const Chunk& chunk, std::int64_t kv_head) {
    call_.start(w_, chunk, kv_head, 0);
    call_.fold(w_, chunk, kv_head, 0, false);
    call_.finish(chunk, kv_head, w_.maximum.data(), w_.sum.data(), w_.out.data());
  }

 private:
  static AttendWorkspace::Sizes sizes(const AttendRows& call, std::int64_t ids, std::int64_t blocks) {
    return {ids, kKeyTile, blocks, call.gathered_bytes(kKeyTile)};
  }

  const AttendRows& call_;
  AttendWorkspace w_;
};

}  // namespace

void attend(Context& context, const AttendArgs& args) {
  const AttendRows call(context, args);
  clear_keyless_rows(call);
  if (call.has_pairs) {
    attend_chunks<PairFold>(call);
  } else {
    attend_chunks<FloatFold>(call);
  }
  attend_few(call);
}

}  // namespace moba::cpu
