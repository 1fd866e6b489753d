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

  // Rows of one head lie a token apart, where no prefetcher of the processor finds them; the heads of a row lie
  // together. So a task takes as many heads as leave work for every thread, a few rows of all of them at a time.
  constexpr std::int64_t kRows = 4;
  const std::int64_t wanted = 4 * context.num_threads();
  const std::int64_t heads =
      std::clamp<std::int64_t>(count * kv_heads / wanted, 1, std::max<std::int64_t>(1, kv_heads));
  const std::int64_t parts = (kv_heads + heads - 1) / heads, row = padded(dim);
  context.parallel_for(count * parts, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch<float> sums(context, heads * row, "the sums of a block's keys");
    for (std::int64_t task = begin; task < end; ++task) {
      const Block block = blocks[task / parts];
      const std::int64_t first = task % parts * heads, here = std::min(heads, kv_heads - first);
      std::fill_n(sums.data(), here * row, 0.0f);
      for (std::int64_t key = 0; key < block.keys; key += kRows) {
        const std::int64_t keys = std::min(kRows, block.keys - key);
        for (std::int64_t h = 0; h < here; ++h) {
          kernel.add_rows(rows_of(args.k, block.key + key, first + h, keys), sums.data() + h * row);
        }
      }
      for (std::int64_t h = 0; h < here; ++h) {
        float* sum = sums.data() + h * row;
        for (std::int64_t d = 0; d < dim; ++d) sum[d] /= static_cast<float>(block.keys);
        kernel.store_row(sum, 1.0f, dim, args.representatives.dtype,
                         row_pointer(args.representatives, block.row, first + h));
      }
    }
  });
}

}  // namespace moba::cpu
