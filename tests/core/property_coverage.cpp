// Which pairs of features the random cases cover.
#include <algorithm>
#include <sstream>

#include "core/property_case.h"

namespace moba::test {
namespace {

struct Feature {
  const char* name;
  std::vector<const char*> levels;
  std::vector<Method> methods;  // that the feature is of any meaning for; empty: all
  int (*level)(const RandomCase&);
};

/// The number of thresholds that x is above.
int above(std::int64_t x, std::initializer_list<std::int64_t> thresholds) {
  return static_cast<int>(std::count_if(thresholds.begin(), thresholds.end(), [x](std::int64_t t) { return x > t; }));
}

int query_level(const RandomCase& c) {
  const std::vector<std::int64_t>&q = c.problem.q_lengths, &k = c.problem.k_lengths;
  bool same = true, more = false, single = true;
  for (std::size_t s = 0; s < q.size(); ++s) {
    same = same && q[s] == k[s];
    more = more || q[s] > k[s];
    single = single && q[s] <= 1;
  }
  return more ? 3 : single ? 2 : same ? 0 : 1;
}

bool has_empty_sequence(const RandomCase& c) {
  return std::count(c.problem.k_lengths.begin(), c.problem.k_lengths.end(), 0) > 0;
}

const std::vector<Feature>& features() {
  constexpr Method kWindow = Method::kWindow, kMoba = Method::kMoba, kList = Method::kAnyList;
  static const std::vector<Feature> kFeatures = {
      {"method",
       {"full", "window", "moba", "any list"},
       {},
       [](const RandomCase& c) { return static_cast<int>(c.method); }},
      {"dtype",
       {"float32", "bfloat16", "float16"},
       {},
       [](const RandomCase& c) { return static_cast<int>(c.problem.dtype) - static_cast<int>(DType::kFloat32); }},
      {"block size",
       {"1", "2-8", "9-64", ">64"},
       {kMoba, kList},
       [](const RandomCase& c) {
         return above(c.problem.options.block_size, {1, 8, 64});
       }},
      {"top k",
       {"1", "2", "3-4", ">4"},
       {kMoba, kList},
       [](const RandomCase& c) {
         return above(c.problem.options.top_k, {1, 2, 4});
       }},
      {"compat top k 1",
       {"off", "on"},
       {kMoba},
       [](const RandomCase& c) { return static_cast<int>(c.problem.options.compat_topk1_full); }},
      {"blocks",
       {"<= 2k", "> 2k"},
       {kMoba, kList},
       [](const RandomCase& c) { return static_cast<int>(c.is_sparse()); }},
      {"window",
       {"1", "2-32", ">32"},
       {kWindow},
       [](const RandomCase& c) {
         return above(c.problem.options.window, {1, 32});
       }},
      {"sink", {"0", ">0"}, {kWindow}, [](const RandomCase& c) { return above(c.problem.options.sink, {0}); }},
      {"previous block",
       {"free", "forced"},
       {kMoba},
       [](const RandomCase& c) { return static_cast<int>(c.problem.options.force_previous); }},
      {"sink blocks",
       {"0", "1", ">1"},
       {kMoba},
       [](const RandomCase& c) {
         return above(c.problem.options.sink_blocks, {0, 1});
       }},
      {"share",
       {"head", "group", "layer"},
       {kMoba},
       [](const RandomCase& c) { return static_cast<int>(c.problem.options.share); }},
      {"share score",
       {"sum_logit", "sum_prob", "max"},
       {kMoba},
       [](const RandomCase& c) { return static_cast<int>(c.problem.options.share_score); }},
      {"representatives",
       {"input", "float32"},
       {kMoba},
       [](const RandomCase& c) { return static_cast<int>(c.problem.options.representative_dtype); }},
      {"choice per",
       {"head", "key head", "layer"},
       {kList},
       [](const RandomCase& c) { return c.selection_heads == c.problem.heads ? 0
                                        : c.selection_heads == 1             ? 2
                                                                             : 1; }},
      {"scale",
       {"usual", "given"},
       {},
       [](const RandomCase& c) { return static_cast<int>(c.problem.options.softmax_scale > 0); }},
      {"group",
       {"1", "2", ">2"},
       {},
       [](const RandomCase& c) {
         return above(c.problem.heads / c.problem.kv_heads, {1, 2});
       }},
      {"key heads", {"1", "2", "3"}, {}, [](const RandomCase& c) { return static_cast<int>(c.problem.kv_heads) - 1; }},
      {"head dim",
       {"8-15", "16-63", ">63"},
       {},
       [](const RandomCase& c) {
         return above(c.problem.head_dim, {15, 63});
       }},
      {"value dim",
       {"8-15", "16-63", ">63"},
       {},
       [](const RandomCase& c) {
         return above(c.problem.value_dim, {15, 63});
       }},
      {"sequences",
       {"1", "2-3", ">3"},
       {},
       [](const RandomCase& c) {
         return above(static_cast<std::int64_t>(c.problem.k_lengths.size()), {1, 3});
       }},
      {"empty sequence",
       {"none", "some"},
       {},
       [](const RandomCase& c) { return static_cast<int>(has_empty_sequence(c)); }},
      {"longest",
       {"<= 64", "65-512", ">512"},
       {},
       [](const RandomCase& c) {
         return above(c.longest(), {64, 512});
       }},
      {"queries", {"as keys", "fewer", "one", "more"}, {}, query_level},
      {"data",
       {"normal", "equal keys", "skewed"},
       {},
       [](const RandomCase& c) {
         return c.problem.data == cases::Data::kNormal ? 0 : c.problem.data == cases::Data::kEqualKeys ? 1 : 2;
       }},
      {"layout", {"contiguous", "strided"}, {}, [](const RandomCase& c) { return static_cast<int>(c.layout); }},
      {"cu_seqlens_q",
       {"int32", "int64"},
       {},
       [](const RandomCase& c) { return static_cast<int>(c.q_offsets == DType::kInt64); }},
      {"cu_seqlens_k",
       {"int32", "int64"},
       {},
       [](const RandomCase& c) { return static_cast<int>(c.k_offsets == DType::kInt64); }},
      {"dlse", {"absent", "given"}, {}, [](const RandomCase& c) { return static_cast<int>(c.has_dlse); }},
      {"threads", {"1", "2", "3"}, {}, [](const RandomCase& c) { return c.threads - 1; }},
      {"workspace", {"roomy", "tight"}, {}, [](const RandomCase& c) { return static_cast<int>(c.tight_workspace); }},
  };
  return kFeatures;
}

bool concerns(const Feature& feature, Method method) {
  return feature.methods.empty() ||
         std::find(feature.methods.begin(), feature.methods.end(), method) != feature.methods.end();
}

/// Whether the two levels can meet in a case at all.
bool can_meet(int f, int x, int g, int y) {
  const std::vector<Feature>& all = features();
  const Feature &a = all[static_cast<std::size_t>(f)], &b = all[static_cast<std::size_t>(g)];
  if (f == 0 && !concerns(b, static_cast<Method>(x))) return false;
  const std::string pair = std::string(a.name) + "=" + a.levels[static_cast<std::size_t>(x)] + " " + b.name + "=" +
                           b.levels[static_cast<std::size_t>(y)];
  // Where key heads are as many as heads, or one, a choice for each of them is one of the other two; the drawing keeps
  // one sequence with keys; and forced blocks take slots beside the own one.
  for (const char* impossible :
       {"choice per=key head group=1", "choice per=key head key heads=1", "sequences=1 empty sequence=some",
        "top k=1 previous block=forced", "top k=1 sink blocks=1", "top k=1 sink blocks=>1", "top k=2 sink blocks=>1"}) {
    if (pair == impossible) return false;
  }
  for (Method method : {Method::kFull, Method::kWindow, Method::kMoba, Method::kAnyList}) {
    if (concerns(a, method) && concerns(b, method)) return true;
  }
  return false;
}

}  // namespace

void PairCoverage::count(const RandomCase& c) {
  const std::vector<Feature>& all = features();
  for (std::size_t f = 0; f < all.size(); ++f) {
    if (!concerns(all[f], c.method)) continue;
    const int x = all[f].level(c);
    ++levels_[{static_cast<int>(f), x}];
    for (std::size_t g = f + 1; g < all.size(); ++g) {
      if (concerns(all[g], c.method)) ++pairs_[{static_cast<int>(f), x, static_cast<int>(g), all[g].level(c)}];
    }
  }
}

PairCoverage::Summary PairCoverage::summary() const {
  const std::vector<Feature>& all = features();
  Summary summary;
  summary.least = -1;
  std::ostringstream text;
  for (int f = 0; f < static_cast<int>(all.size()); ++f) {
    const Feature& a = all[static_cast<std::size_t>(f)];
    text << "  " << a.name << ":";
    for (int x = 0; x < static_cast<int>(a.levels.size()); ++x) {
      const auto level = levels_.find({f, x});
      text << "  " << a.levels[static_cast<std::size_t>(x)] << " x" << (level == levels_.end() ? 0 : level->second);
      for (int g = f + 1; g < static_cast<int>(all.size()); ++g) {
        const Feature& b = all[static_cast<std::size_t>(g)];
        for (int y = 0; y < static_cast<int>(b.levels.size()); ++y) {
          if (!can_meet(f, x, g, y)) continue;
          const auto pair = pairs_.find({f, x, g, y});
          const std::int64_t count = pair == pairs_.end() ? 0 : pair->second;
          ++summary.pairs;
          if (count == 0) ++summary.missing;
          if (summary.least < 0 || count < summary.least) {
            summary.least = count;
            summary.rarest = std::string(a.name) + " " + a.levels[static_cast<std::size_t>(x)] + " with " + b.name +
                             " " + b.levels[static_cast<std::size_t>(y)];
          }
        }
      }
    }
    text << "\n";
  }
  summary.text = text.str();
  return summary;
}

}  // namespace moba::test
