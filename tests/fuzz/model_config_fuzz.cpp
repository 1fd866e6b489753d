// config.json of a model: text -> JSON -> ModelConfig -> JSON -> the same ModelConfig.
#include <nlohmann/json.hpp>

#include "fuzz/fuzz.h"
#include "lm/model/config.h"
#include "lm/util/json_object.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moba;
  fuzz::allow_error([&] {
    const nlohmann::json json = lm::parse_json(fuzz::text_of(data, size), "config.json");
    const lm::ModelConfig config = lm::parse_model_config(json, "config.json");
    fuzz::check(config.parameter_count() > 0);
    const nlohmann::json written = lm::to_json(config);
    try {
      fuzz::check(lm::to_json(lm::parse_model_config(written, "written")) == written);
    } catch (const Error&) {
      fuzz::check(false);  // what is written can be read
    }
  });
  return 0;
}
