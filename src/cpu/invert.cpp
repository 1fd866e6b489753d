// invert: row -> blocks into block -> rows, by counting. Rows come in order because they are walked in order.
#include <algorithm>
#include <utility>

#include "cpu/problem.h"
#include "cpu/verbs.h"

namespace moba::cpu {

void invert(Context& context, const InvertArgs& args) {
  const Selection& selection = args.selection;
  const std::int64_t lists = selection.selection_heads(), block_size = selection.block_size;
  const std::int64_t block_count = block_rows(args.total_keys, args.batch.sequences(), block_size);
  const Sequences sequences(context, args.batch, args.rows, args.total_keys);
  std::int64_t* offsets = args.inverse.offsets.as<std::int64_t>();
  const TensorView& entries = args.inverse.entries;

  // Calls use(bin, row, slot) for every listed block of one selection head, in row order.
  const auto for_each_entry = [&](std::int64_t list, auto&& use) {
    for_each_row_run(sequences, args.rows + 1, [&](const Sequence& sequence, std::int64_t first, std::int64_t rows) {
      const std::int64_t bin = list * block_count + sequence.first_block_row(block_size);
      for (std::int64_t row = first; row < first + rows; ++row) {
        for_each_listed_block(context, selection, row, list, sequence.position(row) / block_size,
                              [&](std::int64_t slot, std::int64_t block) { use(bin + block, row, slot); });
      }
    });
  };
  const auto for_each_list = [&](auto&& use) {
    context.parallel_for(lists, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t list = begin; list < end; ++list) use(list);
    });
  };

  // offsets[b + 1] first counts b, then holds where b begins, and after filling where it ends.
  const std::int64_t bins = lists * block_count;
  std::fill_n(offsets, bins + 1, std::int64_t{0});
  for_each_list([&](std::int64_t list) {
    for_each_entry(list, [&](std::int64_t bin, std::int64_t, std::int64_t) { ++offsets[bin + 1]; });
  });
  std::int64_t begin = 0;
  for (std::int64_t bin = 0; bin < bins; ++bin) begin += std::exchange(offsets[bin + 1], begin);
  for_each_list([&](std::int64_t list) {
    for_each_entry(list, [&](std::int64_t bin, std::int64_t row, std::int64_t slot) {
      std::int32_t* entry = entries.as<std::int32_t>() + offsets[bin + 1]++ * entries.stride[0];
      entry[0] = static_cast<std::int32_t>(row);
      entry[1] = static_cast<std::int32_t>(slot);
    });
  });
}

}  // namespace moba::cpu
