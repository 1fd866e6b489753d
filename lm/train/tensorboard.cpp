#include "lm/train/tensorboard.h"

#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "moba/error.h"

namespace moba::lm {
namespace {

// Protocol-buffer wire types and the field numbers of tensorflow's event.proto and summary.proto.
enum WireType : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
constexpr std::uint32_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5,
                        kEventSessionLog = 7;
constexpr std::uint32_t kSummaryValue = 1, kValueTag = 1, kValueSimple = 2;
constexpr std::uint32_t kSessionStatus = 1, kSessionStart = 1;

constexpr std::array<std::uint32_t, 256> crc_table() {
  constexpr std::uint32_t kPolynomial = 0x82F63B78;  // Castagnoli, bits reversed
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? kPolynomial : 0);
    table[i] = value;
  }
  return table;
}

template <typename Integer>
void put_little_endian(std::string& out, Integer value) {
  for (std::size_t i = 0; i < sizeof(value); ++i) out += static_cast<char>((value >> (8 * i)) & 0xFF);
}

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}

void put_key(std::string& out, std::uint32_t field, WireType type) {
  put_varint(out, (field << 3) | type);
}

void put_bytes(std::string& out, std::uint32_t field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

std::string event_header(std::int64_t step) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  put_key(event, kEventWallTime, kFixed64);
  put_little_endian(event, std::bit_cast<std::uint64_t>(std::chrono::duration<double>(now).count()));
  put_key(event, kEventStep, kVarint);
  put_varint(event, static_cast<std::uint64_t>(step));
  return event;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<std::uint32_t, 256> kTable = crc_table();
  std::uint32_t crc = 0xFFFFFFFF;
  for (const char byte : bytes) crc = kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xA282EAD8;
}

EventWriter::EventWriter(const std::filesystem::path& folder, std::int64_t first_step) {
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
  file_ = folder / fmt::format("events.out.tfevents.{}.{}.{}", seconds.count(), host.data(), ::getpid());
  stream_ = std::fopen(file_.c_str(), "wbe");
  if (!stream_)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: cannot be created: {}", file_.string(), std::strerror(errno)));
  std::string version = event_header(0);
  put_bytes(version, kEventFileVersion, "brain.Event:2");
  record(version);
  if (first_step > 0) {
    std::string status;
    put_key(status, kSessionStatus, kVarint);
    put_varint(status, kSessionStart);
    std::string start = event_header(first_step);
    put_bytes(start, kEventSessionLog, status);
    record(start);
  }
}

EventWriter::~EventWriter() {
  std::fclose(stream_);
}

void EventWriter::scalars(std::int64_t step, std::span<const std::pair<std::string, double>> values) {
  std::string summary;
  for (const auto& [tag, number] : values) {
    std::string value;
    put_bytes(value, kValueTag, tag);
    put_key(value, kValueSimple, kFixed32);
    put_little_endian(value, std::bit_cast<std::uint32_t>(static_cast<float>(number)));
    put_bytes(summary, kSummaryValue, value);
  }
  std::string event = event_header(step);
  put_bytes(event, kEventSummary, summary);
  record(event);
}

void EventWriter::record(const std::string& event) {
  std::string framed;
  put_little_endian(framed, static_cast<std::uint64_t>(event.size()));
  put_little_endian(framed, masked_crc32c({framed.data(), 8}));
  framed += event;
  put_little_endian(framed, masked_crc32c(event));
  const bool written = std::fwrite(framed.data(), 1, framed.size(), stream_) == framed.size();
  if (!written || std::fflush(stream_) != 0)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: cannot be written: {}", file_.string(), std::strerror(errno)));
}

}  // namespace moba::lm
