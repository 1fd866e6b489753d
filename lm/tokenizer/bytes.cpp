#include <fmt/format.h>

#include "lm/tokenizer/tokenizer.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

constexpr std::int64_t kBytes = 256;

class ByteTokenizer final : public Tokenizer {
 public:
  std::int64_t vocab_size() const override { return kBytes; }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    std::vector<std::int64_t> tokens(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) tokens[i] = static_cast<std::uint8_t>(text[i]);
    return tokens;
  }

  std::string decode(const std::vector<std::int64_t>& tokens) const override {
    std::string text;
    text.reserve(tokens.size());
    for (const std::int64_t token : tokens) text += decode_piece(token);
    return text;
  }

  std::string decode_piece(std::int64_t token) const override {
    if (token < 0 || token >= kBytes) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("token={} is not a byte (0 to 255)", token));
    }
    return std::string(1, static_cast<char>(static_cast<std::uint8_t>(token)));
  }

  std::vector<std::int64_t> empty_prompt() const override { return {'\n'}; }
  std::vector<std::int64_t> prompt_prefix() const override { return {}; }
  std::int64_t end_token() const override { return -1; }
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer() {
  return std::make_unique<ByteTokenizer>();
}

std::vector<std::int64_t> encode_prompt(const Tokenizer& tokenizer, std::string_view text) {
  if (text.empty()) return tokenizer.empty_prompt();
  std::vector<std::int64_t> tokens = tokenizer.prompt_prefix();
  const std::vector<std::int64_t> body = tokenizer.encode(text);
  tokens.insert(tokens.end(), body.begin(), body.end());
  return tokens;
}

}  // namespace moba::lm
