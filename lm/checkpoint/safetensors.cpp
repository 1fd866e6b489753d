#include "lm/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "lm/util/fail.h"
#include "lm/util/files.h"
#include "lm/util/json_object.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

static_assert(std::endian::native == std::endian::little,
              "safetensors is little-endian, and tensors are copied as bytes");

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation

constexpr std::array<std::pair<const char*, torch::Dtype>, 10> kDtypes = {{
    {"F64", torch::kFloat64},
    {"F32", torch::kFloat32},
    {"F16", torch::kFloat16},
    {"BF16", torch::kBFloat16},
    {"I64", torch::kInt64},
    {"I32", torch::kInt32},
    {"I16", torch::kInt16},
    {"I8", torch::kInt8},
    {"U8", torch::kUInt8},
    {"BOOL", torch::kBool},
}};

torch::Dtype parse_dtype(const JsonObject& entry) {
  const std::string name = entry.string_or("dtype", "");
  for (const auto& [known, dtype] : kDtypes) {
    if (name == known) return dtype;
  }
  entry.fail("dtype", "is not supported; supported: F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL");
}

std::string dtype_name(torch::Dtype dtype, const std::string& tensor) {
  for (const auto& [name, known] : kDtypes) {
    if (dtype == known) return name;
  }
  fail(tensor, fmt::format("dtype {} cannot be written to safetensors", c10::toString(dtype)));
}

std::uint64_t unsigned_number(const JsonObject& entry, const std::string& key, const json& value) {
  if (!value.is_number_unsigned()) entry.fail(key, "must hold integers that are not negative");
  return value.get<std::uint64_t>();
}

/// Shape and range of one tensor, checked against each other and against the `available` bytes after the header.
TensorEntry parse_entry(const JsonObject& entry, std::uint64_t available) {
  entry.only({"dtype", "shape", "data_offsets"});
  TensorEntry result;
  result.dtype = parse_dtype(entry);

  const json& shape = entry.at("shape");
  if (!shape.is_array()) entry.fail("shape", "must be a list of integers");
  std::uint64_t bytes = c10::elementSize(result.dtype);
  for (const json& extent : shape) {
    const std::uint64_t value = unsigned_number(entry, "shape", extent);
    constexpr auto kMaxExtent = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (value > kMaxExtent || (value != 0 && bytes > kMaxExtent / value)) {
      entry.fail("shape", "has more bytes than 64 bits can count");
    }
    bytes *= value;
    result.shape.push_back(static_cast<std::int64_t>(value));
  }

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
void check_coverage(const std::map<std::string, TensorEntry>& entries, std::uint64_t available,
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

struct SafetensorsFile::Mapping {
  explicit Mapping(const fs::path& file) : bytes(file), name(file.string()) {}
  MappedFile bytes;
  std::string name;
  std::uint64_t data_begin = 0;
};

SafetensorsFile::SafetensorsFile(const fs::path& file) : mapping_(std::make_unique<Mapping>(file)) {
  const std::string& name = mapping_->name;
  const std::uint64_t size = mapping_->bytes.size();
  if (size < kLengthBytes)
    fail(name, fmt::format("is cut short: {} bytes, and a safetensors file begins with 8 bytes of length", size));
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping_->bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes) {
    fail(name, fmt::format("says that its header has {} bytes; at most {} are accepted (is it a safetensors file?)",
                           header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > size - kLengthBytes) {
    fail(name, fmt::format("is cut short: its header has {} bytes, the file {}", header_bytes, size));
  }
  mapping_->data_begin = kLengthBytes + header_bytes;
  const std::uint64_t available = size - mapping_->data_begin;

  const std::string_view text(reinterpret_cast<const char*>(mapping_->bytes.data()) + kLengthBytes, header_bytes);
  const json header = parse_json(text, name + ": header");
  const JsonObject root(header, name + ": header");
  for (const auto& item : header.items()) {
    if (item.key() == "__metadata__") {
      const JsonObject metadata = root.object(item.key());
      for (const auto& pair : item.value().items()) metadata_[pair.key()] = metadata.string_or(pair.key(), "");
    } else {
      entries_[item.key()] =
          parse_entry(JsonObject(item.value(), fmt::format("{}: tensor {}", name, item.key())), available);
    }
  }
  check_coverage(entries_, available, name);
}

SafetensorsFile::~SafetensorsFile() = default;

Tensor SafetensorsFile::read(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail(mapping_->name, fmt::format("has no tensor {}", name));
  const TensorEntry& entry = found->second;
  Tensor tensor = torch::empty(entry.shape, entry.dtype);
  if (entry.end > entry.begin) {
    std::memcpy(tensor.data_ptr(), mapping_->bytes.data() + mapping_->data_begin + entry.begin,
                entry.end - entry.begin);
  }
  return tensor;
}

NamedTensors read_safetensors(const fs::path& file) {
  const SafetensorsFile source(file);
  NamedTensors tensors;
  for (const auto& item : source.entries()) tensors[item.first] = source.read(item.first);
  return tensors;
}

void write_safetensors(const fs::path& file, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Widest elements first, as the reference implementation does: then every tensor is aligned to its element.
  std::vector<std::pair<std::string, Tensor>> order(tensors.begin(), tensors.end());
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.second.element_size() > b.second.element_size(); });

  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : order) {
    if (name == "__metadata__") fail(file.string(), "a tensor cannot be called __metadata__");
    const std::uint64_t end = offset + static_cast<std::uint64_t>(tensor.numel() * tensor.element_size());
    header[name] = {{"dtype", dtype_name(tensor.scalar_type(), name)},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');  // so that the data begins aligned
  const std::uint64_t header_bytes = text.size();

  AtomicFile out(file);
  out.write(&header_bytes, kLengthBytes);
  out.write(text);
  for (const auto& item : order) {
    const Tensor bytes = item.second.detach().cpu().contiguous();
    out.write(bytes.data_ptr(), bytes.nbytes());
  }
  out.commit();
}

}  // namespace moba::lm
