// Lets the host run a little ahead of the device, and tells how far the device has come, without stalling it.
#pragma once

#include <cstdint>
#include <deque>

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

namespace moba::lm {

class DevicePacer {
 public:
  /// At most `in_flight` marks not yet reached by the device: two keep it busy and bound memory and reaction time.
  DevicePacer(torch::Device device, std::size_t in_flight) : device_(device), in_flight_(in_flight) {}

  /// Marks the end of what was queued so far, and waits until few enough marks are open.
  void mark() {
    ++marks_;
    if (device_.is_cpu()) return;
    events_.emplace_back(device_.type());
    events_.back().record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
    while (events_.size() > in_flight_) {
      events_.front().synchronize();
      events_.pop_front();
    }
  }

  std::int64_t marks() const { return marks_; }
  /// Marks that the device has surely reached.
  std::int64_t reached() const { return marks_ - static_cast<std::int64_t>(events_.size()); }

 private:
  torch::Device device_;
  std::size_t in_flight_;
  std::int64_t marks_ = 0;
  std::deque<c10::Event> events_;
};

}  // namespace moba::lm
