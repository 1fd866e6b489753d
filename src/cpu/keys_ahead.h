// Keys and values that may be wanted next are asked for while others are worked on. One head's keys lie a token apart,
// which no prefetcher of the processor follows, and every few of them begin a page that must be looked up.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/pairs.h"
#include "moba/backend.h"

namespace moba::cpu {

class KeysAhead {
 public:
  KeysAhead(const ConstTensorView& k, const ConstTensorView& v) : k_(k), v_(v) {}

  /// The packed keys [begin, end) of a head come next.
  void begin(std::int64_t begin, std::int64_t end, std::int64_t kv_head) {
    begin_ = begin;
    end_ = end;
    kv_head_ = kv_head;
  }

  /// Asks for the next few of them; called between products, since a processor follows few requests at a time.
  void ask_for_some() {
    const std::int64_t end = std::min(end_, begin_ + kPairKeys);
    for (const ConstTensorView* tensor : {&k_, &v_}) {
      const std::int64_t size = size_of(tensor->dtype);
      for (std::int64_t t = begin_; t < end; ++t) {
        const char* row =
            static_cast<const char*>(tensor->data) + size * (t * tensor->stride[0] + kv_head_ * tensor->stride[1]);
        for (std::int64_t byte = 0; byte < size * tensor->shape[2]; byte += 64) __builtin_prefetch(row + byte, 0, 2);
      }
    }
    begin_ = std::max(begin_, end);
  }

 private:
  const ConstTensorView& k_;
  const ConstTensorView& v_;
  std::int64_t begin_ = 0, end_ = 0, kv_head_ = 0;
};

}  // namespace moba::cpu
