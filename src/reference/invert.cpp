// invert: row -> blocks into block -> rows, by counting. Rows come in order because they are walked in order.
#include <algorithm>

#include "reference/verbs.h"
#include "sequences.h"

namespace moba::reference {

void invert(Context& context, const InvertArgs& args) {
  const Selection& selection = args.selection;
  const std::int64_t selection_heads = selection.selection_heads(), block_size = selection.block_size;
  const std::int64_t block_count = block_rows(args.total_keys, args.batch.sequences(), block_size);
  require_workspace(context, Sequences::bytes(args.batch), "offsets of the sequences");
  const Sequences sequences(context, args.batch, args.rows, args.total_keys);
  std::int64_t* offsets = args.inverse.offsets.as<std::int64_t>();
  const TensorView& entries = args.inverse.entries;

  // Calls use(selection head * block_count + block row, row, slot) for every listed block, in row order.
  const auto for_each_entry = [&](auto&& use) {
    for (std::int64_t row = 0; row < args.rows; ++row) {
      const std::int64_t s = sequences.of_row(row);
      const std::int64_t position = s < 0 ? -1 : sequences[s].position(row);
      const std::int64_t own_block = position < 0 ? 0 : position / block_size;
      for (std::int64_t g = 0; g < selection_heads; ++g) {
        for_each_listed_block(context, selection, row, g, own_block, [&](std::int64_t slot, std::int64_t block) {
          use(g * block_count + sequences[s].first_block_row(block_size) + block, row, slot);
        });
      }
    }
  };

  // offsets[b + 1] first counts b, then holds where b begins, and after filling where it ends.
  const std::int64_t bins = selection_heads * block_count;
  std::fill_n(offsets, bins + 1, std::int64_t{0});
  for_each_entry([&](std::int64_t bin, std::int64_t, std::int64_t) { ++offsets[bin + 1]; });
  std::int64_t begin = 0;
  for (std::int64_t bin = 0; bin < bins; ++bin) {
    const std::int64_t count = offsets[bin + 1];
    offsets[bin + 1] = begin;
    begin += count;
  }
  for_each_entry([&](std::int64_t bin, std::int64_t row, std::int64_t slot) {
    std::int32_t* entry = entries.as<std::int32_t>() + offsets[bin + 1]++ * entries.stride[0];
    entry[0] = static_cast<std::int32_t>(row);
    entry[1] = static_cast<std::int32_t>(slot);
  });
}

}  // namespace moba::reference
