// TensorBoard event files: TFRecord framing around hand-encoded Event messages.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace moba::lm {

/// CRC-32C (Castagnoli), as RFC 3720 appendix B.4 tests it.
std::uint32_t crc32c(std::string_view bytes);

/// TFRecord's masked checksum: rotated right by 15 bits, plus 0xa282ead8.
std::uint32_t masked_crc32c(std::string_view bytes);

/// One event file in a folder. Every call writes whole records and flushes.
class EventWriter {
 public:
  /// Creates "events.out.tfevents.TIME.HOST.PID" in `folder` (made if missing). `first_step` > 0 tells TensorBoard to
  /// drop what earlier files hold from that step on: those steps are run again. Error when the file cannot be written.
  EventWriter(const std::filesystem::path& folder, std::int64_t first_step);
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  void scalars(std::int64_t step, std::span<const std::pair<std::string, double>> values);

 private:
  void record(const std::string& event);

  std::filesystem::path file_;
  std::FILE* stream_ = nullptr;
};

}  // namespace moba::lm
