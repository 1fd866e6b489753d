#include "lm/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "lm/checkpoint/safetensors_header.h"
#include "lm/util/fail.h"
#include "lm/util/files.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

static_assert(std::endian::native == std::endian::little,
              "safetensors is little-endian, and tensors are copied as bytes");

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

torch::Dtype dtype_of(const HeaderEntry& entry) {
  return std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& known) { return entry.dtype == known.first; })
      ->second;  // the header holds no other name
}

std::string dtype_name(torch::Dtype dtype, const std::string& tensor) {
  for (const auto& [name, known] : kDtypes) {
    if (dtype == known) return name;
  }
  fail(tensor, fmt::format("dtype {} cannot be written to safetensors", c10::toString(dtype)));
}

}  // namespace

struct SafetensorsFile::Mapping {
  explicit Mapping(const fs::path& file) : bytes(file), name(file.string()) {}
  MappedFile bytes;
  std::string name;
  std::uint64_t data_begin = 0;
};

SafetensorsFile::SafetensorsFile(const fs::path& file) : mapping_(std::make_unique<Mapping>(file)) {
  const std::string_view bytes(reinterpret_cast<const char*>(mapping_->bytes.data()), mapping_->bytes.size());
  SafetensorsHeader header = parse_safetensors_header(bytes, mapping_->name);
  mapping_->data_begin = header.data_begin;
  metadata_ = std::move(header.metadata);
  for (auto& [name, entry] : header.entries) {
    entries_[name] = {dtype_of(entry), std::move(entry.shape), entry.begin, entry.end};
  }
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
  text.append((kHeaderLengthBytes - text.size() % kHeaderLengthBytes) % kHeaderLengthBytes,
              ' ');  // so that the data begins aligned
  const std::uint64_t header_bytes = text.size();

  AtomicFile out(file);
  out.write(&header_bytes, kHeaderLengthBytes);
  out.write(text);
  for (const auto& item : order) {
    const Tensor bytes = item.second.detach().cpu().contiguous();
    out.write(bytes.data_ptr(), bytes.nbytes());
  }
  out.commit();
}

}  // namespace moba::lm
