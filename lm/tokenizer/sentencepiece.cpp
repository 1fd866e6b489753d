#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <exception>

#include "lm/tokenizer/tokenizer.h"
#include "lm/util/files.h"
#include "lm/util/utf8.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, SentencePiece's visible space
constexpr std::string_view kUnknown = " \xE2\x81\x87 ";  // how the library itself writes the unknown piece

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::filesystem::path& file) {
    const std::string content = read_file(file);
    if (content.empty()) fail(file, "the file is empty");
    try {
      const auto status = processor_.LoadFromSerializedProto(content);
      if (!status.ok()) fail(file, status.ToString());
    } catch (const std::exception& error) {
      fail(file, error.what());
    }
    if (processor_.GetPieceSize() < 1) fail(file, "it holds no pieces");
  }

  std::int64_t vocab_size() const override { return processor_.GetPieceSize(); }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    const std::size_t bad = find_invalid_utf8(text);
    if (bad != std::string_view::npos) {
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format("the text is not valid UTF-8: byte 0x{:02X} at offset {}; a SentencePiece model reads UTF-8 "
                      "only (convert the text, or use a byte-level model)",
                      static_cast<std::uint8_t>(text[bad]), bad));
    }
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) throw Error(ErrorCode::kInvalidArgument, "SentencePiece cannot encode: " + status.ToString());
    return {ids.begin(), ids.end()};
  }

  std::string decode(const std::vector<std::int64_t>& tokens) const override {
    std::string text;
    for (const std::int64_t token : tokens) text += decode_piece(token);
    const bool begins_with_word = !tokens.empty() && !text.empty() && text[0] == ' ';
    return begins_with_word ? text.substr(1) : text;
  }

  std::string decode_piece(std::int64_t token) const override {
    if (token < 0 || token >= vocab_size()) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("token={} is outside the tokenizer's vocabulary, 0 to {}", token, vocab_size() - 1));
    }
    const int id = static_cast<int>(token);
    if (processor_.IsControl(id) || processor_.IsUnused(id)) return {};
    if (processor_.IsUnknown(id)) return std::string(kUnknown);
    const std::string& piece = processor_.IdToPiece(id);
    if (processor_.IsByte(id)) {  // "<0x0A>"
      return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
    }
    std::string text;
    for (std::size_t begin = 0; begin < piece.size();) {
      if (piece.compare(begin, kSpaceMark.size(), kSpaceMark) == 0) {
        text += ' ';
        begin += kSpaceMark.size();
      } else {
        text += piece[begin++];
      }
    }
    return text;
  }

  std::vector<std::int64_t> empty_prompt() const override {
    if (processor_.bos_id() < 0) {
      throw Error(ErrorCode::kInvalidArgument,
                  "the prompt is empty, and this tokenizer has no BOS token to begin with; give a prompt");
    }
    return {processor_.bos_id()};
  }

  std::vector<std::int64_t> prompt_prefix() const override {
    return processor_.bos_id() < 0 ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{processor_.bos_id()};
  }

  std::int64_t end_token() const override { return processor_.eos_id(); }

 private:
  [[noreturn]] static void fail(const std::filesystem::path& file, const std::string& problem) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} is not a usable SentencePiece model: {}", file.string(), problem));
  }

  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file) {
  return std::make_unique<SentencePieceTokenizer>(file);
}

}  // namespace moba::lm
