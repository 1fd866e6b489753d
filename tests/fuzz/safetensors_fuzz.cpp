// The header of a safetensors file. The first byte says how: 0, the rest is the file; else the rest is the JSON header,
// whose length is put before it and one less than that many bytes of data behind it.
#include <cstring>
#include <limits>

#include "fuzz/fuzz.h"
#include "lm/checkpoint/safetensors_header.h"

namespace {

std::string file_with_header(std::string_view header, std::size_t data_bytes) {
  std::string file(moba::lm::kHeaderLengthBytes, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, sizeof length);
  return file.append(header).append(data_bytes, '\0');
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moba;
  if (size == 0) return 0;
  const std::string_view rest = fuzz::text_of(data + 1, size - 1);
  const std::string file = data[0] == 0 ? std::string(rest) : file_with_header(rest, data[0] - 1u);
  fuzz::allow_error([&] {
    const lm::SafetensorsHeader header = lm::parse_safetensors_header(file, "fuzz.safetensors");
    fuzz::check(header.data_begin <= file.size());
    std::uint64_t covered = 0;
    for (const auto& [name, entry] : header.entries) {
      fuzz::check(entry.begin <= entry.end && entry.end <= file.size() - header.data_begin);
      covered += entry.end - entry.begin;
      std::int64_t elements = 1;  // cannot overflow, zeros or not: a tensor of this shape can be made
      for (const std::int64_t extent : entry.shape) {
        fuzz::check(extent >= 0 && extent <= std::numeric_limits<std::int64_t>::max() / elements);
        if (extent > 0) elements *= extent;
      }
    }
    fuzz::check(covered == file.size() - header.data_begin);
  });
  return 0;
}
