// Element offsets beyond 2^31: tensors of a few rows that lie 4 GiB apart, in address space that is mostly never
// touched.
#include <sys/mman.h>

#include "cases/compare.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;

/// A bfloat16 tensor [rows, heads, dim] whose rows are 2^31 + 64 elements apart.
class SpreadTensor {
 public:
  explicit SpreadTensor(const HostTensor& source) : view_(source.view()) {
    view_.stride[0] = (std::int64_t{1} << 31) + 64;
    bytes_ = static_cast<std::size_t>(view_.shape[0] * view_.stride[0] * size_of(view_.dtype));
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) return;
    view_.data = memory_;
    const std::int64_t row = view_.shape[1] * view_.shape[2];
    for (std::int64_t i = 0; i < source.numel(); ++i) {
      view_.as<std::uint16_t>()[i / row * view_.stride[0] + i % row] = source.view().as<std::uint16_t>()[i];
    }
  }
  ~SpreadTensor() {
    if (memory_ != MAP_FAILED) munmap(memory_, bytes_);
  }
  SpreadTensor(const SpreadTensor&) = delete;
  SpreadTensor& operator=(const SpreadTensor&) = delete;

  bool mapped() const { return memory_ != MAP_FAILED; }
  const TensorView& view() const { return view_; }
  bool equals(const HostTensor& other) const {
    const std::int64_t row = view_.shape[1] * view_.shape[2];
    for (std::int64_t i = 0; i < other.numel(); ++i) {
      const std::uint16_t mine = view_.as<std::uint16_t>()[i / row * view_.stride[0] + i % row];
      if (mine != other.view().as<std::uint16_t>()[i]) return false;
    }
    return true;
  }

 private:
  TensorView view_;
  std::size_t bytes_ = 0;
  void* memory_ = MAP_FAILED;
};

// Six tokens, two query heads to a key head, blocks of two.
cases::Case six_tokens() {
  cases::Case c;
  c.dtype = DType::kBFloat16;
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = c.value_dim = 16;
  c.options.block_size = 2;
  c.options.top_k = 2;
  c.q_lengths = c.k_lengths = {6};
  return c;
}

class LargeOffsetTest : public BackendTest {};

TEST_P(LargeOffsetTest, RowsFarApartGiveTheBitsOfRowsSideBySide) {
  const cases::Case c = six_tokens();
  const Problem problem(c);
  const cases::Choice choice = cases::choose(context, backend(), problem);
  const cases::Results expected = cases::run(context, backend(), problem, choice.selection);

  const SpreadTensor q(problem.q), k(problem.k), v(problem.v), dout(problem.dout), out(problem.dout), dq(problem.q),
      dk(problem.k), dv(problem.v);
  for (const SpreadTensor* tensor : {&q, &k, &v, &dout, &out, &dq, &dk, &dv}) {
    if (!tensor->mapped()) GTEST_SKIP() << "this system gives no 200 GB of address space";
  }
  HostTensor lse(DType::kFloat32, {2, 6}), list(DType::kInt32, {6, 2, 1});
  Selection selection = choice.selection;
  selection.blocks = list.view();
  select(context, backend(), c.options, q.view(), k.view(), {}, problem.batch(), selection);
  EXPECT_TRUE(cases::same_bits(list, choice.list));
  attend(context, backend(), {q.view(), k.view(), v.view(), problem.batch(), selection, 0.0, {out.view(), lse.view()}});
  EXPECT_TRUE(out.equals(expected.out));
  EXPECT_TRUE(cases::same_bits(lse, expected.lse));
  attend_backward(context, backend(),
                  {q.view(), k.view(), v.view(), problem.batch(), selection, 0.0, out.view(), lse.view(), dout.view(),
                   problem.dlse.view(), dq.view(), dk.view(), dv.view()});
  EXPECT_TRUE(dq.equals(expected.dq));
  EXPECT_TRUE(dk.equals(expected.dk));
  EXPECT_TRUE(dv.equals(expected.dv));
}

// A cache whose tokens and representatives lie as far apart: appended, read, cut and appended again.
TEST_P(LargeOffsetTest, CacheRowsFarApartGiveTheBitsOfRowsSideBySide) {
  const cases::Case c = six_tokens();
  const Problem problem(c);
  HostTensor near_k(DType::kBFloat16, {6, 1, 16}), near_v(DType::kBFloat16, {6, 1, 16});
  HostTensor near_means(DType::kBFloat16, {block_rows(6, 1, 2), 1, 16});
  HostTensor near_sum(DType::kFloat32, {1, 16}), far_sum(DType::kFloat32, {1, 16});
  const SpreadTensor far_k(near_k), far_v(near_v), far_means(near_means);
  for (const SpreadTensor* tensor : {&far_k, &far_v, &far_means}) {
    if (!tensor->mapped()) GTEST_SKIP() << "this system gives no 70 GB of address space";
  }
  KvCache near_cache{near_k.view(), near_v.view(), near_means.view(), near_sum.view(), 2, 0};
  KvCache far_cache{far_k.view(), far_v.view(), far_means.view(), far_sum.view(), 2, 0};
  const auto step = [&](KvCache& cache) {
    append(context, backend(), cache, problem.k.view(), problem.v.view());
    truncate(context, backend(), cache, 3);
    TensorView k = problem.k.view(), v = problem.v.view();
    k.shape[0] = v.shape[0] = 3;
    append(context, backend(), cache, k, v);
    HostTensor out(DType::kBFloat16, {6, 2, 16}), lse(DType::kFloat32, {2, 6});
    attend_cached(context, backend(), cache, c.options, problem.q.view(), {out.view(), lse.view()});
    return out;
  };
  const HostTensor expected = step(near_cache), out = step(far_cache);
  EXPECT_TRUE(cases::same_bits(out, expected));
  EXPECT_TRUE(far_k.equals(near_k));
  EXPECT_TRUE(far_v.equals(near_v));
  EXPECT_TRUE(far_means.equals(near_means));
}

INSTANTIATE_TEST_SUITE_P(All, LargeOffsetTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
