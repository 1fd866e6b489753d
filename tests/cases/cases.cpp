#include "cases/cases.h"

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <ostream>
#include <stdexcept>

namespace moba::cases {
namespace {

DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw std::runtime_error("cases.json: unknown dtype " + name);
}

Data data_named(const std::string& name) {
  static const std::map<std::string, Data> kNames = {{"normal", Data::kNormal},
                                                     {"equal_keys", Data::kEqualKeys},
                                                     {"huge_key", Data::kHugeKey},
                                                     {"large", Data::kLarge},
                                                     {"skewed", Data::kSkewed}};
  return kNames.at(name);
}

/// FNV-1a: the same on every platform, unlike std::hash.
std::uint64_t hash_of(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

Case read_case(const nlohmann::json& j, DType dtype) {
  Case c;
  c.name = j.at("name").get<std::string>() + "_" + name_of(dtype);
  c.dtype = dtype;
  c.options.kind = kind_from_name(j.at("kind").get<std::string>());
  c.options.block_size = j.at("block_size");
  c.options.top_k = j.at("top_k");
  c.options.compat_topk1_full = j.at("compat_topk1_full");
  c.options.window = j.at("window");
  c.options.sink = j.at("sink");
  c.options.force_previous = j.at("force_previous");
  c.options.sink_blocks = j.at("sink_blocks");
  c.options.share = share_from_name(j.at("share").get<std::string>());
  c.options.share_score = share_score_from_name(j.at("share_score").get<std::string>());
  c.options.representative_dtype = representative_dtype_from_name(j.at("representative_dtype").get<std::string>());
  c.options.softmax_scale = j.at("softmax_scale");
  c.heads = j.at("heads");
  c.kv_heads = j.at("kv_heads");
  c.head_dim = j.at("head_dim");
  c.value_dim = j.at("value_dim");
  c.q_lengths = j.at("q_lengths").get<std::vector<std::int64_t>>();
  c.k_lengths = j.contains("k_lengths") ? j.at("k_lengths").get<std::vector<std::int64_t>>() : c.q_lengths;
  c.data = data_named(j.at("data"));
  c.seed = hash_of(j.at("name"));
  return c;
}

std::vector<Case> read_table() {
  std::ifstream file(MOBA_CASES_JSON);  // its path, from the build
  if (!file) throw std::runtime_error("cannot read " MOBA_CASES_JSON);
  const nlohmann::json table = nlohmann::json::parse(file);
  std::vector<Case> cases;
  for (const nlohmann::json& entry : table.at("cases")) {
    nlohmann::json full = table.at("defaults");
    full.update(entry);
    for (const nlohmann::json& dtype : table.at("dtypes")) cases.push_back(read_case(full, dtype_named(dtype)));
  }
  return cases;
}

}  // namespace

std::int64_t Case::total_q() const {
  return std::accumulate(q_lengths.begin(), q_lengths.end(), std::int64_t{0});
}
std::int64_t Case::total_k() const {
  return std::accumulate(k_lengths.begin(), k_lengths.end(), std::int64_t{0});
}

std::ostream& operator<<(std::ostream& stream, const Case& problem) {
  return stream << problem.name;
}

const std::vector<Case>& all_cases() {
  static const std::vector<Case> kCases = read_table();
  return kCases;
}

const Case& case_named(const std::string& name, DType dtype) {
  for (const Case& c : all_cases()) {
    if (c.name == name + "_" + name_of(dtype)) return c;
  }
  throw std::runtime_error("cases.json has no case " + name);
}

}  // namespace moba::cases
