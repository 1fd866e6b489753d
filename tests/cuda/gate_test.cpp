// The gate on the device against the reference and against plain loops: representatives to the bit, choices exactly
// where scores are whole numbers and within the rounding of float32 where they are not, the inverse to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cases/compare.h"
#include "cuda/device.h"
#include "cuda/gate.h"
#include "cuda/inverse.h"
#include "sequences.h"

namespace moba::test {
namespace {

using cases::HostTensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// How the numbers are made.
enum class Values {
  kNormal,
  kWhole,       // small whole numbers: every score is exact and ties are many
  kAscending,   // every block beats all before it
  kDescending,  // no block beats one before it
  kOneLane,     // the best blocks all have numbers that one lane of the quad holds, ascending
  kZero,        // all scores tie
  kStrange,     // normal with NaN and infinities strewn in
};

struct GateCase {
  std::string name;
  std::vector<std::int64_t> q_lengths, k_lengths;
  std::int64_t heads, kv_heads, lists, dim, block_size, budget;
  DType dtype = DType::kBFloat16;
  Values values = Values::kNormal;
  cuda::ForcedBlocks forced = {};
  bool gaps = false;  // rows and keys outside of all sequences, and a maximum below the longest sequence
};

std::ostream& operator<<(std::ostream& out, const GateCase& c) {
  return out << c.name;
}

class Problem {
 public:
  explicit Problem(const GateCase& c) : c_(c), random_(std::hash<std::string>{}(c.name) ^ seed()) {
    const std::int64_t lead = c.gaps ? 3 : 0, tail = c.gaps ? 5 : 0;
    const auto offsets = [&](const std::vector<std::int64_t>& lengths) {
      HostTensor result(c.gaps ? DType::kInt64 : DType::kInt32, {static_cast<std::int64_t>(lengths.size()) + 1});
      std::int64_t at = lead;
      result.set(0, static_cast<double>(at));
      for (std::size_t s = 0; s < lengths.size(); ++s) {
        at += lengths[s];
        result.set(static_cast<std::int64_t>(s) + 1, static_cast<double>(at));
      }
      return result;
    };
    cu_q = offsets(c.q_lengths);
    cu_k = offsets(c.k_lengths);
    rows = static_cast<std::int64_t>(cu_q.values().back()) + tail;
    keys = static_cast<std::int64_t>(cu_k.values().back()) + tail;
    max_q = *std::max_element(c.q_lengths.begin(), c.q_lengths.end());
    max_k = *std::max_element(c.k_lengths.begin(), c.k_lengths.end());
    if (c.gaps) max_k = max_k * 9 / 10;
    q = HostTensor(c.dtype, {rows, c.heads, c.dim});
    k = HostTensor(c.dtype, {keys, c.kv_heads, c.dim});
    const std::int64_t blocks = block_rows(keys, static_cast<std::int64_t>(c.k_lengths.size()), c.block_size);
    representatives = HostTensor(c.dtype, {blocks, c.kv_heads, c.dim});
    fill(q);
    fill(k);
    fill_representatives(blocks);
  }

  PackedBatch batch() const { return batch_of(cu_q.view(), cu_k.view()); }
  PackedBatch batch_of(ConstTensorView q_offsets, ConstTensorView k_offsets) const {
    return {q_offsets, k_offsets, max_q, max_k};
  }
  Selection selection(const TensorView& blocks) const {
    Selection result;
    result.kind = SelectionKind::kList;
    result.block_size = c_.block_size;
    result.blocks = blocks;
    return result;
  }
  HostTensor empty_list() const { return HostTensor(DType::kInt32, {rows, c_.lists, c_.budget}); }

  std::mt19937_64& random() { return random_; }
  HostTensor q, k, representatives, cu_q, cu_k;
  std::int64_t rows = 0, keys = 0, max_q = 0, max_k = 0;

