#include "core/property_case.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace moba::test {
namespace {

using cases::Case;
using cases::HostTensor;
using cases::Problem;

/// Keys that a row sees at most.
std::int64_t seen_keys(const RandomCase& c, std::int64_t keys) {
  const AttentionOptions& options = c.problem.options;
  const bool full = c.method == Method::kMoba && options.top_k == 1 && options.compat_topk1_full;
  if (c.method == Method::kFull || full) return keys;
  if (c.method == Method::kWindow) return std::min(keys, options.window + options.sink);
  return std::min(keys, options.top_k * options.block_size);
}

std::int64_t draw_dim(Chance& chance, std::int64_t limit) {
  if (chance.one_in(3)) return std::min(limit, chance.between(1, 4) * 16);
  return chance.one_in(6) ? chance.between(8, limit) : chance.between(8, std::min<std::int64_t>(limit, 40));
}

void draw_options(Chance& chance, const Limits& limits, RandomCase& c) {
  AttentionOptions& options = c.problem.options;
  constexpr Method kMethods[] = {Method::kFull, Method::kWindow,  Method::kMoba,    Method::kMoba,
                                 Method::kMoba, Method::kAnyList, Method::kAnyList, Method::kMoba};
  c.method = kMethods[chance.between(0, 7)];
  options.kind = c.method == Method::kFull ? Kind::kFull : c.method == Method::kWindow ? Kind::kWindow : Kind::kMoba;
  options.top_k = chance.between(1, 7);
  const std::int64_t longest_block[] = {1, 8, 64, 600};
  options.block_size = chance.between(1, longest_block[chance.between(0, 3)]);
  options.compat_topk1_full = c.method == Method::kMoba && chance.one_in(3);
  options.window = chance.one_in(4) ? 1 : chance.log_between(2, limits.keys);
  options.sink = chance.one_in(2) ? 0 : chance.log_between(1, 64);
}

void draw_lengths(Chance& chance, const Limits& limits, RandomCase& c) {
  AttentionOptions& options = c.problem.options;
  std::int64_t least = 1;
  if ((c.method == Method::kMoba || c.method == Method::kAnyList) && !chance.one_in(8)) {
    options.block_size = std::min(options.block_size, (limits.keys - 1) / (2 * options.top_k));
    least = 2 * options.top_k * options.block_size + 1;
  }
  const std::int64_t longest = chance.log_between(least, limits.keys);
  const std::int64_t sequences = chance.one_in(2) ? 1 : chance.between(2, 6);
  const std::int64_t place = chance.between(0, sequences - 1), queries = chance.between(0, 3);
  for (std::int64_t s = 0; s < sequences; ++s) {
    std::int64_t keys = chance.one_in(5) ? 0 : chance.log_between(1, std::max<std::int64_t>(longest / 2, 1));
    if (s == place) keys = longest;
    std::int64_t rows = keys;
    if (queries == 1) rows = keys == 0 ? 0 : chance.between(1, keys);
    if (queries == 2) rows = 1;
    if (queries == 3 && chance.one_in(2)) rows = keys + chance.between(1, 20);
    c.problem.k_lengths.push_back(keys);
    c.problem.q_lengths.push_back(rows);
  }
}

/// The options of the gate; such as the plan takes.
void draw_gate(Chance& chance, RandomCase& c) {
  AttentionOptions& options = c.problem.options;
  constexpr Share kShares[] = {Share::kHead, Share::kHead, Share::kGroup, Share::kLayer};
  constexpr ShareScore kScores[] = {ShareScore::kSumLogit, ShareScore::kSumProb, ShareScore::kMax};
  options.force_previous = options.top_k > 1 && chance.one_in(2);
  const std::int64_t most_sinks = options.top_k - 1 - (options.force_previous ? 1 : 0);
  options.sink_blocks = chance.one_in(2) ? 0 : chance.between(0, most_sinks);
  options.share = kShares[chance.between(0, 3)];
  options.share_score = kScores[chance.between(0, 2)];
  options.representative_dtype = chance.one_in(3) ? RepresentativeDType::kFloat32 : RepresentativeDType::kInput;
  c.selection_heads = options.share == Share::kHead    ? c.problem.heads
                      : options.share == Share::kGroup ? c.problem.kv_heads
                                                       : 1;
}

/// Fewer dims and rows where the judges would take long: both are plain loops. One case in sixteen may take ten times
/// as long, so that long sequences in one piece occur too.
void limit_work(Chance& chance, RandomCase& c) {
  Case& p = c.problem;
  constexpr std::int64_t kMostElements = 150'000;
  const std::int64_t most_products = chance.one_in(16) ? 20'000'000 : 2'000'000;
  if (p.total_k() * p.kv_heads * (p.head_dim + p.value_dim) > kMostElements) {
    p.heads /= p.kv_heads;
    p.kv_heads = 1;
    const std::int64_t dim = std::max<std::int64_t>(kMinHeadDim, kMostElements / 2 / p.total_k());
    p.head_dim = std::min(p.head_dim, dim);
    p.value_dim = std::min(p.value_dim, dim);
  }
  for (;;) {
    std::int64_t products = 0;
    for (std::size_t s = 0; s < p.k_lengths.size(); ++s) products += p.q_lengths[s] * seen_keys(c, p.k_lengths[s]);
    if (products * p.heads * (p.head_dim + p.value_dim) <= most_products) return;
    if (p.heads > 4 * p.kv_heads) {
      p.heads /= 2;
    } else {
      for (std::int64_t& rows : p.q_lengths) rows = (rows + 1) / 2;
    }
    if (std::all_of(p.q_lengths.begin(), p.q_lengths.end(), [](std::int64_t rows) { return rows <= 1; })) return;
  }
}

}  // namespace

