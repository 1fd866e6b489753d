#include "lm/config/phases.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "lm/config/reader.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 40;

// {kind, block_size, top_k and the other options of the kind, last_n_full} for all layers, or {layers = [...]}, one
// entry a layer.
AttentionPlan parse_attention(const json& value, const std::string& source, const std::string& name,
                              std::int64_t layers) {
  SectionReader reader(value, source, name);
  if (reader.has("layers")) {
    const AttentionPlan plan = parse_plan(json{{"layers", reader.raw("layers")}}, layers, source + ": " + name);
    reader.refuse_unknown_keys();
    return plan;
  }
  AttentionOptions options;
  options.kind = kind_from_name(reader.choice("kind", std::nullopt, {"full", "window", "moba"}));
  std::int64_t last_n_full = 0;
  if (options.kind == Kind::kMoba) {
    options.block_size = reader.integer("block_size", std::nullopt, 1);
    options.top_k = reader.integer("top_k", std::nullopt, 1);
    options.compat_topk1_full = reader.boolean("compat_topk1_full", false);
    options.force_previous = reader.boolean("force_previous", false);
    if (options.force_previous && options.top_k == 1)
      reader.fail("force_previous", "the previous block takes a slot beside the own one: top_k must be at least 2");
    options.sink_blocks = reader.integer("sink_blocks", 0, 0, options.top_k - 1 - (options.force_previous ? 1 : 0));
    options.share = share_from_name(reader.choice("share", "head", {"head", "group", "layer"}));
    options.share_score =
        share_score_from_name(reader.choice("share_score", "sum_logit", {"sum_logit", "sum_prob", "max"}));
    options.representative_dtype =
        representative_dtype_from_name(reader.choice("representative_dtype", "input", {"input", "float32"}));
  }
  if (options.kind == Kind::kWindow) {
    options.window = reader.integer("window", std::nullopt, 1);
    options.sink = reader.integer("sink", 0, 0);
  }
  if (options.kind != Kind::kFull) last_n_full = reader.integer("last_n_full", 0, 0, layers);
  reader.refuse_unknown_keys();
  return uniform_plan(layers, options, last_n_full);
}

struct Start {
  std::optional<std::int64_t> step, tokens;
};

Start parse_start(SectionReader& reader, bool first) {
  Start start;
  if (reader.has("step") && reader.has("tokens")) reader.fail("tokens", "give step or tokens, not both");
  if (reader.has("tokens")) {
    start.tokens = reader.integer("tokens", std::nullopt, 0, kMaxTokens);
  } else if (first) {
    start.step = reader.integer("step", 0, 0, kMaxSteps);
  } else {
    start.step = reader.integer("step", std::nullopt, 0, kMaxSteps);
  }
  if (first && (start.tokens.value_or(0) != 0 || start.step.value_or(0) != 0))
    reader.fail(start.tokens ? "tokens" : "step", "the first phase must begin at 0");
  return start;
}

PhaseConfig parse_phase(SectionReader& reader, const PhaseConfig* previous, const PhaseRules& rules) {
  PhaseConfig phase = previous ? *previous : PhaseConfig{};
  phase.sequence_length =
      reader.integer("sequence_length", previous ? std::optional(phase.sequence_length) : std::nullopt, 1);
  phase.batch_tokens = reader.integer("batch_tokens", previous ? std::optional(phase.batch_tokens) : std::nullopt, 1);
  if (reader.has("micro_batch_tokens") || !previous || previous->micro_batch_tokens == previous->batch_tokens) {
    phase.micro_batch_tokens = reader.integer("micro_batch_tokens", phase.batch_tokens, 1);
  }
  const std::int64_t length = phase.sequence_length;
  if (length > rules.model.max_position_embeddings)
    reader.fail("sequence_length", fmt::format("the model's max_position_embeddings is {}; make that larger",
                                               rules.model.max_position_embeddings));
  if (rules.recall && length < kShortestRecallSequence)
    reader.fail("sequence_length",
                fmt::format("must be at least {} while recall.fraction is above 0", kShortestRecallSequence));
  if (phase.batch_tokens % length != 0)
    reader.fail("batch_tokens",
                fmt::format("{} must be a multiple of sequence_length = {}", phase.batch_tokens, length));
  if (phase.micro_batch_tokens % length != 0 || phase.batch_tokens % phase.micro_batch_tokens != 0)
    reader.fail("micro_batch_tokens", fmt::format("{} must be a multiple of sequence_length = {} and divide "
                                                  "batch_tokens = {}",
                                                  phase.micro_batch_tokens, length, phase.batch_tokens));
  if (reader.has("attention")) {
    phase.plan = parse_attention(reader.raw("attention"), reader.source(), reader.full_name("attention"),
                                 rules.model.num_hidden_layers);
  } else if (!previous) {
    reader.fail("attention", "is required and missing; for example attention = {kind = \"full\"}");
  }
  phase.lr_scale = reader.number("lr_scale", phase.lr_scale, 0, 100);
  phase.checkpoint_activations = reader.boolean("checkpoint_activations", phase.checkpoint_activations);
  return phase;
}