 private:
  static std::uint64_t seed() {
    static const std::uint64_t kSeed = std::random_device{}();
    return kSeed;
  }
  void fill(HostTensor& tensor) {
    std::normal_distribution<double> normal;
    std::uniform_int_distribution<int> whole(-3, 3), rare(0, 400);
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      double value = c_.values == Values::kWhole ? whole(random_) : normal(random_);
      if (c_.values == Values::kZero) value = i % 3 == 0 ? -0.0 : 0.0;
      if (c_.values == Values::kStrange) {
        switch (rare(random_)) {
          case 0: value = std::numeric_limits<double>::quiet_NaN(); break;
          case 1: value = kInfinity; break;
          case 2: value = -kInfinity; break;
          default: break;
        }
      }
      tensor.set(i, value);
    }
  }
  void fill_representatives(std::int64_t blocks) {
    fill(representatives);
    if (c_.values != Values::kAscending && c_.values != Values::kDescending && c_.values != Values::kOneLane) return;
    // q is 1 in its first columns, representatives are digits of a rank there: the score is the rank.
    constexpr int kDigits = 3, kBase = 64;
    for (std::int64_t i = 0; i < q.numel(); ++i) {
      static constexpr double kWeight[kDigits] = {1.0, kBase, kBase * kBase};
      q.set(i, i % c_.dim < kDigits ? kWeight[i % c_.dim] : 0.0);
    }
    for (std::int64_t i = 0; i < representatives.numel(); ++i) {
      const std::int64_t row = i / (c_.kv_heads * c_.dim), d = i % c_.dim;
      std::int64_t rank = row;
      if (c_.values == Values::kDescending) rank = blocks - row;
      if (c_.values == Values::kOneLane) rank = row % 8 < 2 ? 4096 + row : row % 128;
      for (std::int64_t digit = 0; digit < d; ++digit) rank /= kBase;
      representatives.set(i, d < kDigits ? static_cast<double>(rank % kBase) : 0.0);
    }
  }

  GateCase c_;
  std::mt19937_64 random_;
};

class GateTest : public ::testing::TestWithParam<GateCase> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_P(GateTest, PoolHasTheBitsOfTheReference) {
  const GateCase& c = GetParam();
  const Problem problem(c);
  const HostTensor poison(c.dtype, {problem.representatives.view().shape[0], c.kv_heads, c.dim});
  HostTensor expected = poison, actual = poison;
  SerialContext serial;
  reference_backend().pool(serial, {problem.k.view(), problem.batch(), c.block_size, expected.view()});
  DeviceContext context;
  const DeviceTensor k(context, problem.k), cu_q(context, problem.cu_q), cu_k(context, problem.cu_k),
      representatives(context, poison);
  cuda::pool(context, {k.view(), problem.batch_of(cu_q.view(), cu_k.view()), c.block_size, representatives.view()});
  representatives.read(actual);
  const std::vector<double> a = actual.values(), e = expected.values();
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(a[i] == e[i] || (std::isnan(a[i]) && std::isnan(e[i])))
        << "element " << i << ": " << a[i] << " " << e[i];
  }
}

/// The list of one row by plain loops, and whether another list is as good within the rounding of float32.
class Judge {
 public:
  Judge(const GateCase& c, const Problem& problem)
      : c_(c),
        sequences_(serial_, problem.batch(), problem.rows, problem.keys),
        q_(problem.q.values()),
        representatives_(problem.representatives.values()) {}

