// The pass of attend_backward that computes dk and dv: each tile of keys meets all rows that see it, in a fixed order.
#include "cpu/key_sums.h"
#include "cpu/key_sums_pairs.h"
#include "cpu/verbs.h"

namespace moba::cpu {
namespace {

/// Keys [begin, begin + keys) (positions) of one sequence. For a list they lie in `block`, else in `segment`.
struct KeyTileTask {
  std::int64_t sequence, begin, keys;
  std::int64_t block;
  KeySegment segment;
};

template <class Use>
void for_each_key_tile(const Selection& selection, const Sequences& sequences, Use&& use) {
  for (std::int64_t s = 0; s < sequences.count(); ++s) {
    const std::int64_t length = sequences[s].k_length;
    const auto cut = [&](std::int64_t begin, std::int64_t end, std::int64_t block, const KeySegment& segment) {
      for (; begin < end; begin += kKeyTile) {
        use(KeyTileTask{s, begin, std::min(kKeyTile, end - begin), block, segment});
      }
    };
    if (selection.kind == SelectionKind::kList) {
      const std::int64_t size = selection.block_size;
      for (std::int64_t b = 0; b * size < length; ++b) cut(b * size, std::min((b + 1) * size, length), b, {});
    } else {
      for_each_segment(selection, length,
                       [&](const KeySegment& segment) { cut(segment.begin, segment.end, -1, segment); });
    }
  }
}

/// Sums: KeySums or PairKeySums.
template <class Sums>
class KeyGradients {
 public:
  KeyGradients(Context& context, const AttendBackwardArgs& args, const Dims& dims, const Sequences& sequences,
               const RowTerms& terms, const Inverse& inverse)
      : context_(context),
        args_(args),
        dims_(dims),
        kernels_(kernels()),
        sequences_(sequences),
        terms_(terms),
        inverse_(inverse) {}

  void run() {
    std::int64_t count = 0;
    for_each_key_tile(args_.selection, sequences_, [&](const KeyTileTask&) { ++count; });
    Scratch<KeyTileTask> tasks(context_, count, "tasks");
    count = 0;
    for_each_key_tile(args_.selection, sequences_, [&](const KeyTileTask& task) { tasks[count++] = task; });
    context_.parallel_for(count * dims_.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
      Sums sums(context_, args_, dims_, terms_);
      for (std::int64_t i = begin; i < end; ++i) tile(sums, tasks[balanced(i % count, count)], i / count);
    });
  }

 private:
  void tile(Sums& sums, const KeyTileTask& task, std::int64_t kv_head) const {
    const Sequence sequence = sequences_[task.sequence];
    const std::int64_t key = sequence.k_begin + task.begin;
    sums.begin(key, task.keys, kv_head);
    for (std::int64_t head = kv_head * dims_.group; head < (kv_head + 1) * dims_.group; ++head) {
      if (task.block >= 0) add_rows_that_chose(sums, task, sequence, head);
      add_rows_in_order(sums, task, sequence, head);
    }
    for (std::int64_t t = 0; t < task.keys; ++t) {
      kernels_.store_row(sums.dk() + t * padded(dims_.dim), sums.dk_factor(), dims_.dim, args_.dk.dtype,
                         row_pointer(args_.dk, key + t, kv_head));
      kernels_.store_row(sums.dv() + t * padded(dims_.value_dim), 1.0f, dims_.value_dim, args_.dv.dtype,
                         row_pointer(args_.dv, key + t, kv_head));
    }
  }

  /// Later rows that list the block of the tile; they see all of it.
  void add_rows_that_chose(Sums& sums, const KeyTileTask& task, const Sequence& sequence, std::int64_t head) const {
    const Selection& selection = args_.selection;
    const std::int64_t list = head * selection.selection_heads() / dims_.heads;
    const std::int64_t bin = list * block_rows(args_.k.shape[0], sequences_.count(), selection.block_size) +
                             sequence.first_block_row(selection.block_size) + task.block;
    const std::int64_t* offsets = inverse_.offsets.as<std::int64_t>();
    const std::int32_t* entries = inverse_.entries.as<std::int32_t>();
    RowTile rows;
    for (std::int64_t e = offsets[bin]; e < offsets[bin + 1]; ++e) {
      if (e + Sums::kRowTile < offsets[bin + 1]) sums.expect(entries[2 * (e + Sums::kRowTile)], head);
      push(sums, rows, head, entries[2 * e], 0, task.keys);
    }
    flush(sums, rows, head);
  }

