// The one table of attention problems (cases.json), for tests and benchmarks.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "moba/moba.h"

namespace moba::cases {

/// What the keys and queries look like.
enum class Data { kNormal, kEqualKeys, kHugeKey, kLarge, kSkewed };

struct Case {
  std::string name;  // with the dtype: "packed_bfloat16"
  DType dtype = DType::kFloat32;
  AttentionOptions options;
  std::int64_t heads = 4, kv_heads = 2, head_dim = 64, value_dim = 64;
  std::vector<std::int64_t> q_lengths, k_lengths;  // tokens of each sequence
  Data data = Data::kNormal;
  std::uint64_t seed = 0;  // from the name: every case has its own numbers

  std::int64_t total_q() const;
  std::int64_t total_k() const;
};

std::ostream& operator<<(std::ostream& stream, const Case& problem);

/// Every case in every dtype of the table, in its order. Reads cases.json beside this file (MOBA_CASES_JSON).
const std::vector<Case>& all_cases();

/// The case of that name in that dtype; throws std::runtime_error where there is none.
const Case& case_named(const std::string& name, DType dtype = DType::kFloat32);

}  // namespace moba::cases