  void expect_good(const HostTensor& lists, std::int64_t rows, std::int64_t step = 1) {
    for (std::int64_t row = 0; row < rows; row += step) {
      for (std::int64_t list = 0; list < c_.lists; ++list) {
        const std::int32_t* blocks = lists.view().as<std::int32_t>() + (row * c_.lists + list) * c_.budget;
        judge(row, list, blocks);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }

 private:
  struct Sum {
    double score, margin;
  };
  void judge(std::int64_t row, std::int64_t list, const std::int32_t* blocks) {
    const std::int64_t s = sequences_.of_row(row);
    const std::int64_t position = s < 0 ? -1 : sequences_[s].position(row);
    const std::int64_t past = position < 0 ? 0 : position / c_.block_size;
    const std::int64_t sinks = std::min(c_.forced.sink_blocks, past);
    const std::int64_t end = past - (c_.forced.force_previous && past > sinks ? 1 : 0);
    struct Scored {
      double score, margin;
      std::int64_t block;
    };
    std::vector<Scored> candidates;
    std::vector<double> score_of(static_cast<std::size_t>(past), -kInfinity), margin_of(static_cast<std::size_t>(past));
    for (std::int64_t block = sinks; block < end; ++block) {
      const Sum scored = score(row, list, sequences_[s].first_block_row(c_.block_size) + block);
      if (std::isnan(scored.score) || scored.score == -kInfinity) continue;
      candidates.push_back({scored.score, scored.margin, block});
      score_of[static_cast<std::size_t>(block)] = scored.score;
      margin_of[static_cast<std::size_t>(block)] = scored.margin;
    }
    const std::int64_t free = c_.budget - sinks - (end < past);
    const std::size_t chosen =
        std::min<std::size_t>(static_cast<std::size_t>(std::max<std::int64_t>(free, 0)), candidates.size());
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Scored& a, const Scored& b) { return a.score > b.score; });
    std::vector<std::int32_t> expected;
    for (std::int64_t block = 0; block < sinks; ++block) expected.push_back(static_cast<std::int32_t>(block));
    for (std::size_t i = 0; i < chosen; ++i) expected.push_back(static_cast<std::int32_t>(candidates[i].block));
    if (end < past) expected.push_back(static_cast<std::int32_t>(end));
    std::sort(expected.begin(), expected.end());
    expected.resize(static_cast<std::size_t>(c_.budget), -1);
    if (std::equal(expected.begin(), expected.end(), blocks)) return;

    const auto text = [&](const std::int32_t* values) {
      std::string result;
      for (std::int64_t i = 0; i < c_.budget; ++i) result += std::to_string(values[i]) + " ";
      return result;
    };
    const std::string where = "row " + std::to_string(row) + " list " + std::to_string(list) + " past " +
                              std::to_string(past) + ": " + text(blocks) + "instead of " + text(expected.data());
    ASSERT_TRUE(c_.values == Values::kNormal || c_.values == Values::kStrange) << where;
    // Another choice is as good only if every block that was swapped in ties with what was swapped out.
    double lowest = kInfinity, margin = 0.0;
    for (std::size_t i = 0; i < chosen; ++i) {
      lowest = std::min(lowest, candidates[i].score);
      margin = std::max(margin, candidates[i].margin);
    }
    std::int64_t previous = -1, count = 0;
    for (std::int64_t slot = 0; slot < c_.budget && blocks[slot] != -1; ++slot, ++count) {
      const std::int64_t block = blocks[slot];
      ASSERT_TRUE(block > previous && block < past) << where;
      previous = block;
      if (block < sinks || block >= end) continue;
      ASSERT_GE(score_of[static_cast<std::size_t>(block)], lowest - margin - margin_of[static_cast<std::size_t>(block)])
          << where;
    }
    ASSERT_EQ(count, std::count_if(expected.begin(), expected.end(), [](std::int32_t b) { return b >= 0; })) << where;
    for (const std::int32_t block : expected) {
      if (block < 0 || std::find(blocks, blocks + c_.budget, block) != blocks + c_.budget) continue;
      ASSERT_TRUE(block >= sinks && block < end) << where;
      ASSERT_LE(score_of[static_cast<std::size_t>(block)], lowest + margin + margin_of[static_cast<std::size_t>(block)])
          << where;
    }
  }

  Sum score(std::int64_t row, std::int64_t list, std::int64_t block_row) const {
    const std::int64_t group = c_.heads / c_.lists;
    double sum = 0.0, size = 0.0;
    for (std::int64_t head = list * group; head < (list + 1) * group; ++head) {
      const std::int64_t kv = head * c_.kv_heads / c_.heads;
      const double* a = q_.data() + (row * c_.heads + head) * c_.dim;
      const double* b = representatives_.data() + (block_row * c_.kv_heads + kv) * c_.dim;
      for (std::int64_t d = 0; d < c_.dim; ++d) {
        sum += a[d] * b[d];
        size += std::fabs(a[d] * b[d]);
      }
    }
    // Additions of the tensor cores keep at least float32's 24 bits less two, cut instead of rounded.
    return {sum, static_cast<double>(c_.dim * group) * 0x1p-22 * size};
  }

  const GateCase& c_;
  SerialContext serial_;
  Sequences sequences_;
  std::vector<double> q_, representatives_;
};

TEST_P(GateTest, SelectsTheBestBlocks) {
  const GateCase& c = GetParam();
  const Problem problem(c);
  DeviceContext context;
  const DeviceTensor q(context, problem.q), representatives(context, problem.representatives),
      cu_q(context, problem.cu_q), cu_k(context, problem.cu_k);
  HostTensor lists = problem.empty_list();
  const DeviceTensor blocks(context, lists), again(context, lists);
  const PackedBatch batch = problem.batch_of(cu_q.view(), cu_k.view());
  cuda::select(context, {q.view(), representatives.view(), batch, problem.selection(blocks.view())}, c.forced);
  blocks.read(lists);
  Judge(c, problem).expect_good(lists, problem.rows);
  HostTensor second = problem.empty_list();
  cuda::select(context, {q.view(), representatives.view(), batch, problem.selection(again.view())}, c.forced);
  again.read(second);
  EXPECT_TRUE(cases::same_bits(lists, second));
}

