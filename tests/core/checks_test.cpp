// Every argument check: the message names the argument, its value and a remedy, and nothing is written.
#include <cmath>
#include <functional>
#include <limits>

#include "cases/compare.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;

/// All arguments of a forward and backward call over memory that is big enough; a test breaks one of them.
struct Call {
  Problem problem{cases::case_named("mixed_lengths")};
  cases::Choice choice;
  HostTensor out, lse, dq, dk, dv;
  AttendArgs attend;
  AttendBackwardArgs backward;

  explicit Call(Context& context) {
    choice = cases::choose(context, reference_backend(), problem);
    cases::Results r = cases::run(context, reference_backend(), problem, choice.selection);
    out = r.out, lse = r.lse, dq = r.dq, dk = r.dk, dv = r.dv;
    attend = {problem.q.view(),        problem.k.view(), problem.v.view(), problem.batch(), choice.selection, 0.0,
              {out.view(), lse.view()}};
    backward = {attend.q,  attend.k,   attend.v,   attend.batch,        attend.selection,
                0.0,       out.view(), lse.view(), problem.dout.view(), problem.dlse.view(),
                dq.view(), dk.view(),  dv.view()};
  }
};

void expect_error(const std::function<void()>& body, ErrorCode code, const std::vector<std::string>& parts) {
  try {
    body();
    ADD_FAILURE() << "no error; expected one that says " << parts.front();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what() << " lacks " << part;
    }
  }
}

class ChecksTest : public BackendTest {
 protected:
  /// What attend says after `change`; attend_backward, whose arguments begin alike, must say it too.
  void expect_both(const std::function<void(AttendArgs&)>& change, ErrorCode code,
                   const std::vector<std::string>& parts) {
    Call call(context);
    AttendArgs args = call.attend;
    change(args);
    SCOPED_TRACE(parts.front());
    expect_error([&] { attend(context, backend(), args); }, code, parts);
    AttendBackwardArgs back = call.backward;
    back.q = args.q, back.k = args.k, back.v = args.v, back.batch = args.batch, back.selection = args.selection;
    back.softmax_scale = args.softmax_scale;
    expect_error([&] { attend_backward(context, backend(), back); }, code, parts);
  }
  void expect_invalid(const std::function<void(AttendArgs&)>& change, const std::vector<std::string>& parts) {
    expect_both(change, ErrorCode::kInvalidArgument, parts);
  }
  void expect_backward(const std::function<void(AttendBackwardArgs&)>& change, const std::vector<std::string>& parts) {
    Call call(context);
    AttendBackwardArgs args = call.backward;
    change(args);
    expect_error([&] { attend_backward(context, backend(), args); }, ErrorCode::kInvalidArgument, parts);
  }
};

TEST_P(ChecksTest, Shapes) {
  expect_invalid([](AttendArgs& a) { a.q = {}; }, {"q is absent"});
  expect_invalid([](AttendArgs& a) { a.q.rank = 2; }, {"rank of q is 2", "[Tq, H, D]"});
  expect_invalid([](AttendArgs& a) { a.k = {}; }, {"k is absent"});
  expect_invalid([](AttendArgs& a) { a.v.rank = 1; }, {"rank of v is 1"});
  expect_invalid([](AttendArgs& a) { a.k.shape[2] = 32; }, {"shape of k is [370, 2, 32]", "64"});
  expect_invalid([](AttendArgs& a) { a.v.shape[0] = 340; }, {"shape of v is [340, 2, 64]"});
  expect_invalid([](AttendArgs& a) { a.v.shape[1] = 1; }, {"shape of v is [370, 1, 64]"});
  expect_invalid([](AttendArgs& a) { a.q.shape[0] = -1; }, {"shape of q is [-1, 4, 64]"});
  expect_invalid([](AttendArgs& a) { a.q.data = nullptr; }, {"data of q is null"});
  expect_invalid([](AttendArgs& a) { a.q.stride[2] = 2; }, {"stride of the last axis of q is 2", "contiguous"});
  expect_invalid([](AttendArgs& a) { a.v.stride[2] = 0; }, {"stride of the last axis of v is 0"});
}

