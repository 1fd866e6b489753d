// moba check: MoBA with every block chosen must be full attention, on a model's own tensors; and how much of the full
// attention the choice of blocks catches.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "common/attention_choice.h"
#include "common/command.h"
#include "common/errors.h"
#include "common/json_file.h"
#include "common/limits.h"
#include "common/machine.h"
#include "common/model_choice.h"
#include "common/output.h"
#include "common/progress.h"
#include "common/text_files.h"
#include "lm/model/layer.h"
#include "lm/model/plan.h"
#include "lm/util/files.h"
#include "moba/error.h"
#include "moba_torch/diagnose.h"
#include "moba_torch/self_check.h"

namespace moba::app {
namespace {

struct CheckFlags {
  ModelChoice model;
  std::string text;
  std::int64_t length = 2048;
  std::int64_t block_size = 0, top_k = 0;  // 0: that of the layer's plan
  GateFlags gate;                          // where none is given: those of the layer's plan
  std::string json;
};

bool all_finite(const lm::AttentionInputs& inputs) {
  return inputs.q.isfinite().all().item<bool>() && inputs.k.isfinite().all().item<bool>() &&
         inputs.v.isfinite().all().item<bool>();
}

struct LayerResult {
  std::int64_t layer = 0;
  std::int64_t block_size = 0;
  SelfCheckReport report;
  bool finite = true;
  std::string choice = {};           // "moba(64,3)"
  std::vector<double> of_head = {};  // the mean share of the attention that each head's choice catches
  double share = 0, worst = 0;       // their mean, and the least of any row and head
  bool passed() const { return report.passed && finite; }
};

LayerResult check_layer(const lm::AttentionInputs& inputs, const torch_ops::SequenceBatch& batch, std::int64_t layer,
                        const AttentionOptions& options) {
  // Once more with check_values, which reads back whether a kernel met values that it had to clamp, and throws.
  torch_ops::attention(inputs.q, inputs.k, inputs.v, batch, options, /*check_values=*/true);
  LayerResult row{layer, options.block_size, torch_ops::self_check(inputs.q, inputs.k, inputs.v, batch, options),
                  all_finite(inputs)};
  const torch::Tensor mass = torch_ops::diagnose(inputs.q, inputs.k, batch, options).mass.cpu().to(torch::kFloat64);
  const torch::Tensor means = mass.mean(1).contiguous();  // [H]
  row.choice = lm::name_of(options);
  row.of_head.assign(means.const_data_ptr<double>(), means.const_data_ptr<double>() + means.numel());
  row.share = mass.mean().item<double>();
  row.worst = mass.min().item<double>();
  return row;
}

/// The table of what the choices catch, one line a layer.
std::string shares_text(const std::vector<LayerResult>& rows) {
  std::string text = fmt::format(
      "\nshare of the full attention on the chosen blocks, the mean over all rows\n\n"
      "  {:>5}  {:>7} {:>9} {:>10} {:>8}  {}\n",
      "layer", "mean", "best head", "worst head", "worst row", "choice");
  for (const LayerResult& row : rows) {
    const auto [low, high] = std::minmax_element(row.of_head.begin(), row.of_head.end());
    text += fmt::format("  {:>5}  {:>7.4f} {:>9.4f} {:>10.4f} {:>8.4f}  {}\n", row.layer, row.share, *high, *low,
                        row.worst, row.choice);
  }
  return text;
}

std::string row_text(const LayerResult& row) {
  const SelfCheckReport& report = row.report;
  return fmt::format("  {:>5} {:>6}  {:>9.2e} {:>9.2e} {:>9.2e} {:>9.2e} {:>9.2e}  {}\n", row.layer, row.block_size,
                     report.out_error, report.lse_error, report.dq_error, report.dk_error, report.dv_error,
                     row.passed() ? "ok"
                     : row.finite ? "WRONG"
                                  : "WRONG: q, k or v holds NaN or infinity");
}

nlohmann::ordered_json to_json(const LayerResult& row) {
  return {{"layer", row.layer},           {"block_size", row.block_size}, {"out", row.report.out_error},
          {"lse", row.report.lse_error},  {"dq", row.report.dq_error},    {"dk", row.report.dk_error},
          {"dv", row.report.dv_error},    {"finite", row.finite},         {"passed", row.passed()},
          {"choice", row.choice},         {"share", row.share},           {"share_worst_row", row.worst},
          {"share_of_heads", row.of_head}};
}

/// The layer's own MoBA options, or usual ones where it has none; flags come first.
AttentionOptions options_of(const CheckFlags& flags, const AttentionOptions& layer) {
  AttentionOptions options = layer;
  if (layer.kind != Kind::kMoba)
    options = {.kind = Kind::kMoba, .block_size = 64, .softmax_scale = layer.softmax_scale};
  if (flags.block_size > 0) options.block_size = flags.block_size;
  if (flags.top_k > 0) options.top_k = flags.top_k;
  if (flags.gate.any()) flags.gate.apply(options);
  return options;
}

int run_check(const CheckFlags& flags) {
  if (!flags.json.empty()) lm::check_output_path(flags.json);
  Progress progress;
  lm::Pretrained loaded = flags.model.load();
  std::vector<std::int64_t> tokens = loaded.tokenizer->encode(read_texts({flags.text}, loaded.config).front());
  if (tokens.empty()) throw Error(ErrorCode::kInvalidArgument, flags.text + ": holds no tokens");
  tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(flags.length)));