TEST_P(GateTest, ScoresAreThoseOfTheReference) {
  const GateCase& c = GetParam();
  const Problem problem(c);
  const std::int64_t columns = (problem.max_k + c.block_size - 1) / c.block_size;
  HostTensor expected(DType::kFloat32, {problem.rows, c.heads, columns}), actual = expected;
  SerialContext serial;
  reference_backend().score(
      serial, {problem.q.view(), problem.representatives.view(), problem.batch(), c.block_size, expected.view()});
  DeviceContext context;
  const DeviceTensor q(context, problem.q), representatives(context, problem.representatives),
      cu_q(context, problem.cu_q), cu_k(context, problem.cu_k), scores(context, actual);
  cuda::score(context, {q.view(), representatives.view(), problem.batch_of(cu_q.view(), cu_k.view()), c.block_size,
                        scores.view()});
  scores.read(actual);
  const std::vector<double> a = actual.values(), e = expected.values();
  // A float32 sum of D products, none of which exceeds the largest of q times the largest representative.
  const double margin = static_cast<double>(c.dim * c.dim) * 0x1p-24 * cases::max_size(problem.q) *
                        cases::max_size(problem.representatives);
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(a[i] == e[i] || std::fabs(a[i] - e[i]) <= margin) << i << ": " << a[i] << " " << e[i];
  }
}

/// Lists of distinct past blocks; with `broken`, entries that break every rule are strewn in.
HostTensor random_lists(const GateCase& c, Problem& problem, bool broken, bool skewed) {
  SerialContext serial;
  const Sequences sequences(serial, problem.batch(), problem.rows, problem.keys);
  HostTensor lists = problem.empty_list();
  std::uniform_int_distribution<int> rare(0, 30);
  for (std::int64_t row = 0; row < problem.rows; ++row) {
    const std::int64_t s = sequences.of_row(row);
    const std::int64_t position = s < 0 ? -1 : sequences[s].position(row);
    const std::int64_t past = position < 0 ? 0 : position / c.block_size;
    for (std::int64_t list = 0; list < c.lists; ++list) {
      std::int32_t* blocks = lists.view().as<std::int32_t>() + (row * c.lists + list) * c.budget;
      std::vector<std::int32_t> chosen;
      for (std::int64_t i = 0; i < c.budget && past > 0; ++i) {
        chosen.push_back(
            skewed && i == 0 ? 0 : static_cast<std::int32_t>(problem.random()() % static_cast<std::uint64_t>(past)));
      }
      std::sort(chosen.begin(), chosen.end());
      chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
      chosen.resize(static_cast<std::size_t>(c.budget), -1);
      for (std::int32_t& block : chosen) {
        if (broken && rare(problem.random()) == 0) block = static_cast<std::int32_t>(problem.random()());
        if (broken && rare(problem.random()) == 0) block = static_cast<std::int32_t>(past) + rare(problem.random()) - 3;
      }
      std::copy(chosen.begin(), chosen.end(), blocks);
    }
  }
  return lists;
}

