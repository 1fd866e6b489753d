#include "lm/checkpoint/safetensors.h"

#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "lm/util/files.h"
#include "model_support.h"

namespace moba::lm {
namespace {

using nlohmann::json;
using testing::expect_error;
using testing::TempFolder;

/// The bytes of a file with this header text and `data_bytes` zeros after it.
std::string file_bytes(const std::string& header, std::size_t data_bytes) {
  std::string bytes(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\0');
}

json entry(const std::string& dtype, const json& shape, std::uint64_t begin, std::uint64_t end) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, end}}};
}

/// Expects that reading these bytes fails with a message that names the file and every part.
void expect_broken(const std::string& bytes, std::vector<std::string> parts) {
  const TempFolder folder;
  testing::write_raw(folder / "broken.safetensors", bytes);
  parts.push_back((folder / "broken.safetensors").string());
  expect_error([&] { read_safetensors(folder / "broken.safetensors"); }, parts);
}

void expect_broken_header(const json& header, std::size_t data_bytes, const std::vector<std::string>& parts) {
  expect_broken(file_bytes(header.dump(), data_bytes), parts);
}

TEST(Safetensors, EveryDtypeRoundTrips) {
  const TempFolder folder;
  torch::manual_seed(0);
  NamedTensors tensors;
  for (const torch::Dtype dtype : {torch::kFloat64, torch::kFloat32, torch::kFloat16, torch::kBFloat16, torch::kInt64,
                                   torch::kInt32, torch::kInt16, torch::kInt8, torch::kUInt8, torch::kBool}) {
    tensors[std::string("t.") + c10::toString(dtype)] = (torch::randn({3, 5}) * 50).to(dtype);
  }
  tensors["scalar"] = torch::tensor(3.5);
  tensors["empty"] = torch::empty({0, 7});
  tensors["transposed"] = torch::randn({4, 6}).t();
  write_safetensors(folder / "t.safetensors", tensors, {{"format", "pt"}, {"who", "\"us\""}});
  const NamedTensors again = read_safetensors(folder / "t.safetensors");
  ASSERT_EQ(again.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(again.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(again.at(name), tensor)) << name;
  }
  const SafetensorsFile file(folder / "t.safetensors");
  EXPECT_EQ(file.metadata().at("who"), "\"us\"");
  for (const auto& [name, tensor] : file.entries()) {
    EXPECT_EQ(tensor.begin % c10::elementSize(tensor.dtype), 0u) << name << " is not aligned";
  }
  expect_error([&] { file.read("absent"); }, {"t.safetensors", "absent"});
}

TEST(Safetensors, NoTensorsAtAll) {
  const TempFolder folder;
  write_safetensors(folder / "none.safetensors", {});
  EXPECT_TRUE(read_safetensors(folder / "none.safetensors").empty());
}

TEST(Safetensors, CutShort) {
  expect_broken("", {"cut short"});
  expect_broken("abc", {"cut short"});
  const std::string whole = file_bytes(json({{"w", entry("F32", {4}, 0, 16)}}).dump(), 16);
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) expect_broken(whole.substr(0, bytes), {});
  expect_broken(whole.substr(0, whole.size() - 1), {"tensor w", "data_offsets", "15"});
}

TEST(Safetensors, HeaderLength) {
  std::string huge = file_bytes("{}", 0);
  const std::uint64_t lengths[] = {std::numeric_limits<std::uint64_t>::max(), std::uint64_t{1} << 62, 200'000'000};
  for (const std::uint64_t length : lengths) {
    std::memcpy(huge.data(), &length, 8);
    expect_broken(huge, {std::to_string(length)});
  }
  const std::uint64_t beyond = 3;
  std::memcpy(huge.data(), &beyond, 8);
  expect_broken(huge, {"cut short"});
}