std::int64_t Chance::log_between(std::int64_t low, std::int64_t high) {
  const double exponent = std::uniform_real_distribution<double>(std::log2(static_cast<double>(low)),
                                                                 std::log2(static_cast<double>(high) + 1.0))(random_);
  return std::clamp(static_cast<std::int64_t>(std::exp2(exponent)), low, high);
}

std::int64_t RandomCase::longest() const {
  std::int64_t result = 0;
  for (std::size_t s = 0; s < problem.k_lengths.size(); ++s) {
    if (problem.q_lengths[s] > 0) result = std::max(result, problem.k_lengths[s]);
  }
  return result;
}

bool RandomCase::is_sparse() const {
  if (method != Method::kMoba && method != Method::kAnyList) return false;
  if (method == Method::kMoba && problem.options.top_k == 1 && problem.options.compat_topk1_full) return false;
  const std::int64_t block_size = problem.options.block_size;
  return (longest() + block_size - 1) / block_size > 2 * problem.options.top_k;
}

std::string RandomCase::describe() const {
  constexpr const char* kMethods[] = {"full", "window", "moba", "any list"};
  const AttentionOptions& options = problem.options;
  std::ostringstream text;
  text << name_of(problem.dtype) << " " << kMethods[static_cast<int>(method)] << " B " << options.block_size << " k "
       << options.top_k << " previous " << options.force_previous << " sinks " << options.sink_blocks << " share "
       << name_of(options.share) << " " << name_of(options.share_score) << " representatives "
       << name_of(options.representative_dtype) << " compat " << options.compat_topk1_full << " window "
       << options.window << " sink " << options.sink << " scale " << options.softmax_scale << " data "
       << static_cast<int>(problem.data) << " H " << problem.heads << " HK " << problem.kv_heads << " D "
       << problem.head_dim << " Dv " << problem.value_dim << " selection heads " << selection_heads << " strided "
       << (layout == cases::Layout::kStrided) << " dlse " << has_dlse << " threads " << threads << " tight "
       << tight_workspace << " q";
  for (std::int64_t length : problem.q_lengths) text << " " << length;
  text << " k";
  for (std::int64_t length : problem.k_lengths) text << " " << length;
  return text.str();
}