  std::vector<AttentionOptions> options;
  for (std::int64_t layer = 0; layer < loaded.config.num_hidden_layers; ++layer) {
    options.push_back(options_of(flags, loaded.config.plan.layer(layer)));
  }
  const torch::Device device = loaded.model->parameters().front().device();
  const auto count = static_cast<std::int64_t>(tokens.size());
  const torch::Tensor offsets = torch::tensor({std::int64_t{0}, count}, torch::kInt64).to(device, torch::kInt32);
  const lm::TokenBatch batch{torch::tensor(tokens, torch::kInt64).to(device), offsets, count};
  const torch::NoGradGuard no_gradients;
  nlohmann::ordered_json json;
  json["layers"] = nlohmann::ordered_json::array();
  print(
      fmt::format("every block chosen against full attention, {} tokens, {} on {}\n\n"
                  "  {:>5} {:>6}  {:>9} {:>9} {:>9} {:>9} {:>9}\n",
                  count, c10::toString(loaded.model->compute_dtype()), device.str(), "layer", "block", "out", "lse",
                  "dq", "dk", "dv"));
  bool passed = true;
  std::vector<LayerResult> rows;
  for (std::int64_t layer = 0; layer < loaded.config.num_hidden_layers; ++layer) {
    progress.show("checking layers", layer, loaded.config.num_hidden_layers);
    const lm::AttentionInputs inputs = loaded.model->attention_inputs(batch, loaded.config.plan, layer);
    LayerResult row = check_layer(inputs, torch_ops::SequenceBatch::self(offsets, count), layer,
                                  options[static_cast<std::size_t>(layer)]);
    const AttentionOptions own = loaded.config.plan.layer(layer);
    if (own.kind != Kind::kMoba) row.choice += fmt::format(" in the place of {}", lm::name_of(own));
    passed = passed && row.passed();
    json["tolerance"] = row.report.tolerance;
    progress.clear();
    print(row_text(row));
    json["layers"].push_back(to_json(row));
    rows.push_back(row);
  }
  print(shares_text(rows));
  json["tokens"] = count;
  json["passed"] = passed;
  json["machine"] = describe_machine();
  write_json(flags.json, json);
  print(passed ? "\nall layers agree\n" : "\n");
  if (!passed) print_note("moba: check: a layer's results differ from full attention by more than rounding explains");
  return passed ? kSuccess : kFailure;
}

}  // namespace

void add_check(CLI::App& program, Action& action) {
  auto flags = std::make_shared<CheckFlags>();
  CLI::App* command = program.add_subcommand(
      "check", "Compare MoBA with every block chosen to full attention on a model's own tensors");
  command->add_option("--text", flags->text, "A text the model reads")->required()->type_name("FILE");
  command->add_option("--length", flags->length, "Tokens of it at most")->check(at_least(1))->capture_default_str();
  command->add_option("--block-size", flags->block_size, "Block size (default: that of each layer's plan, or 64)")
      ->check(at_least(1));
  command->add_option("--top-k", flags->top_k, "Blocks a row attends (default: that of each layer's plan, or 3)")
      ->check(at_least(1));
  flags->gate.declare(*command, "Choice, in place of each layer's plan");
  command->add_option("--json", flags->json, "Write the errors to this file")->type_name("OUT");
  flags->model.declare(*command);
  command->footer(
      "Forward and backward, layer by layer; values out of range that kernels had to clamp are reported too.\n"
      "A second table says what share of the full attention the chosen blocks hold: with 1 nothing is missed.\n"
      "Exit code 1 when a layer differs.\n\n"
      "Example:\n"
      "  moba check --text book.txt --length 4096");
  command->callback([flags, &action] { action = [flags] { return run_check(*flags); }; });
}

}  // namespace moba::app
