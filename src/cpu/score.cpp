// score: the product of each query with the representative of each block in its past, for diagnosis and tests.
#include <algorithm>

#include "cpu/gate.h"
#include "cpu/gate_pairs.h"
#include "cpu/verbs.h"

namespace moba::cpu {
namespace {

const PageTable kPacked;  // this verb knows no pages

float* scores_of(const ScoreArgs& args, std::int64_t row, std::int64_t head) {
  return args.scores.as<float>() + row * args.scores.stride[0] + head * args.scores.stride[1];
}

template <class AnyGate>
void write_scores(Context& context, const ScoreArgs& args, const Sequences& sequences) {
  const std::int64_t heads = args.q.shape[1], columns = args.scores.shape[2];
  const std::int64_t past = args.representatives.shape[0];
  const auto bytes = [&](std::int64_t most) { return AnyGate::bytes(args.q.shape[2], most, past, 1, {}); };
  const std::int64_t most = rows_that_fit(context, std::min(kGateRows, args.q.shape[0] + 1), 0, "score", bytes);
  context.parallel_for(heads, 1, [&](std::int64_t begin, std::int64_t end) {
    const BlockRows representatives(context, args.representatives, kPacked, args.block_size,
                                    AnyGate::blocks_of_tile(past));
    AnyGate gate(context, args.q, representatives, most, past, 1, {});
    for (std::int64_t head = begin; head < end; ++head) {
      for_each_row_run(sequences, most, [&](const Sequence& sequence, std::int64_t first, std::int64_t count) {
        gate.run(sequence, args.block_size, head, first, count,
                 [&](std::int64_t row, std::int64_t block, std::int64_t blocks, const float* scores) {
                   float* to = scores_of(args, row, head) + block;
                   for (std::int64_t i = 0; i < std::min(blocks, columns - block); ++i) {
                     to[i] = scores[i] == scores[i] ? scores[i] : kNegativeInfinity;
                   }
                 });
      });
    }
  });
}

}  // namespace

void score(Context& context, const ScoreArgs& args) {
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], columns = args.scores.shape[2];
  // The number of keys is not an argument of this verb; block rows bound it: R = Tk / B + sequences.
  const Sequences sequences(context, args.batch, rows,
                            most_keys(args.representatives.shape[0], args.batch.sequences(), args.block_size));
  context.parallel_for(rows, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t head = 0; head < heads; ++head)
        std::fill_n(scores_of(args, row, head), columns, kNegativeInfinity);
    }
  });

  if (PairGate::serves(args.q, args.representatives)) {
    write_scores<PairGate>(context, args, sequences);
  } else {
    write_scores<Gate>(context, args, sequences);
  }
}

}  // namespace moba::cpu