// The first step before which at least `tokens` were seen. Tokens that an earlier phase reaches give the start of the
// last one, which callers refuse.
std::int64_t step_at(const std::vector<PhaseConfig>& phases, std::int64_t tokens) {
  std::int64_t seen = 0;  // before the last phase
  for (std::size_t i = 0; i + 1 < phases.size(); ++i) {
    seen += (phases[i + 1].step - phases[i].step) * phases[i].batch_tokens;
  }
  const PhaseConfig& last = phases.back();
  const std::int64_t left = std::max<std::int64_t>(0, tokens - seen);
  return last.step + (left + last.batch_tokens - 1) / last.batch_tokens;
}

}  // namespace

void parse_phases(const json& schedule_json, const json& phases_json, const std::string& source,
                  const PhaseRules& rules, ScheduleConfig& schedule, std::vector<PhaseConfig>& phases) {
  if (!phases_json.is_array() || phases_json.empty())
    throw Error(ErrorCode::kInvalidArgument, source + ": phase: at least one [[phase]] is required");
  for (std::size_t i = 0; i < phases_json.size(); ++i) {
    SectionReader reader(phases_json[i], source, fmt::format("phase.{}", i));
    const PhaseConfig* previous = phases.empty() ? nullptr : &phases.back();
    const Start start = parse_start(reader, previous == nullptr);
    PhaseConfig phase = parse_phase(reader, previous, rules);
    phase.step = start.step ? *start.step : previous ? step_at(phases, *start.tokens) : 0;
    if (previous && phase.step <= previous->step)
      reader.fail(
          start.step ? "step" : "tokens",
          fmt::format("begins at step {}, which must be after the previous phase's {}", phase.step, previous->step));
    reader.refuse_unknown_keys();
    phases.push_back(std::move(phase));
  }

  SectionReader reader(schedule_json, source, "schedule");
  if (reader.has("steps") == reader.has("tokens"))
    reader.fail("steps", "give the length of the run in steps or tokens");
  if (reader.has("steps")) {
    schedule.steps = reader.integer("steps", std::nullopt, 1, kMaxSteps);
  } else {
    schedule.steps = step_at(phases, reader.integer("tokens", std::nullopt, 1, kMaxTokens));
  }
  if (phases.back().step >= schedule.steps)
    reader.fail(reader.has("steps") ? "steps" : "tokens",
                fmt::format("the run ends at step {}, before the last phase begins (step {})", schedule.steps,
                            phases.back().step));
  schedule.kind = reader.choice("kind", schedule.kind, {"cosine", "wsd"});
  schedule.warmup = reader.integer("warmup", schedule.warmup, 0, kMaxSteps);
  schedule.decay_fraction = reader.number("decay_fraction", schedule.decay_fraction, 0, 1);
  schedule.final_fraction = reader.number("final_fraction", schedule.final_fraction, 0, 1);
  reader.refuse_unknown_keys();
}

}  // namespace moba::lm
