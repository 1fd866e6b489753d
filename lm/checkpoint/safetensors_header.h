// The header of a safetensors file: 8 bytes of length, then JSON. Read and checked without torch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace moba::lm {

inline constexpr std::uint64_t kHeaderLengthBytes = 8;

/// What the header says of one tensor.
struct HeaderEntry {
  std::string dtype;  // the format's name: F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // bytes, counted from the end of the header
};

struct SafetensorsHeader {
  std::map<std::string, HeaderEntry> entries;
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;  // bytes, counted from the beginning of the file
};

/// `file` holds a whole file. Checks length, JSON, dtypes, shapes, and that the tensors cover the data without overlap
/// or hole. Error names `source`, the tensor and the rule.
SafetensorsHeader parse_safetensors_header(std::string_view file, const std::string& source);

}  // namespace moba::lm
