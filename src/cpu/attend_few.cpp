// attend for sequences with few query rows: decoding, and short chunks of a prompt.
//
// One row has nothing to share a packed tile with, so the work is reading K and V once. Tokens lie in memory with all
// their heads together; reading one head of many tokens touches every page for a few cache lines. So where rows see all
// or a span of the keys a task takes a stretch of keys and walks it a tile at a time for all heads, and the states of
// the stretches are merged in order. A list chooses differently for each head: there a task is one key/value head.
#include <cmath>

#include "cpu/attend_rows.h"

namespace moba::cpu {
namespace {

constexpr std::int64_t kKeysOfATask = 1024;  // hundreds of microseconds of work; 128 tasks at 128K

/// Folds the state of one row over later keys into that over earlier ones.
void merge_state(const Kernels& kernel, float& maximum, float& sum, float* out, float other_maximum, float other_sum,
                 const float* other_out, std::int64_t width) {
  if (other_sum == 0.0f) return;
  const float highest = other_maximum > maximum ? other_maximum : maximum;
  const float mine = sum == 0.0f ? 0.0f : std::exp2(maximum - highest);
  const float theirs = std::exp2(other_maximum - highest);
  kernel.blend(out, mine, other_out, theirs, width);
  sum = sum * mine + other_sum * theirs;
  maximum = highest;
}

/// Where the states of one chunk's rows, all key/value heads, lie in an array: maxima, sums, outputs.
struct States {
  float* maximum;
  float* sum;
  float* out;

  States(float* memory, std::int64_t rows) : maximum(memory), sum(memory + rows), out(memory + 2 * rows) {}
};

}  // namespace

void attend_few(const AttendRows& call) {
  const Dims& dims = call.dims;
  const Selection& selection = call.args.selection;
  const bool has_list = selection.kind == SelectionKind::kList;

  // A list: one chunk a sequence. Otherwise one for each stretch of keys.
  const auto for_each_chunk = [&](auto&& use) {
    for_each_row_run(call.sequences, call.args.q.shape[0] + 1,
                     [&](const Sequence& sequence, std::int64_t first, std::int64_t rows) {
                       if (!call.is_few(rows)) return;
                       const std::int64_t step = has_list ? sequence.k_length : kKeysOfATask;
                       for (std::int64_t key = 0; key < sequence.k_length; key += step) {
                         use(Chunk{sequence.index, first, rows, key, std::min(sequence.k_length, key + step)});
                       }
                     });
  };
  std::int64_t count = 0, most_ids = 0;
  AttendWorkspace::Sizes sizes{0, kFewRowsKeyTile, 0, call.gathered_bytes(kFewRowsKeyTile)};
  for_each_chunk([&](const Chunk& chunk) {
    ++count;
    most_ids = std::max(most_ids, call.ids(chunk));
    if (has_list) {
      sizes.blocks = std::max(sizes.blocks, call.sequences[chunk.sequence].blocks(selection.block_size));
    }
  });
  if (count == 0) return;
  const Scratch<Chunk> chunks(call.context, count, "tasks");
  count = 0;
  for_each_chunk([&](const Chunk& chunk) { chunks[count++] = chunk; });

  if (has_list) {
    sizes.ids = most_ids;
    call.context.parallel_for(count * dims.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
      AttendWorkspace w(call.context, selection, dims, sizes);
      for (std::int64_t task = begin; task < end; ++task) {
        const Chunk& chunk = chunks[task / dims.kv_heads];
        const std::int64_t kv_head = task % dims.kv_heads;
        call.start(w, chunk, kv_head, 0);
        call.fold(w, chunk, kv_head, 0, true);
        call.finish(chunk, kv_head, w.maximum.data(), w.sum.data(), w.out.data());
      }
    });
    return;
  }

  sizes.ids = most_ids * dims.kv_heads;
  const std::int64_t state_size = sizes.ids * (2 + call.out_row());
  rows_that_fit(call.context, 1, 4 * count * state_size, "attend",
                [&](std::int64_t) { return AttendWorkspace::bytes(selection, dims, sizes); });
  const Scratch<float> states(call.context, count * state_size, "states of rows over a stretch of keys");
  call.context.parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end) {
    AttendWorkspace w(call.context, selection, dims, sizes);
    for (std::int64_t c = begin; c < end; ++c) {
      const std::int64_t ids = call.ids(chunks[c]);
      for (std::int64_t kv_head = 0; kv_head < dims.kv_heads; ++kv_head)
        call.start(w, chunks[c], kv_head, kv_head * ids);
      Chunk part = chunks[c];
      for (; part.key_begin < chunks[c].key_end; part.key_begin = part.key_end) {
        part.key_end = std::min(part.key_begin + kFewRowsKeyTile, chunks[c].key_end);
        for (std::int64_t kv_head = 0; kv_head < dims.kv_heads; ++kv_head)
          call.fold(w, part, kv_head, kv_head * ids, true);
      }
      const States to(states.data() + c * state_size, ids * dims.kv_heads);
      std::copy_n(w.maximum.data(), ids * dims.kv_heads, to.maximum);
      std::copy_n(w.sum.data(), ids * dims.kv_heads, to.sum);
      std::copy_n(w.out.data(), ids * dims.kv_heads * call.out_row(), to.out);
    }
  });

  std::int64_t next = 0;
  for (std::int64_t c = 0; c < count; c = next) {
    const std::int64_t ids = call.ids(chunks[c]), rows = ids * dims.kv_heads;
    const States total(states.data() + c * state_size, rows);
    for (next = c + 1; next < count && chunks[next].key_begin > 0; ++next) {
      const States part(states.data() + next * state_size, rows);
      for (std::int64_t id = 0; id < rows; ++id) {
        merge_state(call.kernel, total.maximum[id], total.sum[id], total.out + id * call.out_row(), part.maximum[id],
                    part.sum[id], part.out + id * call.out_row(), call.out_row());
      }
    }
    for (std::int64_t kv_head = 0; kv_head < dims.kv_heads; ++kv_head) {
      call.finish(chunks[c], kv_head, total.maximum + kv_head * ids, total.sum + kv_head * ids,
                  total.out + kv_head * ids * call.out_row());
    }
  }
}

}  // namespace moba::cpu
