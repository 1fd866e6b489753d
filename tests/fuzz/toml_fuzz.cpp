// TOML training configs: text -> JSON -> typed structs, after an override from the command line (the first line).
#include "fuzz/fuzz.h"
#include "lm/config/toml.h"
#include "lm/config/train_config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moba;
  const std::string text(fuzz::text_of(data, size));
  const std::size_t line = std::min(text.find('\n'), text.size());
  fuzz::allow_error([&] {
    nlohmann::json root = lm::parse_toml(text.substr(std::min(line + 1, text.size())), "fuzz.toml");
    if (line > 0) lm::apply_override(root, text.substr(0, line));
    // init_from names a file of its own: that reader has its own program (model_config_fuzz).
    if (root.contains("model") && root["model"].is_object()) root["model"].erase("init_from");
    const lm::TrainConfig config = lm::parse_train_config(root, "fuzz.toml");
    (void)lm::schedule_to_json(config);
  });
  return 0;
}
