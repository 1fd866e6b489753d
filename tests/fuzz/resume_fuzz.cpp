// What a run is resumed from: resume.json (in which stands what state.json is), names of pieces.
#include "fuzz/fuzz.h"
#include "lm/train/resume_index.h"
#include "lm/util/json_object.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moba;
  const std::string text(fuzz::text_of(data, size));
  fuzz::allow_error([&] {
    const lm::ResumePiece piece = lm::parse_piece_name(text, "resume-0001.safetensors");
    fuzz::check(piece.offset >= 0 && text.substr(0, piece.tensor.size()) == piece.tensor);
  });
  fuzz::allow_error([&] {
    const lm::TrainPosition position = lm::parse_position(lm::parse_json(text, "state.json"), "state.json");
    const nlohmann::json written = lm::to_json(position);
    fuzz::check(lm::to_json(lm::parse_position(written, "written")) == written);
  });
  fuzz::allow_error([&] {
    const lm::ResumeIndex index = lm::parse_resume_index(text, "resume.json");
    fuzz::check(index.parts >= 1 && index.position.step >= 0);
    for (const auto& [name, shape] : index.shapes) {
      for (const std::int64_t extent : shape) fuzz::check(extent >= 0);
    }
  });
  return 0;
}
