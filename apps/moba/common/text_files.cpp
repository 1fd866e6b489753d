#include "common/text_files.h"

#include <fmt/format.h>

#include "lm/util/files.h"
#include "lm/util/utf8.h"
#include "moba/error.h"

namespace moba::app {

void check_encoding(const std::string& text, const std::string& source, const lm::ModelConfig& config) {
  if (config.tokenizer == "bytes") return;
  if (const std::size_t bad = lm::find_invalid_utf8(text); bad != std::string::npos) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: invalid UTF-8 at byte {}; the model's tokenizer takes UTF-8 text only", source, bad));
  }
}

std::vector<std::string> read_texts(const std::vector<std::string>& files, const lm::ModelConfig& config) {
  std::vector<std::string> texts;
  for (const std::string& file : files) {
    std::string text = lm::read_file(file);
    if (text.empty()) throw Error(ErrorCode::kInvalidArgument, file + ": is empty; give a file with text");
    check_encoding(text, file, config);
    texts.push_back(std::move(text));
  }
  return texts;
}

}  // namespace moba::app