TEST_P(ChecksTest, HeadsAndDims) {
  expect_invalid([](AttendArgs& a) { a.q.shape[1] = 3; }, {"number of heads of q is 3", "multiple", "2"});
  expect_invalid([](AttendArgs& a) { a.q.shape[1] = 0; }, {"number of heads of q is 0"});
  expect_invalid([](AttendArgs& a) { a.k.shape[1] = a.v.shape[1] = 0; }, {"number of heads of k is 0"});
  expect_invalid([](AttendArgs& a) { a.q.shape[2] = a.k.shape[2] = 7; },
                 {"head dim (last axis) of q is 7", "between 8 and 256"});
  expect_invalid([](AttendArgs& a) { a.q.shape[2] = a.k.shape[2] = 257; }, {"head dim (last axis) of q is 257"});
  expect_invalid([](AttendArgs& a) { a.v.shape[2] = 7; }, {"value dim (last axis) of v is 7"});
  expect_invalid([](AttendArgs& a) { a.v.shape[2] = 300; }, {"value dim (last axis) of v is 300"});
}

TEST_P(ChecksTest, DTypes) {
  expect_invalid([](AttendArgs& a) { a.k.dtype = DType::kBFloat16; }, {"dtype of k is bfloat16", "float32"});
  expect_invalid([](AttendArgs& a) { a.v.dtype = DType::kFloat16; }, {"dtype of v is float16"});
  expect_both([](AttendArgs& a) { a.q.dtype = DType::kInt32; }, ErrorCode::kUnsupported,
              {"q has dtype int32", backend().name(), "supports", "float32, bfloat16, float16"});
  if (!backend().supports(DType::kFloat64)) {
    expect_both([](AttendArgs& a) { a.q.dtype = DType::kFloat64; }, ErrorCode::kUnsupported,
                {"q has dtype float64", "reference_backend()"});
  }
}

TEST_P(ChecksTest, Devices) {
  const Device cuda{DeviceKind::kCuda, 1};
  for (int which = 0; which < 5; ++which) {
    const char* const names[] = {"q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"};
    expect_both(
        [&](AttendArgs& a) {
          ConstTensorView* const views[] = {&a.q, &a.k, &a.v, &a.batch.cu_seqlens_q, &a.batch.cu_seqlens_k};
          views[which]->device = cuda;
        },
        ErrorCode::kUnsupported, {std::string(names[which]) + " is on CUDA device 1", "moba::torch_ops::attention"});
  }
}

TEST_P(ChecksTest, Batch) {
  expect_invalid([](AttendArgs& a) { a.batch.cu_seqlens_q = {}; }, {"cu_seqlens_q is absent"});
  expect_invalid([](AttendArgs& a) { a.batch.cu_seqlens_k.rank = 2; }, {"rank of cu_seqlens_k is 2"});
  expect_invalid([](AttendArgs& a) { a.batch.cu_seqlens_k.dtype = DType::kFloat32; },
                 {"dtype of cu_seqlens_k is float32", "int32 or int64"});
  expect_invalid([](AttendArgs& a) { a.batch.cu_seqlens_k.shape[0] = 0; }, {"length of cu_seqlens_k is 0"});
  expect_invalid([](AttendArgs& a) { a.batch.cu_seqlens_q.shape[0] = 3; },
                 {"length of cu_seqlens_q is 3", "cu_seqlens_k, 7"});
  expect_invalid([](AttendArgs& a) { a.batch.cu_seqlens_q.data = nullptr; }, {"data of cu_seqlens_q is null"});
  expect_invalid([](AttendArgs& a) { a.batch.max_seqlen_q = 0; }, {"max_seqlen_q is 0"});
  expect_invalid([](AttendArgs& a) { a.batch.max_seqlen_k = -4; }, {"max_seqlen_k is -4"});
}

TEST_P(ChecksTest, Selections) {
  expect_invalid([](AttendArgs& a) { a.selection.block_size = 0; }, {"block_size is 0", "at least 1"});
  expect_invalid([](AttendArgs& a) { a.selection.blocks = {}; }, {"selection.blocks is absent"});
  expect_invalid([](AttendArgs& a) { a.selection.blocks.shape[0] = 100; }, {"shape of selection.blocks is [100, 4, "});
  expect_invalid([](AttendArgs& a) { a.selection.blocks.shape[1] = 3; },
                 {"number of selection heads", "is 3", "H = 4, HK = 2 or 1"});
  expect_invalid([](AttendArgs& a) { a.selection.blocks.dtype = DType::kInt64; },
                 {"dtype of selection.blocks is int64", "int32"});
  expect_both([](AttendArgs& a) { a.selection.row_tile = 64; }, ErrorCode::kUnsupported, {"selection.row_tile is 64"});
  expect_invalid([](AttendArgs& a) { a.selection = {}, a.selection.kind = SelectionKind::kSpan; },
                 {"selection.window is 0"});
  expect_invalid(
      [](AttendArgs& a) {
        a.selection = {};
        a.selection.kind = SelectionKind::kSpan;
        a.selection.window = 3;
        a.selection.sink = -1;
      },
      {"selection.sink is -1"});
}