RandomCase random_case(std::uint64_t seed, const Limits& limits) {
  Chance chance(seed);
  RandomCase c;
  Case& p = c.problem;
  p.seed = seed;
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  p.dtype = kDTypes[chance.between(0, 2)];
  draw_options(chance, limits, c);
  constexpr std::int64_t kGroups[] = {1, 1, 2, 2, 3, 4, 8};
  p.kv_heads = chance.between(1, 3);
  p.heads = p.kv_heads * kGroups[chance.between(0, 6)];
  p.head_dim = draw_dim(chance, limits.dim);
  p.value_dim = draw_dim(chance, limits.dim);
  draw_lengths(chance, limits, c);
  limit_work(chance, c);
  if (chance.one_in(3)) {
    // At most four times the usual factor: beyond, every float32 score is off by more than the rule of the judge allows
    // for (ExtremeScoresStayAccurate goes there).
    p.options.softmax_scale =
        0.25 * static_cast<double>(chance.between(1, 16)) / std::sqrt(static_cast<double>(p.head_dim));
  }
  constexpr cases::Data kData[] = {cases::Data::kNormal, cases::Data::kNormal, cases::Data::kEqualKeys,
                                   cases::Data::kSkewed};
  p.data = kData[chance.between(0, 3)];
  const std::int64_t shares[] = {p.heads, p.kv_heads, 1};
  c.selection_heads = c.method == Method::kAnyList ? shares[chance.between(0, 2)] : p.heads;
  c.q_offsets = chance.one_in(2) ? DType::kInt32 : DType::kInt64;
  c.k_offsets = chance.one_in(2) ? DType::kInt32 : DType::kInt64;
  c.layout = chance.one_in(3) ? cases::Layout::kStrided : cases::Layout::kContiguous;
  c.has_dlse = chance.one_in(2);
  c.threads = static_cast<int>(chance.between(1, 3));
  c.tight_workspace = chance.one_in(4);
  if (c.method == Method::kMoba) draw_gate(chance, c);
  return c;
}

Problem make_problem(const RandomCase& c) {
  Problem problem(c.problem);
  if (c.layout == cases::Layout::kStrided) problem = problem.to(c.problem.dtype, c.layout);
  problem.cu_seqlens_q = cases::offsets_of(c.problem.q_lengths, c.q_offsets);
  problem.cu_seqlens_k = cases::offsets_of(c.problem.k_lengths, c.k_offsets);
  if (!c.has_dlse) problem.dlse.fill(std::vector<double>(static_cast<std::size_t>(problem.dlse.numel()), 0.0));
  return problem;
}

HostTensor random_list(const Problem& problem, std::int64_t selection_heads, std::int64_t budget, std::uint64_t seed) {
  Chance chance(seed);
  HostTensor list(DType::kInt32, {problem.rows(), selection_heads, budget});
  const std::vector<double> q = problem.cu_seqlens_q.values(), k = problem.cu_seqlens_k.values();
  std::int64_t at = 0;
  for (std::size_t s = 0; s + 1 < q.size(); ++s) {
    const std::int64_t rows = static_cast<std::int64_t>(q[s + 1] - q[s]);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t position = r + static_cast<std::int64_t>(k[s + 1] - k[s]) - rows;
      const std::int64_t past = position < 0 ? 0 : position / problem.options.block_size;
      for (std::int64_t g = 0; g < selection_heads; ++g) {
        std::vector<std::int64_t> chosen;  // mostly as many as fit, sometimes fewer, drawn from the whole past
        const std::int64_t wanted = chance.one_in(3) ? chance.between(0, budget) : budget;
        for (std::int64_t i = 0; i < wanted && past > 0; ++i) chosen.push_back(chance.between(0, past - 1));
        std::sort(chosen.begin(), chosen.end());
        chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
        chosen.resize(static_cast<std::size_t>(budget), -1);
        for (std::int64_t block : chosen) list.set(at++, static_cast<double>(block));
      }
    }
  }
  return list;
}

}  // namespace moba::test
