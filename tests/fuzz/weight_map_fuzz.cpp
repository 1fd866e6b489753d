// model.safetensors.index.json: every part is a file name in the folder of the index.
#include <filesystem>

#include "fuzz/fuzz.h"
#include "lm/checkpoint/weight_map.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moba;
  fuzz::allow_error([&] {
    const std::filesystem::path folder = "/models/one";
    for (const auto& [name, part] : lm::parse_weight_map(fuzz::text_of(data, size), "index.json")) {
      const std::filesystem::path file = (folder / part).lexically_normal();
      fuzz::check(file.parent_path() == folder && file.has_filename());
    }
  });
  return 0;
}
