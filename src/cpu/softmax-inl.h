// Exponentials of score tiles, forward and backward, and the running best of the gate's scores.
// Included once for each SIMD level.

#if defined(MOBA_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOBA_CPU_SOFTMAX_INL_H_
#undef MOBA_CPU_SOFTMAX_INL_H_
#else
#define MOBA_CPU_SOFTMAX_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moba::cpu::HWY_NAMESPACE {

// 2^x for x <= 0 (and a little above): relative error below 1.5e-7, 0 below -126, NaN for NaN, 1 exactly for 0.
//
// x = n + f with n an integer and |f| <= 1/2: adding 1.5 * 2^23 leaves n in the low bits of the significand, rounded.
// 2^f is the polynomial of degree 6 that minimises the greatest relative error on [-1/2, 1/2] (Remez; 1.9e-9, a
// hundredth of a float's rounding); 2^n is made of its exponent bits.
HWY_INLINE Floats exp2_of_nonpositive(FloatTag d, Floats x) {
  const hn::RebindToUnsigned<FloatTag> du;
  const Floats magic = hn::Set(d, 12582912.0f);
  const Floats shifted = hn::Add(x, magic);
  const Floats f = hn::Sub(x, hn::Sub(shifted, magic));
  Floats p = hn::Set(d, 0.00015345812003852072f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.00133999312191463f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.009618488957108397f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.05550328776965639f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.24022646890634292f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.6931472057372673f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::BitCast(du, shifted), hn::Set(du, 127u)));
  const Floats result = hn::Mul(p, hn::BitCast(d, exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), result);
}

// -inf in [from, to): columns that a row does not see.
HWY_INLINE void hide(float* row, std::int64_t from, std::int64_t to) {
  for (std::int64_t c = from; c < to; ++c) row[c] = kNegativeInfinity;
}

HWY_INLINE void clear(float* row, std::int64_t from, std::int64_t to) {
  for (std::int64_t c = from; c < to; ++c) row[c] = 0.0f;
}

void softmax(const ScoreTile& tile, const SoftmaxState& state) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t width = padded(tile.columns);
  const Floats nothing = hn::Set(d, kNegativeInfinity);
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    float* row = tile.scores + i * tile.row_stride;
    hide(row, 0, tile.begin[i]);
    hide(row, tile.end[i], width);
    Floats best0 = nothing, best1 = nothing;
    std::int64_t c = 0;
    for (; c + 2 * lanes <= width; c += 2 * lanes) {
      best0 = hn::Max(best0, hn::LoadU(d, row + c));
      best1 = hn::Max(best1, hn::LoadU(d, row + c + lanes));
    }
    if (c < width) best0 = hn::Max(best0, hn::LoadU(d, row + c));
    const std::int64_t id = tile.ids[i];
    const Floats old = hn::Set(d, state.maximum[id]);
    const Floats maximum = hn::Max(old, hn::MaxOfLanes(d, hn::Max(best0, best1)));
    // Where nothing is visible yet the maximum is -inf; subtracting 0 instead keeps -inf - (-inf) away.
    const auto empty = hn::Eq(maximum, nothing);
    const Floats shift = hn::IfThenZeroElse(empty, maximum);
    Floats sum = hn::Zero(d);
    for (c = 0; c < width; c += lanes) {
      const Floats p = exp2_of_nonpositive(d, hn::Sub(hn::LoadU(d, row + c), shift));
      hn::StoreU(p, d, row + c);
      sum = hn::Add(sum, p);
    }
    const Floats keep = exp2_of_nonpositive(d, hn::Sub(old, shift));
    const float factor = hn::GetLane(keep);
    const float new_maximum = hn::GetLane(maximum);
    state.sum[id] = state.sum[id] * factor + hn::GetLane(hn::SumOfLanes(d, sum));
    state.maximum[id] = new_maximum;
    if (factor != 1.0f) {
      float* out = state.out + id * state.out_row;
      for (c = 0; c < state.out_row; c += lanes) hn::StoreU(hn::Mul(keep, hn::LoadU(d, out + c)), d, out + c);
    }
  }
}

void softmax_backward(const ScoreTile& tile, float* dp, const RowTermsView& terms) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t width = padded(tile.columns);
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    float* row = tile.scores + i * tile.row_stride;
    float* slope = dp + i * tile.row_stride;
    const std::int64_t id = tile.ids[i];
    const bool empty = terms.lse[id] == kNegativeInfinity;
    const std::int64_t begin = empty ? width : tile.begin[i];
    const std::int64_t end = empty ? width : tile.end[i];
    const Floats total = hn::Set(d, empty ? 0.0f : terms.lse[id]);
    const Floats delta = hn::Set(d, terms.delta[id]);
    const Floats dlse = hn::Set(d, terms.dlse[id]);
    for (std::int64_t c = 0; c < width; c += lanes) {
      const Floats p = exp2_of_nonpositive(d, hn::Sub(hn::LoadU(d, row + c), total));
      hn::StoreU(p, d, row + c);
      hn::StoreU(hn::Mul(p, hn::Add(hn::Sub(hn::LoadU(d, slope + c), delta), dlse)), d, slope + c);
    }
    // Outside the row's columns both are 0, whatever K, V and the row itself hold: set, not computed.
    clear(row, 0, begin);
    clear(row, end, width);
    clear(slope, 0, begin);
    clear(slope, end, width);
  }
}

// Whether x is worse than y, for the heap: a lower score, or the same score and a higher block.
HWY_INLINE bool is_worse(const Candidate& x, const Candidate& y) {
  return x.score < y.score || (x.score == y.score && x.block > y.block);
}

HWY_INLINE void sift_down(Candidate* heap, std::int64_t held) {
  const Candidate moving = heap[0];
  std::int64_t hole = 0;
  for (std::int64_t child = 1; child < held; child = 2 * hole + 1) {
    if (child + 1 < held && is_worse(heap[child + 1], heap[child])) ++child;
    if (!is_worse(heap[child], moving)) break;
    heap[hole] = heap[child];
    hole = child;
  }
  heap[hole] = moving;
}

HWY_INLINE void sift_up(Candidate* heap, std::int64_t position) {
  const Candidate moving = heap[position];
  while (position > 0 && is_worse(moving, heap[(position - 1) / 2])) {
    heap[position] = heap[(position - 1) / 2];
    position = (position - 1) / 2;
  }
  heap[position] = moving;
}

std::int64_t keep_best(const float* scores, std::int64_t count, std::int32_t first, Candidate* heap, std::int64_t held,
                       std::int64_t budget) {
  if (budget == 0) return 0;
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const float nothing = kNegativeInfinity;
  float threshold = held == budget ? heap[0].score : nothing;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const std::int64_t here = HWY_MIN(lanes, count - i);
    if (here == lanes && hn::AllFalse(d, hn::Gt(hn::LoadU(d, scores + i), hn::Set(d, threshold)))) continue;
    for (std::int64_t j = i; j < i + here; ++j) {
      if (!(scores[j] > threshold)) continue;
      const Candidate candidate{scores[j], first + static_cast<std::int32_t>(j)};
      if (held < budget) {
        heap[held] = candidate;
        sift_up(heap, held++);
      } else {
        heap[0] = candidate;
        sift_down(heap, held);
      }
      if (held == budget) threshold = heap[0].score;
    }
  }
  return held;
}

}  // namespace moba::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
