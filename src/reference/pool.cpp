// pool: the mean key of each block.
#include <algorithm>

#include "block_mean.h"
#include "reference/rows.h"
#include "reference/verbs.h"
#include "sequences.h"

namespace moba::reference {

void pool(Context& context, const PoolArgs& args) {
  PackedBatch batch = args.batch;
  batch.cu_seqlens_q = {};
  require_workspace(context, Sequences::bytes(batch), "offsets of the sequences");
  const Sequences sequences(context, batch, 0, args.k.shape[0]);
  const std::int64_t kv_heads = args.k.shape[1], dim = args.k.shape[2];

  dispatch("k", args.k.dtype, FloatTypes{}, [&]<class T>() {
    context.parallel_for(sequences.count() * kv_heads, 1, [&](std::int64_t task_begin, std::int64_t task_end) {
      for (std::int64_t task = task_begin; task < task_end; ++task) {
        const Sequence sequence = sequences[task / kv_heads];
        const std::int64_t head = task % kv_heads;
        for (std::int64_t block = 0; block < sequence.blocks(args.block_size); ++block) {
          const std::int64_t begin = block * args.block_size;
          const std::int64_t count = std::min(args.block_size, sequence.k_length - begin);
          Accumulator<T> sum[kMaxHeadDim] = {};
          for (std::int64_t t = begin; t < begin + count; ++t) {
            add_key(sum, row_of<T>(args.k, sequence.k_begin + t, head), dim);
          }
          const std::int64_t row = sequence.first_block_row(args.block_size) + block;
          if (args.representatives.dtype == args.k.dtype) {
            write_mean(row_of<T>(args.representatives, row, head), sum, count, dim);
          } else {
            write_mean(row_of<Accumulator<T>>(args.representatives, row, head), sum, count, dim);
          }
        }
      }
    });
  });
}

}  // namespace moba::reference
