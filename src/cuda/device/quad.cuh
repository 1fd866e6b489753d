// What the four lanes that share the rows of an accumulator do together: row reductions, and the exchange after which
// each lane holds whole 8-column groups, so that rows go to memory in 16-byte pieces.
#pragma once

#include <cstdint>

namespace moba::cuda {

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// A 4 x 4 transpose over the lanes of a quad: before, lane l holds words[j] of group j; after, lane l holds in
/// words[i] what lane i had of group l. Two exchanges of half of the words.
template <class Word>
__device__ __forceinline__ void quad_transpose(Word (&words)[4]) {
  const int lane = threadIdx.x & 3;
  {
    const bool odd = lane & 1;
    const Word send0 = odd ? words[0] : words[1], send1 = odd ? words[2] : words[3];
    const Word got0 = __shfl_xor_sync(0xffffffffu, send0, 1), got1 = __shfl_xor_sync(0xffffffffu, send1, 1);
    (odd ? words[0] : words[1]) = got0;
    (odd ? words[2] : words[3]) = got1;
  }
  {
    const bool high = lane & 2;
    const Word send0 = high ? words[0] : words[2], send1 = high ? words[1] : words[3];
    const Word got0 = __shfl_xor_sync(0xffffffffu, send0, 2), got1 = __shfl_xor_sync(0xffffffffu, send1, 2);
    (high ? words[0] : words[2]) = got0;
    (high ? words[1] : words[3]) = got1;
  }
}

}  // namespace moba::cuda