void expect_inverse(const GateCase& c, const Problem& problem, const HostTensor& lists) {
  const std::int64_t blocks = problem.representatives.view().shape[0];
  SerialContext serial;
  HostTensor offsets(DType::kInt64, {c.lists * blocks + 1}),
      entries(DType::kInt32, {problem.rows * c.lists * c.budget, 2});
  const HostTensor no_offsets = offsets, no_entries = entries;
  reference_backend().invert(
      serial,
      {problem.batch(), problem.selection(lists.view()), problem.rows, problem.keys, {offsets.view(), entries.view()}});
  DeviceContext context;
  const DeviceTensor cu_q(context, problem.cu_q), cu_k(context, problem.cu_k), list(context, lists),
      device_offsets(context, no_offsets), device_entries(context, no_entries);
  const PackedBatch batch = problem.batch_of(cu_q.view(), cu_k.view());
  cuda::invert(context, {batch,
                         problem.selection(list.view()),
                         problem.rows,
                         problem.keys,
                         {device_offsets.view(), device_entries.view()}});
  HostTensor actual_offsets = no_offsets, actual_entries = no_entries;
  device_offsets.read(actual_offsets);
  device_entries.read(actual_entries);
  ASSERT_TRUE(cases::same_bits(actual_offsets, offsets));
  ASSERT_TRUE(cases::same_bits(actual_entries, entries));

  // By slices of rows and lists, with work items of at most 128 rows.
  const cuda::BlockMap map(context, batch, problem.rows, problem.keys, c.block_size);
  ASSERT_EQ(map.block_rows(), blocks);
  std::vector<cuda::BlockSpan> spans(static_cast<std::size_t>(blocks));
  const std::int64_t slice_rows = problem.rows / 2 + 1, slice_lists = (c.lists + 1) / 2;
  constexpr std::int64_t kItemRows = 128;
  cuda::BlockInverse inverse(context, map, problem.selection(list.view()), {0, slice_rows, 0, slice_lists}, kItemRows);
  for (std::int64_t first_list = 0; first_list < c.lists; first_list += slice_lists) {
    for (std::int64_t first_row = 0; first_row < problem.rows; first_row += slice_rows) {
      const cuda::Slice slice{first_row, std::min(slice_rows, problem.rows - first_row), first_list,
                              std::min(slice_lists, c.lists - first_list)};
      inverse.build(slice);
      must(cudaDeviceSynchronize(), "inverse");
      const std::int64_t bins = slice.lists * blocks;
      std::vector<std::int64_t> starts(static_cast<std::size_t>(bins + 1));
      std::vector<std::int32_t> first_item(starts.size());
      must(cudaMemcpy(starts.data(), inverse.offsets(), starts.size() * 8, cudaMemcpyDeviceToHost), "copy");
      must(cudaMemcpy(first_item.data(), inverse.first_item(), starts.size() * 4, cudaMemcpyDeviceToHost), "copy");
      must(cudaMemcpy(spans.data(), map.blocks(), spans.size() * sizeof(cuda::BlockSpan), cudaMemcpyDeviceToHost),
           "copy");
      ASSERT_LE(first_item.back(), inverse.max_items());
      std::vector<std::uint32_t> packed(static_cast<std::size_t>(starts.back()));
      std::vector<cuda::WorkItem> items(static_cast<std::size_t>(first_item.back()));
      must(cudaMemcpy(packed.data(), inverse.entries(), packed.size() * 4, cudaMemcpyDeviceToHost), "copy");
      must(cudaMemcpy(items.data(), inverse.items(), items.size() * sizeof(cuda::WorkItem), cudaMemcpyDeviceToHost),
           "copy");
      const std::int64_t* all = offsets.view().as<std::int64_t>();
      const std::int32_t* pairs = entries.view().as<std::int32_t>();
      std::size_t item = 0;
      for (std::int64_t bin = 0; bin < bins; ++bin) {
        ASSERT_EQ(first_item[static_cast<std::size_t>(bin)], static_cast<std::int32_t>(item));
        std::int64_t at = starts[static_cast<std::size_t>(bin)];
        const std::int64_t whole_bin = first_list * blocks + bin;
        for (std::int64_t e = all[whole_bin]; e < all[whole_bin + 1]; ++e) {
          const std::int64_t row = pairs[2 * e] - slice.first_row;
          if (row < 0 || row >= slice.rows) continue;
          ASSERT_LT(at, starts[static_cast<std::size_t>(bin) + 1]);
          ASSERT_EQ(packed[static_cast<std::size_t>(at++)],
                    static_cast<std::uint32_t>(row << cuda::kSlotBits | pairs[2 * e + 1]));
        }
        ASSERT_EQ(at, starts[static_cast<std::size_t>(bin) + 1]);
        for (std::int64_t begin = starts[static_cast<std::size_t>(bin)]; begin < at; begin += kItemRows, ++item) {
          const cuda::WorkItem& work = items[item];
          const cuda::BlockSpan& span = spans[static_cast<std::size_t>(bin % blocks)];
          ASSERT_EQ(work.begin, begin);
          ASSERT_EQ(work.count, std::min(kItemRows, at - begin));
          ASSERT_EQ(work.list, bin / blocks);
          ASSERT_EQ(work.block_row, bin % blocks);
          ASSERT_EQ(work.first_key, span.first_key);
          ASSERT_EQ(work.keys, span.keys);
          ASSERT_EQ(work.keys, c.block_size);
        }
      }
      ASSERT_EQ(item, items.size());
    }
  }
}

