#include "lm/train/resume_index.h"

#include <fmt/core.h>

#include <charconv>
#include <limits>

#include "lm/util/fail.h"
#include "lm/util/json_object.h"

namespace moba::lm {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostParts = 9999;  // file names have four digits
constexpr std::int64_t kMostElements = std::numeric_limits<std::int64_t>::max() / 16;

/// The shape of one tensor, which takes its elements, axes of 0 counted as 1, out of `left`.
std::vector<std::int64_t> parse_shape(const JsonObject& entry, std::int64_t& left) {
  const json& list = entry.at("shape");
  if (!list.is_array()) entry.fail("shape", "must be a list of integers");
  std::vector<std::int64_t> shape;
  std::int64_t elements = 1;
  for (const json& extent : list) {
    if (!extent.is_number_unsigned()) entry.fail("shape", "must hold integers that are not negative");
    const std::uint64_t value = extent.get<std::uint64_t>();
    if (value > static_cast<std::uint64_t>(left / elements))
      entry.fail("shape", "has more elements than can be counted");
    shape.push_back(static_cast<std::int64_t>(value));
    if (value > 0) elements *= shape.back();
  }
  left -= elements;
  return shape;
}

}  // namespace

ResumeIndex parse_resume_index(std::string_view text, const std::string& where) {
  const json root = parse_json(text, where);
  const JsonObject index(root, where);
  ResumeIndex result;
  result.position = parse_position(index.at("position"), where + ": position");
  result.parts = index.integer("parts", 1, kMostParts);
  std::int64_t left = kMostElements;
  const JsonObject tensors = index.object("tensors");
  for (const auto& [name, entry] : index.at("tensors").items()) {
    result.shapes[name] = parse_shape(JsonObject(entry, fmt::format("{}: tensors.{}", where, name)), left);
  }
  return result;
}

ResumePiece parse_piece_name(const std::string& piece, const std::string& where) {
  const std::size_t at = piece.rfind('@');
  ResumePiece result{piece.substr(0, at), -1};
  if (at != std::string::npos) {
    const char* const end = piece.data() + piece.size();
    const auto [stop, code] = std::from_chars(piece.data() + at + 1, end, result.offset);
    if (code != std::errc{} || stop != end) result.offset = -1;
  }
  if (result.offset < 0) {
    fail(where, fmt::format("tensor '{}': its name must end in @ and the number of its first element", piece));
  }
  return result;
}

}  // namespace moba::lm
