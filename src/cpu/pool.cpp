// pool: the mean key of each block, by the rule of block_mean.h: a float32 sum in token order, one division, one
// rounding.
#include <algorithm>

#include "cpu/problem.h"
#include "cpu/verbs.h"

namespace moba::cpu {

void pool(Context& context, const PoolArgs& args) {
  PackedBatch batch = args.batch;
  batch.cu_seqlens_q = {};
  const Sequences sequences(context, batch, 0, args.k.shape[0]);
  const std::int64_t kv_heads = args.k.shape[1], dim = args.k.shape[2];
  const Kernels& kernel = kernels();

  struct Block {
    std::int64_t key, keys, row;
  };
  Scratch<Block> blocks(context, block_rows(args.k.shape[0], sequences.count(), args.block_size),
                        "the blocks of a batch");
  std::int64_t count = 0;
  for (std::int64_t s = 0; s < sequences.count(); ++s) {
    const Sequence sequence = sequences[s];
    for (std::int64_t block = 0; block < sequence.blocks(args.block_size); ++block) {
      const std::int64_t begin = block * args.block_size;
      blocks[count++] = {sequence.k_begin + begin, std::min(args.block_size, sequence.k_length - begin),
                         sequence.first_block_row(args.block_size) + block};
    }
  }

  context.parallel_for(count * kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch<float> sum(context, padded(dim), "the sum of a block's keys");
    for (std::int64_t task = begin; task < end; ++task) {
      const Block block = blocks[task / kv_heads];
      const std::int64_t head = task % kv_heads;
      std::fill_n(sum.data(), padded(dim), 0.0f);
      kernel.add_rows(rows_of(args.k, block.key, head, block.keys), sum.data());
      for (std::int64_t d = 0; d < dim; ++d) sum[d] /= static_cast<float>(block.keys);
      kernel.store_row(sum.data(), 1.0f, dim, args.representatives.dtype,
                       row_pointer(args.representatives, block.row, head));
    }
  });
}

}  // namespace moba::cpu
