// dump_logits MODEL_DIR INPUT.safetensors OUTPUT.safetensors
// Input: tokens int64 [T], cu_seqlens int32 [S + 1]. Output: "packed", the logits of one packed forward; "cached",
// those of each sequence read in chunks of 7 tokens into a DecodeState; both float32 [T, vocab], weights in float32.
// The model is also saved again in parts to OUTPUT + ".saved", for transformers to read back.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>

#include "lm/checkpoint/pretrained.h"
#include "lm/checkpoint/safetensors.h"

namespace {

using namespace moba::lm;

torch::Tensor cached_logits(Pretrained& pretrained, const torch::Tensor& tokens, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kChunk = 7;
  DecodeState state(pretrained.config, {}, end - begin, torch::kFloat32);
  std::vector<torch::Tensor> rows;
  for (std::int64_t at = begin; at < end; at += kChunk) {
    const std::int64_t count = std::min(kChunk, end - at);
    rows.push_back(pretrained.model->forward_cached(tokens.narrow(0, at, count), {}, state, count));
  }
  return torch::cat(rows);
}

void run(const std::string& directory, const std::string& input, const std::string& output) {
  const NamedTensors in = read_safetensors(input);
  const torch::Tensor tokens = in.at("tokens"), offsets = in.at("cu_seqlens");
  Pretrained pretrained = load_pretrained(directory, torch::kCPU, torch::kFloat32);
  const torch::NoGradGuard no_gradients;
  const torch::Tensor packed = pretrained.model->forward({tokens, offsets, tokens.size(0)}, {});
  std::vector<torch::Tensor> cached;
  for (std::int64_t i = 0; i + 1 < offsets.size(0); ++i) {
    const auto begin = offsets[i].item<std::int64_t>(), end = offsets[i + 1].item<std::int64_t>();
    if (end > begin) cached.push_back(cached_logits(pretrained, tokens, begin, end));
  }
  write_safetensors(output, {{"packed", packed}, {"cached", torch::cat(cached)}});
  constexpr std::int64_t kSmallParts = 20'000;
  save_pretrained(output + ".saved", pretrained.model, pretrained.config, torch::kFloat32, kSmallParts);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fprintf(stderr, "usage: dump_logits MODEL_DIR INPUT.safetensors OUTPUT.safetensors\n");
    return 2;
  }
  try {
    run(arguments[1], arguments[2], arguments[3]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dump_logits: %s\n", error.what());
    return 1;
  }
}
