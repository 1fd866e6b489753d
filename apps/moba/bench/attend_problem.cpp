#include "bench/attend_problem.h"

#include <algorithm>

#include <fmt/format.h>

#include "bench/ceiling.h"
#include "bench/reference_rows.h"
#include "bindings/torch/operators.h"
#include "lm/util/device.h"
#include "moba/error.h"

namespace moba::app {
namespace {

torch::Tensor packed_to_dense(const torch::Tensor& packed) {
  return packed.transpose(0, 1).unsqueeze(0).contiguous();
}

}  // namespace

double tolerance_of(const std::string& dtype) {
  if (dtype == "fp32") return 1e-4;
  return dtype == "fp16" ? 5e-3 : 3e-2;
}

torch::Dtype dtype_of(const std::string& name) {
  if (name == "fp32") return torch::kFloat32;
  return name == "fp16" ? torch::kFloat16 : torch::kBFloat16;
}

AttentionOptions AttendCase::options() const {
  AttentionOptions options{.kind = kind_from_name(kind), .block_size = block_size, .top_k = top_k};
  gate.apply(options);
  return options;
}

std::string AttendCase::text() const {
  return fmt::format("{} {} n={} heads={}/{} d={} B={} k={} {}{}", kind, pass, n, heads, kv_heads, head_dim, block_size,
                     top_k, dtype, gate.command_line());
}

AttendProblem::AttendProblem(const AttendCase& wanted, torch::Device device) : case_(wanted), device_(device) {
  torch::manual_seed(20250218);
  const auto draw = [&](std::int64_t rows, std::int64_t heads) {
    return torch::randn({rows, heads, case_.head_dim}, torch::kFloat32).to(device_, dtype_of(case_.dtype));
  };
  const bool decode = case_.pass == "decode";
  const std::int64_t rows = decode ? 1 : case_.n;
  q_ = draw(rows, case_.heads);
  k_ = draw(case_.n, case_.kv_heads);
  v_ = draw(case_.n, case_.kv_heads);
  if (!decode) {
    dense_q_ = packed_to_dense(q_);
    dense_k_ = packed_to_dense(k_);
    dense_v_ = packed_to_dense(v_);
  }
  const torch::Tensor offsets = torch::tensor({std::int64_t{0}, case_.n}, torch::kInt64).to(device_, torch::kInt32);
  batch_ = torch_ops::SequenceBatch::self(offsets, case_.n);
  if (decode) {
    // Together more than four last-level caches, as far as 16 of them reach.
    const std::int64_t count = 4 * last_level_cache() / static_cast<std::int64_t>(k_.nbytes() + v_.nbytes()) + 1;
    for (std::int64_t i = 0; i < std::clamp<std::int64_t>(count, 2, 16); ++i) {
      const torch::Tensor k = i == 0 ? k_ : draw(case_.n, case_.kv_heads);
      const torch::Tensor v = i == 0 ? v_ : draw(case_.n, case_.kv_heads);
      caches_.push_back(
          {torch_ops::KvCache(case_.n, case_.kv_heads, case_.head_dim, case_.head_dim, case_.options(), k_.options()),
           packed_to_dense(k), packed_to_dense(v)});
      caches_.back().cache.append(k, v);
    }
    constexpr std::int64_t kQueries = 64;
    queries_ = draw(kQueries, case_.heads);
  }
  if (case_.has_gradients()) {
    dout_ = draw(rows, case_.heads);
    dense_dout_ = packed_to_dense(dout_);
    for (torch::Tensor* tensor : {&q_, &k_, &v_, &dense_q_, &dense_k_, &dense_v_}) tensor->requires_grad_(true);
  }
}

std::tuple<torch::Tensor, torch::Tensor> AttendProblem::moba() const {
  if (!caches_.empty()) return caches_.front().cache.attend(q_, case_.options());
  return torch_ops::attention(q_, k_, v_, batch_, case_.options());
}

torch::Tensor AttendProblem::query(std::size_t turn) const {
  return queries_.narrow(0, static_cast<std::int64_t>(turn) % queries_.size(0), 1);
}

torch::Tensor AttendProblem::dense() const {
  return at::scaled_dot_product_attention(dense_q_, dense_k_, dense_v_, std::nullopt, 0.0, /*is_causal=*/true,
                                          std::nullopt, /*enable_gqa=*/case_.heads != case_.kv_heads);
}

template <class Forward>
void AttendProblem::differentiate(torch::Tensor& kept, const Forward& forward, const std::vector<torch::Tensor>& inputs,
                                  const torch::Tensor& dout) const {
  const bool keeps = case_.pass == "bwd";
  if (!keeps || !kept.defined()) kept = forward();
  torch::autograd::grad({kept}, inputs, {dout}, /*retain_graph=*/keeps);
}

torch::Tensor AttendProblem::portable() const {
  using torch_ops::Variant;
  torch::Tensor blocks;
  {
    const torch::NoGradGuard no_gradient_through_the_choice;
    blocks = torch_ops::call_select(q_, k_, batch_, case_.options(), Variant::kPortable);
  }
  return std::get<0>(torch_ops::attend_operator(Variant::kPortable)
                         .call(q_, k_, v_, batch_.cu_seqlens_q, batch_.cu_seqlens_k, case_.n, case_.n, "list",
                               case_.block_size, 0, 0, blocks, 0.0));
}

void AttendProblem::run_portable() const {
  if (case_.has_gradients()) {
    differentiate(
        portable_out_, [&] { return portable(); }, {q_, k_, v_}, dout_);
  } else {
    const torch::NoGradGuard no_gradients;
    portable();
  }
}

void AttendProblem::run_moba() const {
  if (!caches_.empty()) {
    const std::size_t turn = moba_turn_++;
    const torch::NoGradGuard no_gradients;
    caches_[turn % caches_.size()].cache.attend(query(turn), case_.options());
  } else if (case_.has_gradients()) {
    differentiate(
        moba_out_, [&] { return std::get<0>(moba()); }, {q_, k_, v_}, dout_);
  } else {
    const torch::NoGradGuard no_gradients;
    moba();
  }
}

void AttendProblem::run_dense() const {
  if (!caches_.empty()) {
    const std::size_t turn = dense_turn_++;
    const DecodeCache& cache = caches_[turn % caches_.size()];
    const torch::NoGradGuard no_gradients;
    at::scaled_dot_product_attention(packed_to_dense(query(turn)), cache.dense_k, cache.dense_v, std::nullopt, 0.0,
                                     /*is_causal=*/false, std::nullopt,
                                     /*enable_gqa=*/case_.heads != case_.kv_heads);
  } else if (case_.has_gradients()) {
    differentiate(
        dense_out_, [&] { return dense(); }, {dense_q_, dense_k_, dense_v_}, dense_dout_);
  } else {
    const torch::NoGradGuard no_gradients;
    dense();
  }
}

void AttendProblem::wait() const {
  lm::synchronize(device_);
}

double AttendProblem::verify() const {
  double error = 0;
  {
    const torch::NoGradGuard no_gradients;
    const auto [out, lse] = moba();
    error = verify_forward(out, lse);
  }
  if (case_.has_gradients()) error = std::max(error, verify_backward());
  const double tolerance = tolerance_of(case_.dtype);
  // Written so that NaN fails.
  if (!(error <= tolerance)) {
    throw Error(
        ErrorCode::kMismatch,
        fmt::format("{}: the result differs from the reference by {:.3g} of its greatest value, more than {:g}; "
                    "a wrong answer is not timed",
                    case_.text(), error, tolerance));
  }
  return error;
}

double AttendProblem::verify_forward(const torch::Tensor& out, const torch::Tensor& lse) const {
  double error = 0;
  for (const RowRange& rows : sampled_rows(case_.n, case_.pass == "decode")) {
    for (std::int64_t head : {std::int64_t{0}, case_.heads - 1}) {
      const std::int64_t first = case_.pass == "decode" ? 0 : rows.begin;
      const AttentionOptions options = case_.options();
      const ReferenceRows expected =
          reference_forward(problem_rows(q_, k_, v_, rows, head, first, options), options.softmax_scale);
      error = std::max(error, relative_error(out.narrow(0, first, rows.count).select(1, head), expected.out));
      error = std::max(error, relative_error(lse.select(0, head).narrow(0, first, rows.count), expected.lse));
    }
  }
  return error;
}

double AttendProblem::verify_backward() const {
  // With a gradient that is zero but on the sampled rows, the reference needs those rows only, and still every element
  // of dk and dv is checked.
  const std::vector<RowRange> ranges = sampled_rows(case_.n, false);
  torch::Tensor dout = torch::zeros_like(dout_);
  for (const RowRange& rows : ranges)
    dout.narrow(0, rows.begin, rows.count).copy_(dout_.narrow(0, rows.begin, rows.count));
  const std::vector<torch::Tensor> got = torch::autograd::grad({std::get<0>(moba())}, {q_, k_, v_}, {dout});

  const torch::NoGradGuard no_gradients;
  double error = 0;
  const AttentionOptions options = case_.options();
  const std::int64_t group = case_.heads / case_.kv_heads;
  for (std::int64_t kv_head : {std::int64_t{0}, case_.kv_heads - 1}) {
    torch::Tensor dk = torch::zeros({case_.n, case_.head_dim}, torch::kFloat64);
    torch::Tensor dv = torch::zeros_like(dk);
    for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (const RowRange& rows : ranges) {
        const ReferenceGradients expected =
            reference_backward(problem_rows(q_, k_, v_, rows, head, rows.begin, options),
                               dout.narrow(0, rows.begin, rows.count).select(1, head), options.softmax_scale);
        error = std::max(error, relative_error(got[0].narrow(0, rows.begin, rows.count).select(1, head), expected.dq));
        dk.narrow(0, 0, expected.dk.size(0)).add_(expected.dk);
        dv.narrow(0, 0, expected.dv.size(0)).add_(expected.dv);
      }
    }
    error = std::max(error, relative_error(got[1].select(1, kv_head), dk));
    error = std::max(error, relative_error(got[2].select(1, kv_head), dv));
  }
  return error;
}

}  // namespace moba::app
