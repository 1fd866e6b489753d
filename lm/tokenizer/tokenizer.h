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
  /// The bytes of these tokens as a text of their own: decode(encode(text)) == text up to the tokenizer's
  /// normalisation.
  virtual std::string decode(const std::vector<std::int64_t>& tokens) const = 0;
  /// The bytes that one token adds inside a text, where anything stands before it. Concatenation is exact; a character
  /// may be spread over tokens. (SentencePiece writes a space before the first word of a text, which `decode` drops.)
  virtual std::string decode_piece(std::int64_t token) const = 0;
  /// What a model reads when the prompt is empty: a newline for bytes, BOS for SentencePiece. Error when a
  /// SentencePiece model has no BOS.
  virtual std::vector<std::int64_t> empty_prompt() const = 0;
  /// Prefixed to a prompt: BOS for SentencePiece (where the model has it), nothing for bytes.
  virtual std::vector<std::int64_t> prompt_prefix() const = 0;
  /// Ends a generation when produced, or -1.
  virtual std::int64_t end_token() const = 0;
};

/// Token i is the byte i.
std::unique_ptr<Tokenizer> make_byte_tokenizer();
/// Reads a SentencePiece tokenizer.model; Error names the file and what is wrong with it.
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file);

/// What a model reads for a prompt: prefix and tokens, or `empty_prompt` for an empty text.
std::vector<std::int64_t> encode_prompt(const Tokenizer& tokenizer, std::string_view text);

}  // namespace moba::lm
