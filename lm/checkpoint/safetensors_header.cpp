#include "lm/checkpoint/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "lm/util/fail.h"
#include "lm/util/json_object.h"

namespace moba::lm {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian, and its length is copied");

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation

constexpr std::array<std::pair<const char*, std::uint64_t>, 10> kElementSizes = {{
    {"F64", 8},
    {"F32", 4},
    {"F16", 2},
    {"BF16", 2},
    {"I64", 8},
    {"I32", 4},
    {"I16", 2},
    {"I8", 1},
    {"U8", 1},
    {"BOOL", 1},
}};

std::uint64_t element_size(const JsonObject& entry, const std::string& dtype) {
  for (const auto& [known, bytes] : kElementSizes) {
    if (dtype == known) return bytes;
  }
  entry.fail("dtype", "is not supported; supported: F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL");
}

std::uint64_t unsigned_number(const JsonObject& entry, const std::string& key, const json& value) {
  if (!value.is_number_unsigned()) entry.fail(key, "must hold integers that are not negative");
  return value.get<std::uint64_t>();
}

/// Shape and range of one tensor, checked against each other and against the `available` bytes after the header.
HeaderEntry parse_entry(const JsonObject& entry, std::uint64_t available) {
  entry.only({"dtype", "shape", "data_offsets"});
  HeaderEntry result;
  result.dtype = entry.string_or("dtype", "");
  std::uint64_t bytes = element_size(entry, result.dtype);

  const json& shape = entry.at("shape");
  if (!shape.is_array()) entry.fail("shape", "must be a list of integers");
  bool empty = false;
  for (const json& extent : shape) {
    const std::uint64_t value = unsigned_number(entry, "shape", extent);
    constexpr auto kMaxBytes = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    // Axes of 0 count as 1: strides of a tensor without elements must not overflow either.
    if (value > kMaxBytes || (value != 0 && bytes > kMaxBytes / value)) {
      entry.fail("shape", "has more bytes than 64 bits can count");
    }
    if (value != 0) bytes *= value;
    empty = empty || value == 0;
    result.shape.push_back(static_cast<std::int64_t>(value));
  }
  if (empty) bytes = 0;

  const json& offsets = entry.at("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2) entry.fail("data_offsets", "must be [begin, end]");
  result.begin = unsigned_number(entry, "data_offsets", offsets[0]);
  result.end = unsigned_number(entry, "data_offsets", offsets[1]);
  if (result.begin > result.end || result.end > available) {
    entry.fail("data_offsets", fmt::format("must lie within the {} bytes of data in the file", available));
  }
  if (result.end - result.begin != bytes) {
    entry.fail("data_offsets",
               fmt::format("spans {} bytes, but shape and dtype need {}", result.end - result.begin, bytes));
  }
  return result;
}

/// Every byte of data belongs to exactly one tensor.
void check_coverage(const std::map<std::string, HeaderEntry>& entries, std::uint64_t available,
                    const std::string& file) {
  std::vector<std::tuple<std::uint64_t, std::uint64_t, std::string>> ranges;
  for (const auto& [name, entry] : entries) ranges.emplace_back(entry.begin, entry.end, name);
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t covered = 0;
  for (const auto& [begin, end, name] : ranges) {
    if (begin < covered)
      fail(file, fmt::format("tensor {} at bytes {} to {} overlaps the one before it", name, begin, end));
    if (begin > covered)
      fail(file, fmt::format("bytes {} to {} before tensor {} belong to no tensor", covered, begin, name));
    covered = end;
  }
  if (covered != available)
    fail(file, fmt::format("{} bytes after the last tensor belong to no tensor", available - covered));
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view file, const std::string& source) {
  SafetensorsHeader result;
  const std::uint64_t size = file.size();
  if (size < kHeaderLengthBytes)
    fail(source, fmt::format("is cut short: {} bytes, and a safetensors file begins with 8 bytes of length", size));
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kHeaderLengthBytes);
  if (header_bytes > kMaxHeaderBytes) {
    fail(source, fmt::format("says that its header has {} bytes; at most {} are accepted (is it a safetensors file?)",
                             header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > size - kHeaderLengthBytes) {
    fail(source, fmt::format("is cut short: its header has {} bytes, the file {}", header_bytes, size));
  }
  result.data_begin = kHeaderLengthBytes + header_bytes;
  const std::uint64_t available = size - result.data_begin;

  const std::string_view text = file.substr(kHeaderLengthBytes, header_bytes);
  const json header = parse_json(text, source + ": header");
  const JsonObject root(header, source + ": header");
  for (const auto& item : header.items()) {
    if (item.key() == "__metadata__") {
      const JsonObject metadata = root.object(item.key());
      for (const auto& pair : item.value().items()) result.metadata[pair.key()] = metadata.string_or(pair.key(), "");
    } else {
      result.entries[item.key()] =
          parse_entry(JsonObject(item.value(), fmt::format("{}: tensor {}", source, item.key())), available);
    }
  }
  check_coverage(result.entries, available, source);
  return result;
}

}  // namespace moba::lm
