#include "lm/checkpoint/pretrained.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <system_error>
#include <utility>
#include <vector>

#include "lm/checkpoint/weights.h"
#include "lm/util/fail.h"
#include "lm/util/files.h"
#include "lm/util/json_object.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

/// At most a few names, so that a checkpoint of another model does not make a message of ten thousand.
std::string some_of(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 4;
  const std::vector<std::string> first(names.begin(),
                                       names.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, names.size())));
  const std::string rest = names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "";
  return fmt::format("{}{}", fmt::join(first, ", "), rest);
}

/// Tensors that other programs write and that carry nothing of their own: RoPE frequencies of old checkpoints, and a
/// head beside tied embeddings (which must then be the embedding; checked when it is read).
bool is_redundant(const std::string& name, const ModelConfig& config) {
  constexpr std::string_view kFrequencies = ".rotary_emb.inv_freq";
  const bool frequencies = name.size() > kFrequencies.size() &&
                           name.compare(name.size() - kFrequencies.size(), kFrequencies.size(), kFrequencies) == 0;
  return frequencies || (config.tie_word_embeddings && name == "lm_head.weight");
}

void check_names_and_shapes(const fs::path& directory, const Model& model, const WeightFiles& files) {
  std::vector<std::string> missing, unexpected;
  const auto parameters = model->named_parameters();
  for (const auto& item : parameters) {
    const auto found = files.entries().find(item.key());
    if (found == files.entries().end()) {
      missing.push_back(item.key());
      continue;
    }
    const TensorEntry& entry = found->second;
    if (item.value().sizes() != at::IntArrayRef(entry.shape)) {
      fail(directory, fmt::format("tensor {} has shape [{}]; config.json asks for [{}]", item.key(),
                                  fmt::join(entry.shape, ", "), fmt::join(item.value().sizes(), ", ")));
    }
    if (!at::isFloatingType(entry.dtype)) {
      fail(directory, fmt::format("tensor {} has dtype {}; a weight must be F64, F32, F16 or BF16", item.key(),
                                  c10::toString(entry.dtype)));
    }
  }
  for (const auto& item : files.entries()) {
    if (!parameters.contains(item.first) && !is_redundant(item.first, model->config()))
      unexpected.push_back(item.first);
  }
  if (!missing.empty()) fail(directory, "tensors that config.json asks for are missing: " + some_of(missing));
  if (!unexpected.empty()) fail(directory, "tensors that this model does not have: " + some_of(unexpected));
}

Model load_model(const fs::path& directory, const ModelConfig& config, torch::Device device, torch::Dtype dtype) {
  const WeightFiles files(directory);
  Model model(config);
  check_names_and_shapes(directory, model, files);
  if (config.tie_word_embeddings && files.entries().count("lm_head.weight") > 0 &&
      !torch::equal(files.read("lm_head.weight"), files.read("model.embed_tokens.weight"))) {
    fail(directory,
         "lm_head.weight differs from model.embed_tokens.weight, but config.json says tie_word_embeddings=true");
  }
  const torch::NoGradGuard no_gradients;
  for (auto& item : model->named_parameters()) item.value().set_data(files.read(item.key()).to(device, dtype));
  return model;
}

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& directory, const ModelConfig& config) {
  if (config.tokenizer == "bytes") return make_byte_tokenizer();
  const fs::path file = directory / "tokenizer.model";
  std::unique_ptr<Tokenizer> tokenizer = load_sentencepiece(file);
  if (tokenizer->vocab_size() > config.vocab_size) {
    fail(file,
         fmt::format("has {} pieces, but config.json says vocab_size={}", tokenizer->vocab_size(), config.vocab_size));
  }
  return tokenizer;
}

}  // namespace

ModelConfig load_config(const fs::path& directory) {
  std::error_code error;
  if (!fs::exists(directory, error)) fail(directory, "there is no such directory");
  if (!fs::is_directory(directory, error)) fail(directory, "is not a directory; name the directory of a model");
  const fs::path file = directory / "config.json";
  return parse_model_config(parse_json(read_file(file), file.string()), file.string());
}

Pretrained load_pretrained(const fs::path& directory, torch::Device device, torch::Dtype dtype) {
  Pretrained result;
  result.config = load_config(directory);
  result.tokenizer = load_tokenizer(directory, result.config);
  result.model = load_model(directory, result.config, device, dtype);
  return result;
}

void save_pretrained(const fs::path& directory, const Model& model, const ModelConfig& config, torch::Dtype dtype,
                     std::int64_t max_shard_bytes) {
  const fs::path config_file = directory / "config.json";
  check_output_path(config_file);  // makes the directory
  NamedTensors tensors;
  for (const auto& item : model->named_parameters()) tensors[item.key()] = item.value().detach().to(torch::kCPU, dtype);
  json content = to_json(config);
  // "dtype" for transformers 5, "torch_dtype" for what came before.
  const char* dtype_name = dtype == torch::kBFloat16  ? "bfloat16"
                           : dtype == torch::kFloat16 ? "float16"
                           : dtype == torch::kFloat64 ? "float64"
                                                      : "float32";
  content["dtype"] = dtype_name;
  content["torch_dtype"] = dtype_name;
  write_weight_files(directory, tensors, max_shard_bytes);
  write_file_atomically(config_file, content.dump(2) + "\n");
}

torch::Dtype preferred_dtype(torch::Device device) {
  if (device.is_cuda()) return torch::kBFloat16;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bf16")) return torch::kBFloat16;
#endif
  return torch::kFloat32;
}

}  // namespace moba::lm
