// Text to token ids and back: bytes, and SentencePiece.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moba::lm {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::int64_t vocab_size() const = 0;
  /// Error when the text is not what this tokenizer takes (invalid UTF-8 for SentencePiece); never adds BOS.
  virtual std::vector<std::int64_t> encode(std::string_view text) const = 0;
  /// The bytes of these tokens. Concatenating decodes of consecutive pieces may need `decode` of the whole.
  virtual std::string decode(const std::vector<std::int64_t>& tokens) const = 0;
  /// What a model reads when the prompt is empty: a newline for bytes, BOS for SentencePiece.
  virtual std::vector<std::int64_t> empty_prompt() const = 0;
  /// Prefixed to a prompt: BOS for SentencePiece, nothing for bytes.
  virtual std::vector<std::int64_t> prompt_prefix() const = 0;
  /// Ends a generation when produced, or -1.
  virtual std::int64_t end_token() const = 0;
};

std::unique_ptr<Tokenizer> make_byte_tokenizer();
/// Reads a SentencePiece tokenizer.model; Error names the file and what is wrong with it.
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file);

}  // namespace moba::lm
