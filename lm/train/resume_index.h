// resume.json, the index of resume files, and the names of the pieces in them. Read without torch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lm/train/position.h"

namespace moba::lm {

struct ResumeIndex {
  TrainPosition position;
  std::int64_t parts = 0;                                   // files resume-0001.safetensors …
  std::map<std::string, std::vector<std::int64_t>> shapes;  // of the tensors that the pieces fill
};

/// Error names `where` and the key. The elements of all tensors together can be counted in 64 bits.
ResumeIndex parse_resume_index(std::string_view text, const std::string& where);

/// A piece "NAME@OFFSET" holds the elements of tensor NAME from OFFSET on.
struct ResumePiece {
  std::string tensor;
  std::int64_t offset = 0;
};
/// Error names `where` and the piece.
ResumePiece parse_piece_name(const std::string& piece, const std::string& where);

}  // namespace moba::lm
