#include "lm/train/model_folder.h"

#include "lm/checkpoint/pretrained.h"
#include "lm/util/files.h"

namespace moba::lm {

void write_model_folder(const std::filesystem::path& folder, const Model& model, const ModelConfig& config,
                        torch::Dtype dtype, const nlohmann::json& schedule,
                        const std::optional<std::filesystem::path>& tokenizer_file) {
  std::error_code code;
  std::filesystem::remove_all(folder, code);
  try {
    save_pretrained(folder, model, config, dtype);
    nlohmann::json json = to_json(config);
    json["moba"]["schedule"] = schedule;
    write_file_atomically(folder / "config.json", json.dump(2) + "\n");
    if (tokenizer_file) write_file_atomically(folder / "tokenizer.model", read_file(*tokenizer_file));
  } catch (...) {
    std::filesystem::remove_all(folder, code);
    throw;
  }
}

}  // namespace moba::lm
