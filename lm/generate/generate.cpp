#include "lm/generate/generate.h"

#include <fmt/format.h>

#include <algorithm>

#include "lm/generate/sampler.h"
#include "lm/generate/text_stream.h"
#include "moba/error.h"

namespace moba::lm {

using torch::Tensor;

namespace {

/// Tokens as int64 [n] on the model's device.
Tensor on_device(Model& model, const std::int64_t* tokens, std::int64_t count) {
  const Tensor host = torch::tensor(at::ArrayRef<std::int64_t>(tokens, static_cast<std::size_t>(count)), torch::kInt64);
  return host.to(model->parameters().front().device());
}

void check_room(const DecodeState& state, std::int64_t count, const char* what) {
  if (count > state.capacity() - state.length()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}={} tokens do not fit: the state holds {} of at most {}; make a larger DecodeState",
                            what, count, state.length(), state.capacity()));
  }
}

}  // namespace

Tensor prefill(Model& model, const AttentionPlan& plan, DecodeState& state, const std::vector<std::int64_t>& tokens,
               std::int64_t chunk, const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const auto total = static_cast<std::int64_t>(tokens.size());
  if (total == 0) throw Error(ErrorCode::kInvalidArgument, "tokens: the prompt has none; a model needs at least one");
  if (chunk < 1) throw Error(ErrorCode::kInvalidArgument, fmt::format("chunk={} must be at least 1", chunk));
  check_room(state, total, "prompt");
  Tensor logits;
  for (std::int64_t begin = 0; begin < total; begin += chunk) {
    const std::int64_t count = std::min(chunk, total - begin);
    const bool is_last = begin + count == total;
    logits = model->forward_cached(on_device(model, tokens.data() + begin, count), plan, state, is_last ? 1 : 0);
    if (progress) progress(begin + count, total);
  }
  return logits.squeeze(0);
}

std::vector<std::int64_t> generate(Model& model, const AttentionPlan& decode_plan, DecodeState& state,
                                   const Tokenizer& tokenizer, Tensor logits, const SamplingOptions& options,
                                   const std::function<void(std::string_view)>& emit) {
  Sampler sampler(options);
  check_room(state, options.max_new_tokens - 1, "max_new_tokens - 1");
  TextStream text(options.stop, emit);
  // A text that begins here (nothing but BOS was read) begins without the space that SentencePiece puts before a word.
  bool text_begins = !tokenizer.prompt_prefix().empty() &&
                     state.length() == static_cast<std::int64_t>(tokenizer.prompt_prefix().size());
  std::vector<std::int64_t> tokens;
  while (static_cast<std::int64_t>(tokens.size()) < options.max_new_tokens) {
    if (!tokens.empty()) {
      logits = model->forward_cached(on_device(model, &tokens.back(), 1), decode_plan, state, 1).squeeze(0);
    }
    const std::int64_t token = sampler.choose(logits.narrow(0, 0, std::min(tokenizer.vocab_size(), logits.size(0))));
    if (token == tokenizer.end_token()) break;
    tokens.push_back(token);
    const std::string piece = text_begins ? tokenizer.decode({token}) : tokenizer.decode_piece(token);
    text_begins = text_begins && piece.empty();
    if (text.add(piece)) return tokens;
  }
  text.finish();
  return tokens;
}

}  // namespace moba::lm
