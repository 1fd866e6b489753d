// --text FILE…: reading text that a model is to be tried on.
#pragma once

#include <string>
#include <vector>

#include "lm/model/config.h"

namespace moba::app {

/// The contents of the files. Error naming the file that is missing, a directory, empty, or not UTF-8 where the model's
/// tokenizer asks for it.
std::vector<std::string> read_texts(const std::vector<std::string>& files, const lm::ModelConfig& config);

/// Error naming `source` and the first wrong byte when the model reads UTF-8 only and `text` is not.
void check_encoding(const std::string& text, const std::string& source, const lm::ModelConfig& config);

}  // namespace moba::app