TEST(Safetensors, HeaderText) {
  expect_broken(file_bytes("not json", 0), {"header", "not valid JSON"});
  expect_broken(file_bytes("", 0), {"header"});
  expect_broken(file_bytes("[1, 2]", 0), {"header", "not a JSON object"});
  expect_broken(file_bytes("{\"w\": 3}", 0), {"tensor w", "not a JSON object"});
  expect_broken(file_bytes("{\"\xFF\": 3}", 0), {"header"});
  expect_broken(file_bytes(std::string(100'000, '['), 0), {"header"});
  expect_broken(file_bytes(R"({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                               "w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})",
                           1),
                {"\"w\"", "twice"});
  expect_broken_header({{"__metadata__", {{"n", 3}}}}, 0, {"__metadata__", "n"});
  expect_broken_header({{"w", {{"dtype", "U8"}, {"shape", {1}}}}}, 1, {"tensor w", "data_offsets", "missing"});
}

TEST(Safetensors, DtypesAndShapes) {
  expect_broken_header({{"w", entry("F8_E4M3", {4}, 0, 4)}}, 4, {"tensor w", "F8_E4M3", "BF16"});
  expect_broken_header({{"w", entry("F32", {4}, 0, 12)}}, 12, {"tensor w", "data_offsets", "12", "16"});
  expect_broken_header({{"w", entry("F32", {-4}, 0, 16)}}, 16, {"tensor w", "shape", "-4"});
  expect_broken_header({{"w", entry("F32", {4.0}, 0, 16)}}, 16, {"tensor w", "shape"});
  expect_broken_header({{"w", entry("F32", "4", 0, 16)}}, 16, {"tensor w", "shape"});
  // 2^32 * 2^32 * 4 wraps around to 0 in 64 bits.
  expect_broken_header({{"w", entry("F32", {4294967296, 4294967296}, 0, 0)}}, 0, {"tensor w", "shape", "64 bits"});
  expect_broken_header({{"w", entry("U8", {18446744073709551615ULL}, 0, 0)}}, 0, {"tensor w", "shape", "64 bits"});
}

TEST(Safetensors, Ranges) {
  const json four = entry("U8", {4}, 0, 4);
  expect_broken_header({{"w", entry("U8", {4}, 4, 8)}}, 4, {"tensor w", "data_offsets"});
  expect_broken_header({{"w", entry("U8", {4}, 18446744073709551612ULL, 0)}}, 4, {"tensor w", "data_offsets"});
  expect_broken_header({{"w", entry("U8", {0}, 3, 2)}}, 4, {"tensor w", "data_offsets"});
  expect_broken_header({{"a", four}, {"b", entry("U8", {4}, 2, 6)}}, 6, {"tensor b", "overlaps"});
  expect_broken_header({{"a", four}, {"b", entry("U8", {4}, 0, 4)}}, 4, {"overlaps"});
  expect_broken_header({{"a", four}, {"b", entry("U8", {4}, 5, 9)}}, 9, {"4 to 5", "tensor b"});
  expect_broken_header({{"a", entry("U8", {4}, 1, 5)}}, 5, {"0 to 1", "tensor a"});
  expect_broken_header({{"a", four}}, 6, {"2 bytes"});
  expect_broken_header({{"w", {{"dtype", "U8"}, {"shape", {4}}, {"data_offsets", {0, 4, 8}}}}}, 8,
                       {"tensor w", "data_offsets"});
}

TEST(Safetensors, MissingFileAndDirectory) {
  const TempFolder folder;
  expect_error([&] { read_safetensors(folder / "absent"); }, {(folder / "absent").string(), "no such file"});
  expect_error([&] { read_safetensors(folder.path()); }, {folder.path().string(), "directory"});
}

TEST(Safetensors, DtypesThatCannotBeWritten) {
  const TempFolder folder;
  expect_error(
      [&] {
        write_safetensors(folder / "t", {{"c", torch::zeros({2}, torch::kComplexFloat)}});
      },
      {"c", "ComplexFloat"});
  EXPECT_EQ(folder.count(), 0u);
}

}  // namespace
}  // namespace moba::lm
