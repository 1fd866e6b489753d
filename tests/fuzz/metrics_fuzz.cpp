// metrics.jsonl: what is kept are whole lines of the file, and reading them again keeps them all.
#include "fuzz/fuzz.h"
#include "lm/train/metrics_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moba;
  const std::string_view text = fuzz::text_of(data, size);
  const std::string kept = lm::records_up_to(text, 1000);
  fuzz::check(kept.size() <= size && (kept.empty() || kept.back() == '\n'));
  fuzz::check(lm::records_up_to(kept, 1000) == kept);
  return 0;
}