  /// Rows whose own block holds the tile, or, without a list, whose range of keys does.
  void add_rows_in_order(Sums& sums, const KeyTileTask& task, const Sequence& sequence, std::int64_t head) const {
    const std::int64_t offset = sequence.k_length - sequence.q_length;  // position of the first row
    std::int64_t last = task.begin + task.keys - 1;                     // the last position that sees a key of the tile
    if (task.block >= 0) {
      last = (task.block + 1) * args_.selection.block_size - 1;
    } else {
      last = task.segment.window > sequence.k_length - last ? sequence.k_length - 1 : last + task.segment.window - 1;
    }
    last = std::min(last, sequence.k_length - 1);
    RowTile rows;
    for (std::int64_t position = std::max(task.begin, offset); position <= last; ++position) {
      const KeyRange seen = task.block >= 0 ? KeyRange{task.begin, position + 1} : task.segment.seen_from(position);
      const std::int64_t low = std::max(seen.begin, task.begin) - task.begin;
      const std::int64_t high = std::min(seen.end, task.begin + task.keys) - task.begin;
      if (low < high) push(sums, rows, head, sequence.q_begin + position - offset, low, high);
    }
    flush(sums, rows, head);
  }

  void push(Sums& sums, RowTile& rows, std::int64_t head, std::int64_t row, std::int64_t begin,
            std::int64_t end) const {
    if (terms_.of_head(head).lse[row] == kNegativeInfinity) return;  // no gradient, whatever its q and dout hold
    rows.ids[rows.count] = static_cast<std::int32_t>(row);
    rows.begin[rows.count] = static_cast<std::int32_t>(begin);
    rows.end[rows.count++] = static_cast<std::int32_t>(end);
    if (rows.count == Sums::kRowTile) flush(sums, rows, head);
  }

  void flush(Sums& sums, RowTile& rows, std::int64_t head) const {
    if (rows.count > 0) sums.add(rows, head);
    rows.count = 0;
  }

  Context& context_;
  const AttendBackwardArgs& args_;
  const Dims& dims_;
  const Kernels& kernels_;
  const Sequences& sequences_;
  const RowTerms& terms_;
  const Inverse& inverse_;
};

}  // namespace

void key_gradients(Context& context, const AttendBackwardArgs& args, const Dims& dims, const Sequences& sequences,
                   const RowTerms& terms) {
  const Selection& selection = args.selection;
  const bool has_list = selection.kind == SelectionKind::kList, pairs = uses_pairs(args);
  const std::int64_t lists = has_list ? selection.selection_heads() : 0;
  const std::int64_t bins = has_list ? lists * block_rows(args.k.shape[0], sequences.count(), selection.block_size) : 0;
  const std::int64_t most_entries = has_list ? args.q.shape[0] * lists * selection.budget() : 0;
  rows_that_fit(context, 1, RowTerms::bytes(args) + 8 * (bins + 1 + most_entries), "attend_backward",
                [&](std::int64_t) { return pairs ? PairKeySums::bytes(dims) : KeySums::bytes(dims); });
  Scratch<std::int64_t> offsets(context, bins + 1, "rows of each block");
  Scratch<std::int32_t> entries(context, 2 * most_entries, "rows of each block");
  Inverse inverse;
  if (has_list) {
    inverse.offsets = TensorView(offsets.data(), DType::kInt64, {bins + 1});
    inverse.entries = TensorView(entries.data(), DType::kInt32, {most_entries, 2});
    invert(context, {args.batch, selection, args.q.shape[0], args.k.shape[0], inverse});
  }
  if (pairs) {
    KeyGradients<PairKeySums>(context, args, dims, sequences, terms, inverse).run();
  } else {
    KeyGradients<KeySums>(context, args, dims, sequences, terms, inverse).run();
  }
}

}  // namespace moba::cpu