TEST_P(GateTest, InverseHasTheBitsOfTheReference) {
  Problem problem(GetParam());
  expect_inverse(GetParam(), problem, random_lists(GetParam(), problem, false, false));
}
TEST_P(GateTest, InverseOfASkewedChoice) {
  Problem problem(GetParam());
  expect_inverse(GetParam(), problem, random_lists(GetParam(), problem, false, true));
}
TEST_P(GateTest, InversePassesOverWhatIsOutOfRange) {
  Problem problem(GetParam());
  expect_inverse(GetParam(), problem, random_lists(GetParam(), problem, true, false));
}

std::vector<GateCase> gate_cases() {
  using Lengths = std::vector<std::int64_t>;
  constexpr DType kBf16 = DType::kBFloat16, kFp16 = DType::kFloat16;
  const Lengths odd = {0, 1, 300, 0, 129, 700, 0}, odd_k = {0, 1, 1300, 5, 129, 2700, 0};
  std::vector<GateCase> result = {
      {"one", {1000}, {1000}, 4, 2, 4, 64, 17, 3},
      {"varlen", odd, odd_k, 4, 4, 4, 128, 100, 3, kFp16},
      {"gaps", {40, 1, 300, 0, 129}, {900, 1, 1300, 5, 129}, 2, 1, 2, 128, 17, 4, kBf16, Values::kNormal, {}, true},
      {"two_tiles", {3000}, {3000}, 2, 2, 2, 128, 16, 7, kBf16},
      {"shared_by_group", odd, odd_k, 4, 2, 2, 64, 33, 5, kBf16},
      {"shared_by_all", odd, odd_k, 6, 3, 1, 128, 16, 9, kFp16},
      {"whole", {2500}, {2500}, 2, 2, 2, 64, 16, 7, kBf16, Values::kWhole},
      {"whole_shared", {2500}, {2500}, 4, 2, 1, 64, 16, 7, kFp16, Values::kWhole},
      {"large_block", {5000}, {5000}, 1, 1, 1, 128, 1000, 11},
      {"few_rows", {1, 3}, {4000, 9000}, 4, 4, 4, 128, 16, 7},
      {"forced", odd, odd_k, 4, 4, 4, 128, 17, 5, kBf16, Values::kNormal, {true, 2}},
      {"forced_all", odd, odd_k, 2, 2, 2, 64, 17, 3, kBf16, Values::kNormal, {true, 2}},
      {"sinks_over_a_tile", {500}, {6000}, 1, 1, 1, 64, 16, 63, kBf16, Values::kWhole, {false, 40}},
      {"previous", {2000}, {2000}, 2, 2, 2, 64, 16, 3, kBf16, Values::kWhole, {true, 0}},
      {"few_shared", odd, odd_k, 6, 3, 1, 128, 16, 2, kFp16},
      {"few_forced", odd, odd_k, 2, 2, 2, 128, 17, 4, kBf16, Values::kNormal, {true, 1}},
      {"few_columns", {1100}, {1100}, 2, 1, 2, 128, 16, 2, kBf16, Values::kWhole},
      {"eight_columns", {1100}, {1100}, 2, 1, 2, 128, 16, 8, kBf16, Values::kWhole},
      {"eight_sinks", {900}, {5000}, 1, 1, 1, 64, 16, 11, kBf16, Values::kWhole, {true, 3}},
      {"one_key_blocks", {300}, {300}, 1, 1, 1, 64, 1, 5, kBf16, Values::kWhole},
  };
  // As many sequences as a kernel takes from their offsets, and more, which come from tables.
  for (const std::size_t sequences : {31u, 32u, 40u}) {
    Lengths q_lengths, k_lengths;
    for (std::size_t s = 0; s < sequences; ++s) {
      q_lengths.push_back(static_cast<std::int64_t>(s * 7 % 23));
      k_lengths.push_back(q_lengths.back() + static_cast<std::int64_t>(s % 5 * 40));
    }
    const std::string text = std::to_string(sequences);
    result.push_back({"sequences_" + text, q_lengths, k_lengths, 2, 2, 2, 64, 16, 3});
    result.push_back(
        {"sequences_gaps_" + text, q_lengths, k_lengths, 2, 1, 2, 128, 17, 7, kFp16, Values::kNormal, {}, true});
  }
  for (const std::int64_t budget : {1, 2, 3, 7, 8, 9, 11, 16, 17, 40, 63}) {
    const std::string text = std::to_string(budget);
    result.push_back({"long_" + text, {200}, {20000}, 2, 2, 2, 128, 16, budget});
    result.push_back({"whole_" + text, {200}, {20000}, 2, 1, 2, 64, 16, budget, kFp16, Values::kWhole});
    result.push_back({"zero_" + text, {200}, {6000}, 1, 1, 1, 64, 16, budget, kBf16, Values::kZero});
    result.push_back({"strange_" + text, {200}, {6000}, 1, 1, 1, 64, 16, budget, kBf16, Values::kStrange});
    result.push_back({"ascending_" + text, {200}, {20000}, 1, 1, 1, 64, 16, budget, kBf16, Values::kAscending});
    result.push_back({"descending_" + text, {200}, {20000}, 1, 1, 1, 128, 16, budget, kFp16, Values::kDescending});
    result.push_back({"one_lane_" + text, {200}, {20000}, 1, 1, 1, 64, 16, budget, kBf16, Values::kOneLane});
  }
  return result;
}

