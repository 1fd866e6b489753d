#include "moba/reads.h"

#include <algorithm>

#include "checks.h"
#include "token_rows.h"

namespace moba {
namespace {

/// The keys of one key/value head that some row of a sequence attends.
struct Union {
  std::int64_t blocks = 0, keys = 0;
};

/// Of a list: how far into each block its rows see.
class ListUnion {
 public:
  ListUnion(Context& context, const AttendArgs& args, std::int64_t blocks)
      : context_(context), args_(args), seen_(context, blocks, "keys seen of each block") {}

  Union of(const Sequence& sequence, std::int64_t kv_head, ReadCount& count) {
    const Selection& selection = args_.selection;
    const std::int64_t size = selection.block_size, heads = args_.q.shape[1], group = heads / args_.k.shape[1];
    std::fill_n(seen_.data(), sequence.blocks(size), std::int64_t{0});
    for (std::int64_t row = sequence.q_begin; row < sequence.q_begin + sequence.q_length; ++row) {
      const std::int64_t position = sequence.position(row);
      if (position < 0) continue;
      for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for_each_key_range(context_, selection, row, position, head, heads, [&](std::int64_t begin, std::int64_t end) {
          seen_[begin / size] = end - begin;  // never less than for the rows before
          ++count.blocks_chosen;
          count.keys_chosen += end - begin;
        });
      }
    }
    Union result;
    for (std::int64_t block = 0; block < sequence.blocks(size); ++block) {
      result.blocks += seen_[block] > 0;
      result.keys += seen_[block];
    }
    return result;
  }

 private:
  Context& context_;
  const AttendArgs& args_;
  Scratch<std::int64_t> seen_;
};

/// Of rows that see all or a span of the keys. The last range of a row ends at its position, and those of neighbouring
/// rows overlap or touch; what comes before it is the sink.
std::int64_t span_union(Context& context, const AttendArgs& args, const Sequence& sequence, ReadCount& count) {
  const std::int64_t heads = args.q.shape[1];
  std::int64_t sink = 0, first = -1, last = 0;
  for (std::int64_t row = sequence.q_begin; row < sequence.q_begin + sequence.q_length; ++row) {
    const std::int64_t position = sequence.position(row);
    if (position < 0) continue;
    for_each_key_range(context, args.selection, row, position, 0, heads, [&](std::int64_t begin, std::int64_t end) {
      count.keys_chosen += heads * (end - begin);
      if (end != position + 1) {
        sink = std::max(sink, end);
        return;
      }
      if (first < 0) first = begin;
      last = end;
    });
  }
  return first < 0 ? 0 : last - first + std::min(sink, first);
}

}  // namespace

void count_reads(Context& context, const AttendArgs& args, ReadCount& count) {
  check_attended(args);
  const std::int64_t kv_heads = args.k.shape[1];
  const Sequences sequences = sequences_of(context, args.batch, args.page_table, args.q.shape[0], args.k.shape[0]);
  if (count.blocks_of_head.present()) {
    check_output(reference_backend(), "blocks_of_head", count.blocks_of_head, DType::kInt64,
                 {sequences.count(), kv_heads}, "[sequences, HK]");
  }
  const TensorView per_head = count.blocks_of_head;
  count = {};
  count.blocks_of_head = per_head;

  const bool has_list = args.selection.kind == SelectionKind::kList;
  const std::int64_t size = args.selection.block_size;
  std::int64_t most = 0;
  for (std::int64_t s = 0; s < sequences.count() && has_list; ++s) most = std::max(most, sequences[s].blocks(size));
  ListUnion list(context, args, most);
  for (std::int64_t s = 0; s < sequences.count(); ++s) {
    const Sequence sequence = sequences[s];
    for (std::int64_t head = 0; head < kv_heads && has_list; ++head) {
      const Union read = list.of(sequence, head, count);
      count.blocks_read += read.blocks;
      count.keys_read += read.keys;
      if (per_head.present()) {
        per_head.as<std::int64_t>()[s * per_head.stride[0] + head * per_head.stride[1]] = read.blocks;
      }
    }
    if (!has_list) {
      count.keys_read += kv_heads * span_union(context, args, sequence, count);
      for (std::int64_t head = 0; head < kv_heads && per_head.present(); ++head) {
        per_head.as<std::int64_t>()[s * per_head.stride[0] + head * per_head.stride[1]] = 0;
      }
    } else if (sequence.q_length > 0 && sequence.k_length > 0) {
      const std::int64_t past = (sequence.k_length - 1) / size;  // of the last row
      count.representative_bytes += past * kv_heads * args.k.shape[2] * size_of(args.k.dtype);
    }
  }
  count.key_bytes = count.keys_read * (args.k.shape[2] + args.v.shape[2]) * size_of(args.k.dtype);
}

}  // namespace moba