TEST_P(ChecksTest, Scale) {
  for (double scale : {-1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    expect_invalid([&](AttendArgs& a) { a.softmax_scale = scale; }, {"softmax_scale is", "positive and finite"});
  }
}

TEST_P(ChecksTest, Outputs) {
  Call call(context);
  const auto expect_attend = [&](const std::function<void(AttendArgs&)>& change,
                                 const std::vector<std::string>& parts) {
    AttendArgs args = call.attend;
    change(args);
    expect_error([&] { attend(context, backend(), args); }, ErrorCode::kInvalidArgument, parts);
  };
  expect_attend([](AttendArgs& a) { a.result.out = {}; }, {"out is absent"});
  expect_attend([](AttendArgs& a) { a.result.out.shape[2] = 32; }, {"shape of out is"});
  expect_attend([](AttendArgs& a) { a.result.out.dtype = DType::kBFloat16; }, {"dtype of out is bfloat16"});
  expect_attend([](AttendArgs& a) { a.result.out.stride[0] = 0; }, {"stride of axis 0 of out is 0", "broadcast"});
  expect_attend([](AttendArgs& a) { a.result.lse.shape[0] = 2; }, {"shape of lse is"});
  expect_attend([](AttendArgs& a) { a.result.lse.dtype = DType::kFloat64; }, {"dtype of lse is float64", "float32"});

  expect_backward([](AttendBackwardArgs& a) { a.out.shape[0] = 1; }, {"shape of out is"});
  expect_backward([](AttendBackwardArgs& a) { a.lse = {}; }, {"lse is absent"});
  expect_backward([](AttendBackwardArgs& a) { a.dout.dtype = DType::kBFloat16; }, {"dtype of dout is bfloat16"});
  expect_backward([](AttendBackwardArgs& a) { a.dlse.shape[1] = 5; }, {"shape of dlse is"});
  expect_backward([](AttendBackwardArgs& a) { a.dq.stride[1] = 0; }, {"stride of axis 1 of dq is 0"});
  expect_backward([](AttendBackwardArgs& a) { a.dk = {}; }, {"dk is absent"});
  expect_backward([](AttendBackwardArgs& a) { a.dv.shape[2] = 8; }, {"shape of dv is"});
}

TEST_P(ChecksTest, PoolScoreSelectInvertMerge) {
  Call call(context);
  const Problem& p = call.problem;
  const std::int64_t rows = block_rows(p.keys(), p.batch().sequences(), 32);
  HostTensor representatives(DType::kFloat32, {rows, 2, 64}), scores(DType::kFloat32, {p.rows(), 4, 5});
  const PoolArgs pool_args{p.k.view(), p.batch(), 32, representatives.view()};
  PoolArgs bad_pool = pool_args;
  bad_pool.representatives.shape[0] -= 1;
  expect_error([&] { pool(context, backend(), bad_pool); }, ErrorCode::kInvalidArgument,
               {"shape of representatives is"});
  bad_pool = pool_args;
  bad_pool.block_size = -2;
  expect_error([&] { pool(context, backend(), bad_pool); }, ErrorCode::kInvalidArgument, {"block_size is -2"});
  pool(context, backend(), pool_args);

  ScoreArgs score_args{p.q.view(), representatives.view(), p.batch(), 32, scores.view()};
  score(context, backend(), score_args);
  score_args.scores.shape[2] = 4;
  expect_error([&] { score(context, backend(), score_args); }, ErrorCode::kInvalidArgument, {"shape of scores is"});
  score_args = {p.q.view(), representatives.view(), p.batch(), 32, scores.view()};
  score_args.representatives.shape[0] = 3;
  expect_error([&] { score(context, backend(), score_args); }, ErrorCode::kInvalidArgument,
               {"number of rows of representatives is 3", "6 sequences"});

  Selection selection = call.choice.selection;
  selection.blocks.shape[1] = 3;
  expect_error([&] { select(context, backend(), p.options, p.q.view(), p.k.view(), {}, p.batch(), selection); },
               ErrorCode::kInvalidArgument, {"selection heads"});
  selection = call.choice.selection;
  selection.blocks.data = nullptr;
  expect_error([&] { select(context, backend(), p.options, p.q.view(), p.k.view(), {}, p.batch(), selection); },
               ErrorCode::kInvalidArgument, {"data of selection.blocks is null"});

  HostTensor offsets(DType::kInt64, {4 * rows + 1}), entries(DType::kInt32, {call.choice.list.numel(), 2});
  InvertArgs invert_args{p.batch(), call.choice.selection, p.rows(), p.keys(), {offsets.view(), entries.view()}};
  invert(context, backend(), invert_args);
  invert_args.inverse.offsets.shape[0] -= 1;
  expect_error([&] { invert(context, backend(), invert_args); }, ErrorCode::kInvalidArgument,
               {"shape of inverse.offsets is"});
  invert_args = {p.batch(), {}, p.rows(), p.keys(), {offsets.view(), entries.view()}};
  expect_error([&] { invert(context, backend(), invert_args); }, ErrorCode::kInvalidArgument, {"selection.kind"});

  Partial part = call.attend.result;
  part.lse.shape[1] = 1;
  std::vector<Partial> parts = {call.attend.result, part};
  expect_error(
      [&] {
        merge(context, backend(), {parts, call.attend.result});
      },
      ErrorCode::kInvalidArgument, {"shape of parts[1].lse is"});
}

TEST_P(ChecksTest, Options) {
  Call call(context);
  const Problem& p = call.problem;
  const auto expect_options = [&](const std::function<void(AttentionOptions&)>& change,
                                  const std::vector<std::string>& parts) {
    AttentionOptions options = p.options;
    change(options);
    expect_error(
        [&] {
          attention(context, backend(), options, p.q.view(), p.k.view(), p.v.view(), p.batch(), call.attend.result);
        },
        ErrorCode::kInvalidArgument, parts);
  };
  expect_options([](AttentionOptions& o) { o.block_size = 0; }, {"block_size is 0"});
  expect_options([](AttentionOptions& o) { o.top_k = 0; }, {"top_k is 0", "own block"});
  expect_options([](AttentionOptions& o) { o.kind = Kind::kWindow; }, {"window is 0"});
  expect_options([](AttentionOptions& o) { o.kind = Kind::kWindow, o.window = 4, o.sink = -3; }, {"sink is -3"});
  expect_options([](AttentionOptions& o) { o.softmax_scale = -2; }, {"softmax_scale is -2"});
  expect_options([](AttentionOptions& o) { o.kind = static_cast<Kind>(77); }, {"kind is 77"});
}

// attention() is plan, select and attend.
TEST_P(ChecksTest, AttentionIsItsParts) {
  for (const char* name : {"mixed_lengths", "full", "window_with_sink", "compat_top_k_1", "own_block_only"}) {
    const Problem p(cases::case_named(name, DType::kBFloat16));
    const cases::Results expected = cases::run(context, backend(), p, false);
    HostTensor out(DType::kBFloat16, {p.rows(), p.heads(), p.value_dim()}), lse(DType::kFloat32, {p.heads(), p.rows()});
    attention(context, backend(), p.options, p.q.view(), p.k.view(), p.v.view(), p.batch(), {out.view(), lse.view()});
    EXPECT_TRUE(cases::same_bits(out, expected.out)) << name;
    EXPECT_TRUE(cases::same_bits(lse, expected.lse)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ChecksTest, ::testing::ValuesIn(backends()), backend_name);

TEST(OptionsTest, KindsHaveNames) {
  for (Kind kind : {Kind::kFull, Kind::kWindow, Kind::kMoba}) EXPECT_EQ(kind_from_name(name_of(kind)), kind);
  expect_error([] { kind_from_name("nsa"); }, ErrorCode::kInvalidArgument, {"'nsa'", "full, window, moba"});
}

TEST(OptionsTest, ListsAreNoWiderThanTheSequence) {
  AttentionOptions options;
  options.block_size = 512;
  options.top_k = std::numeric_limits<std::int64_t>::max();
  for (const auto& [length, budget] : {std::pair{0, 0}, {1, 0}, {512, 0}, {513, 1}, {1024, 1}, {1025, 2}}) {
    EXPECT_EQ(plan_selection(options, 10, 4, 2, length).budget(), budget) << length;
  }
  options.top_k = 3;
  EXPECT_EQ(plan_selection(options, 10, 4, 2).budget(), 2);
}

}  // namespace
}  // namespace moba::test