// Several tiles for each multiprocessor, so that the persistent loops go round, and a list so large that the inverse is
// built in groups of selection heads. Every 37th row is judged.
TEST(GateAtSize, GoesRoundItsLoops) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device";
  for (const std::int64_t budget : {2, 7, 11}) {
    const GateCase c = {"size", {19999, 11, 3000}, {20005, 400, 3000}, 8, 4, 8, 64, 50, budget};
    const Problem problem(c);
    DeviceContext context;
    const DeviceTensor q(context, problem.q), representatives(context, problem.representatives),
        cu_q(context, problem.cu_q), cu_k(context, problem.cu_k);
    HostTensor lists = problem.empty_list();
    const DeviceTensor blocks(context, lists);
    cuda::select(context, {q.view(), representatives.view(), problem.batch_of(cu_q.view(), cu_k.view()),
                           problem.selection(blocks.view())});
    blocks.read(lists);
    Judge(c, problem).expect_good(lists, problem.rows, 37);
  }
  // Many segments; thousands of blocks; and those of several batches and several windows of blocks.
  for (const GateCase& c : {GateCase{"segments", {20000}, {20000}, 5, 5, 5, 64, 16, 63},
                            GateCase{"batches", {6000}, {70000}, 1, 1, 1, 64, 16, 2},
                            GateCase{"thousands", {3000, 700}, {40000, 9000}, 2, 2, 2, 64, 16, 63},
                            GateCase{"windows", {9000}, {150000}, 1, 1, 1, 64, 16, 7}}) {
    Problem problem(c);
    expect_inverse(c, problem, random_lists(c, problem, true, true));
  }
}

INSTANTIATE_TEST_SUITE_P(All, GateTest, ::testing::ValuesIn(gate_cases()),
                         [](const auto& one) { return one.param.name; });

