// tokenizer.model of SentencePiece and texts for it: one byte, that many bytes of text, the file.
#include <algorithm>

#include "fuzz/fuzz.h"
#include "fuzz/temporary_file.h"
#include "lm/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moba;
  if (size == 0) return 0;
  const std::size_t length = std::min<std::size_t>(data[0], size - 1);
  const std::string_view text = fuzz::text_of(data + 1, length);
  const fuzz::TemporaryFile file(fuzz::text_of(data + 1 + length, size - 1 - length));
  fuzz::allow_error([&] {
    const auto tokenizer = lm::load_sentencepiece(file.path());
    fuzz::allow_error([&] { (void)lm::encode_prompt(*tokenizer, text); });
    fuzz::allow_error([&] {
      const std::vector<std::int64_t> tokens = tokenizer->encode(text);
      for (std::int64_t token : tokens) fuzz::check(token >= 0 && token < tokenizer->vocab_size());
      (void)tokenizer->decode(tokens);
    });
    for (std::int64_t token = -1; token <= std::min<std::int64_t>(tokenizer->vocab_size(), 500); ++token) {
      fuzz::allow_error([&] { (void)tokenizer->decode_piece(token); });
    }
  });
  return 0;
}
