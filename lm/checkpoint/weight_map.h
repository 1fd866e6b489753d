// The index of weights in several files: which tensor is in which. Read without torch.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace moba::lm {

/// model.safetensors.index.json: tensor name -> name of a file beside the index. Error names `source`, the tensor and
/// the rule.
std::map<std::string, std::string> parse_weight_map(std::string_view text, const std::string& source);

}  // namespace moba::lm