TEST(GateErrors, ReportsListsAndOffsetsOutOfRange) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device";
  const GateCase c = {"errors", {100, 100}, {100, 100}, 1, 1, 1, 64, 16, 2};
  Problem problem(c);
  const auto errors_of = [&](const HostTensor& cu, const HostTensor& lists, std::int64_t max_k) {
    DeviceContext context;
    const DeviceTensor cu_q(context, problem.cu_q), cu_k(context, cu), list(context, lists);
    const HostTensor offsets(DType::kInt64, {problem.representatives.view().shape[0] + 1}),
        entries(DType::kInt32, {400, 2});
    const DeviceTensor device_offsets(context, offsets), device_entries(context, entries);
    PackedBatch batch = problem.batch_of(cu_q.view(), cu_k.view());
    batch.max_seqlen_k = max_k;
    cuda::invert(context, {batch,
                           problem.selection(list.view()),
                           problem.rows,
                           problem.keys,
                           {device_offsets.view(), device_entries.view()}});
    must(cudaDeviceSynchronize(), "invert");
    return context.error_bits();
  };
  // Pool and select read the offsets for themselves.
  const auto errors_of_others = [&](const HostTensor& cu, std::int64_t max_k) {
    DeviceContext pools, selects;
    const DeviceTensor cu_q(pools, problem.cu_q), cu_k(pools, cu), q(pools, problem.q), k(pools, problem.k),
        representatives(pools, problem.representatives), list(pools, problem.empty_list());
    PackedBatch batch = problem.batch_of(cu_q.view(), cu_k.view());
    batch.max_seqlen_k = max_k;
    cuda::pool(pools, {k.view(), batch, c.block_size, representatives.view()});
    cuda::select(selects, {q.view(), representatives.view(), batch, problem.selection(list.view())});
    must(cudaDeviceSynchronize(), "pool and select");
    EXPECT_EQ(pools.error_bits(), selects.error_bits());
    return pools.error_bits();
  };
  HostTensor lists = problem.empty_list();
  for (std::int64_t i = 0; i < lists.numel(); ++i) lists.set(i, -1);
  EXPECT_EQ(errors_of(problem.cu_k, lists, 100), 0);
  EXPECT_EQ(errors_of_others(problem.cu_k, 100), 0);
  EXPECT_EQ(errors_of(problem.cu_k, lists, 99), kSeqlenAboveMaximum);
  EXPECT_EQ(errors_of_others(problem.cu_k, 99), kSeqlenAboveMaximum);
  HostTensor wrong = problem.cu_k;
  wrong.set(1, 201);
  EXPECT_EQ(errors_of(wrong, lists, 300), kCuSeqlensOutOfRange);
  EXPECT_EQ(errors_of_others(wrong, 300), kCuSeqlensOutOfRange);
  lists.set(2 * 50, 3);  // row 50 has own block 3
  EXPECT_EQ(errors_of(problem.cu_k, lists, 100), kSelectionOutOfRange);
  lists.set(2 * 50, 2);
  EXPECT_EQ(errors_of(problem.cu_k, lists, 100), 0);
}

TEST(MergeOnDevice, AgreesWithTheReference) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device";
  std::mt19937_64 random(std::random_device{}());
  constexpr std::int64_t kRows = 77, kHeads = 3;
  for (const std::int64_t dim : {8, 64, 100, 256}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      std::vector<HostTensor> outs, lses;
      for (int i = 0; i < 5; ++i) {
        outs.push_back(cases::random_tensor(random, i % 2 == 0 ? dtype : DType::kFloat32, {kRows, kHeads, dim}));
        lses.push_back(cases::random_tensor(random, DType::kFloat32, {kHeads, kRows}));
        for (std::int64_t at = i; at < kRows * kHeads; at += 3) lses.back().set(at, -kInfinity);
        for (std::int64_t at = 0; at < kRows * kHeads; at += 10) lses.back().set(at, -kInfinity);
      }
      outs[1].set(0, std::numeric_limits<double>::quiet_NaN());  // row 0 of head 0 is empty in every part
      DeviceContext context;
      std::vector<Partial> parts, device_parts;
      std::vector<std::unique_ptr<DeviceTensor>> device;
      for (std::size_t i = 0; i < outs.size(); ++i) {
        parts.push_back({outs[i].view(), lses[i].view()});
        device.push_back(std::make_unique<DeviceTensor>(context, outs[i]));
        device.push_back(std::make_unique<DeviceTensor>(context, lses[i]));
        device_parts.push_back({device[2 * i]->view(), device[2 * i + 1]->view()});
      }
      SerialContext serial;
      const HostTensor out(dtype, {kRows, kHeads, dim}), lse(DType::kFloat32, {kHeads, kRows});
      reference_backend().merge(serial, {parts, {out.view(), lse.view()}});
      cuda::merge(context, {device_parts, device_parts[0]});  // the result is one of the parts
      const HostTensor actual = out, actual_lse = lse;
      device[0]->read(actual);
      device[1]->read(actual_lse);
      // Results that are nearly the same may round to neighbours: a unit in the last place apart, which is 2^-7 (2^-10)
      // of the power of two below them.
      const double unit = dtype == DType::kBFloat16 ? 0x1p-7 : dtype == DType::kFloat16 ? 0x1p-10 : 0x1p-20;
      EXPECT_TRUE(cases::is_close(actual, out, unit)) << dim;
      EXPECT_TRUE(cases::is_close(actual_lse, lse, 0x1p-20)) << dim;
    }
  }
}

}  // namespace
}  // namespace moba::test
