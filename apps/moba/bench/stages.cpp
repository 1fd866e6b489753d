#include "bench/stages.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "bench/timing.h"
#include "bindings/torch/core.h"
#include "bindings/torch/native.h"
#include "lm/util/device.h"
#include "moba/error.h"
#include "moba/pipeline.h"

namespace moba::app {

using torch_ops::view_of;

namespace {

/// (row, key) pairs of one query head, and (row, past block) pairs.
struct Pairs {
  double keys = 0, blocks = 0;
};

Pairs count_pairs(const AttendCase& problem, std::int64_t rows) {
  Pairs pairs;
  for (std::int64_t position = problem.n - rows; position < problem.n; ++position) {
    if (problem.kind == "full") {
      pairs.keys += static_cast<double>(position + 1);
      continue;
    }
    const std::int64_t past = position / problem.block_size;
    pairs.blocks += static_cast<double>(past);
    pairs.keys +=
        static_cast<double>(std::min(problem.top_k - 1, past) * problem.block_size + position % problem.block_size + 1);
  }
  return pairs;
}

double gbyte(std::initializer_list<torch::Tensor> tensors) {
  double bytes = 0;
  for (const torch::Tensor& tensor : tensors) bytes += static_cast<double>(tensor.nbytes());
  return 1e-9 * bytes;
}

void check_stages(const AttendCase& problem, torch::Device device) {
  if (!device.is_cuda()) return;
  std::optional<std::string> reason = torch_ops::native_device_problem(device.index());
  if (!reason && problem.kind != "moba") reason = "kind '" + problem.kind + "' is torch's own kernel on CUDA";
  if (!reason) {
    reason = torch_ops::native_limit(
        {dtype_of(problem.dtype), problem.head_dim, problem.head_dim, problem.block_size, problem.top_k - 1});
  }
  if (reason) {
    throw Error(ErrorCode::kUnsupported,
                "--stages times the native kernels, and they are not for this: " + *reason + ". Leave --stages out.");
  }
}

}  // namespace

std::vector<Stage> measure_stages(const AttendCase& problem, torch::Device device, int repeats) {
  const torch::NoGradGuard no_gradients;
  check_stages(problem, device);
  torch::manual_seed(20250218);
  constexpr std::int64_t kQueries = 64;  // of decode, taken in turns
  const bool decode = problem.pass == "decode";
  const std::int64_t rows = decode ? 1 : problem.n, calls = decode ? 10 * repeats : repeats;
  const auto draw = [&](std::int64_t count, std::int64_t heads) {
    return torch::randn({count, heads, problem.head_dim}, torch::kFloat32).to(device, dtype_of(problem.dtype));
  };
  const torch::Tensor queries = draw(decode ? kQueries : rows, problem.heads);
  const torch::Tensor k = draw(problem.n, problem.kv_heads), v = draw(problem.n, problem.kv_heads);
  const auto query = [&](std::int64_t turn) { return decode ? queries.narrow(0, turn % kQueries, 1) : queries; };
  const torch::Tensor out = torch::empty_like(query(0)), lse = torch::empty({problem.heads, rows}, device);
  const torch::Tensor offsets_q = torch::tensor({std::int64_t{0}, rows}, torch::kInt64).to(device);
  const torch::Tensor offsets_k = torch::tensor({std::int64_t{0}, problem.n}, torch::kInt64).to(device);
  const PackedBatch batch{view_of(offsets_q), view_of(offsets_k), rows, problem.n};

  // A GPU's verbs are issued one behind the other: waiting for each would count the host's way there and back.
  const auto wait = [&] { lm::synchronize(device); };
  const auto timed = [&](std::int64_t count, const auto& work) {
    wait();
    return device_milliseconds(device.is_cuda(), static_cast<int>(count), work, wait);
  };

  torch_ops::Engine engine(k);
  Context& context = engine.context();
  const Backend& backend = engine.backend();
  const AttentionOptions options = problem.options();
  Selection selection = plan_selection(options, rows, problem.heads, problem.kv_heads, problem.n);
  const Pairs pairs = count_pairs(problem, rows);
  const double heads = static_cast<double>(problem.heads), dim = static_cast<double>(problem.head_dim);
  std::vector<Stage> stages;
  torch::Tensor representatives, blocks;
  if (selection.kind == SelectionKind::kList) {
    representatives =
        torch::empty({block_rows(problem.n, 1, problem.block_size), problem.kv_heads, problem.head_dim},
                     options.representative_dtype == RepresentativeDType::kFloat32 ? k.options().dtype(torch::kFloat32)
                                                                                   : k.options());
    blocks = torch::empty({rows, selection.selection_heads(), selection.budget()},
                          torch::TensorOptions(torch::kInt32).device(device));
    selection.blocks = view_of(blocks);
    const auto pooled = [&](std::int64_t) {
      pool(context, backend, {view_of(k), batch, problem.block_size, view_of(representatives)});
    };
    pooled(0);
    // A cache keeps its representatives; one shot pools them anew.
    if (!decode) {
      stages.push_back({"pool", timed(repeats, pooled), 0, gbyte({k, representatives})});
    }
    const auto choose = [&](std::int64_t turn) {
      const torch::Tensor q = query(turn);
      select(context, backend, options, view_of(q), view_of(k), view_of(representatives), batch, selection);
    };
    choose(0);
    stages.push_back({"select", timed(calls, choose), 2e-9 * pairs.blocks * heads * dim,
                      gbyte({query(0), representatives, blocks})});
  }
  const auto attended = [&](std::int64_t turn) {
    const torch::Tensor q = query(turn);
    attend(context, backend,
           {view_of(q), view_of(k), view_of(v), batch, selection, options.softmax_scale, {view_of(out), view_of(lse)}});
  };
  attended(0);
  // Decode reads the keys of every key/value head that one of its query heads sees: at least those of one of them.
  const double seen = 2e-9 * pairs.keys * static_cast<double>(problem.kv_heads * k.element_size()) * dim;
  double attend_ms = 0;
  if (decode) {  // other queries want other blocks; the choice is not timed
    std::vector<double> times;
    for (std::int64_t turn = 0; turn < calls; ++turn) {
      if (blocks.defined()) {
        const torch::Tensor q = query(turn);
        select(context, backend, options, view_of(q), view_of(k), view_of(representatives), batch, selection);
      }
      times.push_back(timed(1, [&](std::int64_t) { attended(turn); }));
    }
    attend_ms = median(std::move(times));
  } else {
    attend_ms = timed(repeats, attended);
  }
  // Written once and read once, beside the gathered query.
  const double partials =
      device.is_cuda() && blocks.defined() ? 3e-9 * static_cast<double>(blocks.numel() * k.element_size()) * dim : 0;
  stages.push_back(
      {"attend", attend_ms, 4e-9 * pairs.keys * heads * dim, decode ? seen : gbyte({queries, k, v, out}) + partials});

  if (problem.has_gradients()) {
    const torch::Tensor dout = draw(rows, problem.heads);
    const torch::Tensor dq = torch::empty_like(queries), dk = torch::empty_like(k), dv = torch::empty_like(v);
    const auto backward = [&](std::int64_t) {
      attend_backward(context, backend,
                      {view_of(queries),
                       view_of(k),
                       view_of(v),
                       batch,
                       selection,
                       options.softmax_scale,
                       view_of(out),
                       view_of(lse),
                       view_of(dout),
                       {},
                       view_of(dq),
                       view_of(dk),
                       view_of(dv)});
    };
    backward(0);
    stages.push_back({"attend_backward", timed(repeats, backward), 10e-9 * pairs.keys * heads * dim,
                      gbyte({queries, k, v, out, dout, dq, dk, dv}) + partials * 4 / 3});
  }
  return stages;
}

namespace {

std::string rate_text(double gflops) {
  constexpr double kTera = 1000;
  return gflops >= 10 * kTera ? fmt::format("{:.1f} TFLOP/s", gflops / kTera) : fmt::format("{:.1f} GFLOP/s", gflops);
}

}  // namespace

std::string stage_table(const std::vector<Stage>& stages, const Ceiling& ceiling) {
  double total = 0;
  for (const Stage& stage : stages) total += stage.ms;
  std::string table;
  for (const Stage& stage : stages) {
    table += fmt::format(
        "    {:<16} {:>10.3f} ms {:>4.0f}%  {:>14} {:>4.0f}% of the matrix rate  {:>6.1f} GB/s "
        "{:>4.0f}% of the read rate  {:>5.1f}x its floor\n",
        stage.verb, stage.ms, 100 * stage.ms / total, rate_text(stage.gflops()),
        100 * stage.gflops() / ceiling.gemm_gflops, stage.gbs(), 100 * stage.gbs() / ceiling.read_gbs,
        stage.over_floor(ceiling));
  }
  return table;
}

nlohmann::ordered_json to_json(const std::vector<Stage>& stages, const Ceiling& ceiling) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Stage& stage : stages) {
    json.push_back({{"verb", stage.verb},
                    {"ms", stage.ms},
                    {"gflops", stage.gflops()},
                    {"gemm_share", stage.gflops() / ceiling.gemm_gflops},
                    {"gbs", stage.gbs()},
                    {"read_share", stage.gbs() / ceiling.read_gbs},
                    {"over_floor", stage.over_floor(ceiling)}});
  }
  return json;
}

}  // namespace moba::app
