// Text files: UTF-8 checks, whole-file and mapped reading, the words and names found in a text.
#include <algorithm>
#include <cstring>
#include <span>

#include "fuzz/fuzz.h"
#include "fuzz/temporary_file.h"
#include "lm/data/lexicon.h"
#include "lm/util/files.h"
#include "lm/util/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moba;
  const std::string_view text = fuzz::text_of(data, size);
  const std::size_t bad = lm::find_invalid_utf8(text);
  if (bad != std::string_view::npos) {
    fuzz::check(bad < size);
    fuzz::check(lm::find_invalid_utf8(text.substr(0, bad)) == std::string_view::npos);
  }
  const std::size_t tail = lm::incomplete_utf8_tail(text);
  fuzz::check(tail <= std::min<std::size_t>(3, size));
  if (tail > 0) fuzz::check(bad != std::string_view::npos);

  const fuzz::TemporaryFile file(text);
  fuzz::check(lm::read_file(file.path()) == text);
  const lm::MappedFile mapped(file.path());
  fuzz::check(mapped.size() == size && (size == 0 || std::memcmp(mapped.data(), data, size) == 0));

  const lm::Lexicon lexicon = lm::build_lexicon({data, size});
  fuzz::check(std::is_sorted(lexicon.words.begin(), lexicon.words.end()));
  fuzz::check(std::is_sorted(lexicon.names.begin(), lexicon.names.end()));
  return 0;
}
