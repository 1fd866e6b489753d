#include "lm/model/model.h"

#include <cmath>

#include "lm/model/layer.h"
#include "model_support.h"

namespace moba::lm {
namespace {

using testing::expect_error;
using testing::tiny_config;
using torch::Tensor;

AttentionPlan moba_plan(std::int64_t layers, std::int64_t block_size, std::int64_t top_k,
                        std::int64_t last_n_full = 0) {
  AttentionOptions options;
  options.block_size = block_size;
  options.top_k = top_k;
  return uniform_plan(layers, options, last_n_full);
}

Model random_model(const ModelConfig& config, std::uint64_t seed = 1) {
  Model model(config);
  model->init_weights(seed);
  const torch::NoGradGuard no_gradients;
  for (Tensor& parameter : model->parameters()) {
    if (parameter.dim() == 2) parameter.mul_(6.0);  // attention far from uniform
  }
  return model;
}

TokenBatch batch_of(const std::vector<std::int64_t>& lengths, std::int64_t seed = 0) {
  torch::manual_seed(static_cast<std::uint64_t>(seed));
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t length : lengths) offsets.push_back(offsets.back() + length);
  const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  return {torch::randint(0, 256, {offsets.back()}, torch::kInt64), torch::tensor(offsets, torch::kInt32), longest};
}

Tensor logits_of(Model& model, const TokenBatch& batch, const AttentionPlan& plan = {}) {
  const torch::NoGradGuard no_gradients;
  return model->forward(batch, plan);
}

double difference(const Tensor& a, const Tensor& b) {
  return (a - b).abs().max().item<double>();
}

Tensor loss_of(const Tensor& logits, const Tensor& tokens) {
  return torch::nn::functional::cross_entropy(logits.narrow(0, 0, logits.size(0) - 1),
                                              tokens.narrow(0, 1, tokens.size(0) - 1));
}

TEST(Model, ParameterNamesAreThoseOfHuggingFace) {
  ModelConfig config = tiny_config();
  config.qk_norm = true;
  config.tie_word_embeddings = false;
  const Model model(config);
  const auto parameters = model->named_parameters();
  std::int64_t count = 0;
  for (const auto& item : parameters) count += item.value().numel();
  EXPECT_EQ(count, config.parameter_count());
  for (const char* name :
       {"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.k_norm.weight", "model.layers.0.post_attention_layernorm.weight",
        "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"}) {
    EXPECT_TRUE(parameters.contains(name)) << name;
  }
  EXPECT_EQ(parameters.size(), 3u + 2u * 11u);
}

TEST(Model, InitialisationFollowsItsSeedAndItsDeviations) {
  Model a(tiny_config()), b(tiny_config()), c(tiny_config());
  a->init_weights(5);
  b->init_weights(5);
  c->init_weights(6);
  const auto pa = a->named_parameters(), pb = b->named_parameters(), pc = c->named_parameters();
  for (const auto& item : pa) EXPECT_TRUE(torch::equal(item.value(), pb[item.key()])) << item.key();
  EXPECT_FALSE(torch::equal(pa["model.embed_tokens.weight"], pc["model.embed_tokens.weight"]));
  EXPECT_NEAR(pa["model.embed_tokens.weight"].std().item<double>(), 0.02, 0.001);
  EXPECT_NEAR(pa["model.layers.1.mlp.down_proj.weight"].std().item<double>(), 0.01, 0.001);  // 0.02 / sqrt(2 * 2)
  EXPECT_TRUE(torch::equal(pa["model.norm.weight"], torch::ones({32})));
}

TEST(Model, PackedSequencesDoNotSeeEachOther) {
  Model model = random_model(tiny_config());
  const TokenBatch packed = batch_of({20, 0, 1, 33});
  for (const AttentionPlan& plan : {AttentionPlan{}, moba_plan(2, 4, 2)}) {
    const Tensor together = logits_of(model, packed, plan);
    ASSERT_EQ(together.sizes(), (at::IntArrayRef{54, 256}));
    for (const auto& [begin, length] : {std::pair{0, 20}, {20, 1}, {21, 33}}) {
      const TokenBatch alone{packed.tokens.narrow(0, begin, length), torch::tensor({0, length}, torch::kInt32), length};
      EXPECT_LT(difference(together.narrow(0, begin, length), logits_of(model, alone, plan)), 1e-4);
    }
  }
}

TEST(Model, LaterTokensChangeNothingBefore) {
  Model model = random_model(tiny_config());
  TokenBatch batch = batch_of({40});
  const Tensor before = logits_of(model, batch, moba_plan(2, 4, 2));
  batch.tokens = batch.tokens.clone();
  batch.tokens[30] = (batch.tokens[30] + 1) % 256;
  const Tensor after = logits_of(model, batch, moba_plan(2, 4, 2));
  EXPECT_TRUE(torch::equal(before.narrow(0, 0, 30), after.narrow(0, 0, 30)));
  EXPECT_GT(difference(before[30], after[30]), 1e-3);
}

TEST(Model, MobaWithEveryBlockIsFullAttention) {
  Model model = random_model(tiny_config());
  const TokenBatch batch = batch_of({50, 17});
  const Tensor full = logits_of(model, batch);
  EXPECT_LT(difference(full, logits_of(model, batch, moba_plan(2, 8, 7))), 1e-4);
  EXPECT_GT(difference(full, logits_of(model, batch, moba_plan(2, 8, 2))), 1e-3);
}

TEST(Model, OnlyTheAskedRowsReachTheHead) {
  Model model = random_model(tiny_config());
  const TokenBatch batch = batch_of({12, 9});
  ForwardOptions options;
  options.logit_rows = torch::tensor({20, 3});
  const torch::NoGradGuard no_gradients;
  const Tensor all = model->forward(batch, {}), some = model->forward(batch, {}, options);
  EXPECT_LT(difference(some, all.index_select(0, *options.logit_rows)), 1e-5);
}

/// The logits of the last `rows` of 77 tokens, read in chunks, with nothing asked of the rows before.
Tensor asked_logits(Model& model, const TokenBatch& batch, const AttentionPlan& plan, std::int64_t chunk,
                    std::int64_t rows) {
  const std::int64_t total = batch.tokens.size(0);
  DecodeState state(model->config(), plan, total, torch::kFloat32);
  std::vector<Tensor> parts;
  for (std::int64_t begin = 0; begin < total; begin += chunk) {
    const std::int64_t end = std::min(begin + chunk, total);
    const std::int64_t asked = std::clamp<std::int64_t>(end - (total - rows), 0, end - begin);
    const Tensor logits = model->forward_cached(batch.tokens.narrow(0, begin, end - begin), plan, state, asked);
    EXPECT_EQ(logits.defined(), asked > 0);
    if (asked > 0) parts.push_back(logits);
    EXPECT_EQ(state.length(), end);
    for (torch_ops::KvCache& layer : state.layers()) EXPECT_EQ(layer.length(), end);  // the last layer's too
  }
  return torch::cat(parts);
}

TEST(Model, TheLastLayerComputesOnlyTheAskedRows) {
  for (const bool qk_norm : {false, true}) {
    ModelConfig config = tiny_config();
    config.qk_norm = qk_norm;
    Model model = random_model(config);
    const TokenBatch batch = batch_of({77});
    // MoBA in the last layer too, or full attention there, or everywhere.
    for (const AttentionPlan& plan : {moba_plan(2, 8, 3), moba_plan(2, 8, 3, 1), AttentionPlan{}}) {
      const Tensor all = logits_of(model, batch, plan);
      for (const std::int64_t chunk : {77, 76, 20, 3}) {
        for (const std::int64_t rows : {1, 2, 21, 77}) {
          const Tensor asked = asked_logits(model, batch, plan, chunk, rows);
          ASSERT_EQ(asked.sizes(), (at::IntArrayRef{rows, 256}));
          EXPECT_LT(difference(asked, all.narrow(0, 77 - rows, rows)), 1e-4)
              << plan.summary() << ", chunk " << chunk << ", rows " << rows;
        }
      }
    }
  }
}

TEST(Model, DecodingGoesOnAfterRowsThatWereNotAsked) {
  Model model = random_model(tiny_config());
  const TokenBatch batch = batch_of({60});
  for (const AttentionPlan& plan : {moba_plan(2, 8, 2), AttentionPlan{}}) {
    const Tensor all = logits_of(model, batch, plan);
    DecodeState state(model->config(), plan, 60, torch::kFloat32);
    model->forward_cached(batch.tokens.narrow(0, 0, 45), plan, state, 0);
    state.truncate(43);  // the open block's sum is that of the keys left
    for (std::int64_t i = 43; i < 60; ++i) {
      const Tensor logits = model->forward_cached(batch.tokens.narrow(0, i, 1), plan, state, 1);
      EXPECT_LT(difference(logits[0], all[i]), 1e-4) << plan.summary() << ", token " << i;
    }
  }
}

TEST(Model, GradientsOfAskedRowsAreThoseOfAllRows) {
  Model model = random_model(tiny_config());
  const TokenBatch batch = batch_of({12, 9});
  const AttentionPlan plan = moba_plan(2, 4, 2);
  const Tensor rows = torch::tensor({20, 3, 11});
  const auto gradients = [&](bool asked, bool checkpoint) {
    model->zero_grad();
    ForwardOptions options;
    options.checkpoint_activations = checkpoint;
    if (asked) options.logit_rows = rows;
    const Tensor logits = model->forward(batch, plan, options);
    (asked ? logits : logits.index_select(0, rows)).pow(2).sum().backward();
    std::vector<Tensor> all;
    for (const Tensor& parameter : model->parameters()) all.push_back(parameter.grad().clone());
    return all;
  };
  const std::vector<Tensor> expected = gradients(false, false);
  for (const bool checkpoint : {false, true}) {
    const std::vector<Tensor> found = gradients(true, checkpoint);
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_LT(difference(found[i], expected[i]), 1e-4 * std::max(1.0, expected[i].abs().max().item<double>())) << i;
    }
  }
}

TEST(Model, GradientsAgreeWithFiniteDifferences) {
  ModelConfig config = tiny_config();
  config.num_key_value_heads = 1;
  config.qk_norm = true;
  Model model = random_model(config);
  model->to(torch::kFloat64);
  const TokenBatch batch = batch_of({9, 6});
  const AttentionPlan plan = moba_plan(2, 4, 2, 1);
  loss_of(model->forward(batch, plan), batch.tokens).backward();
  constexpr double kStep = 1e-5;
  const torch::NoGradGuard no_gradients;
  for (const auto& item : model->named_parameters()) {
    const Tensor direction = torch::randn_like(item.value());
    Tensor parameter = item.value();
    const auto loss_at = [&](double step) {
      parameter.add_(direction, step);
      const double loss = loss_of(model->forward(batch, plan), batch.tokens).item<double>();
      parameter.add_(direction, -step);
      return loss;
    };
    const double numeric = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
    const double analytic = (parameter.grad() * direction).sum().item<double>();
    // RoPE's table is float32 in every dtype, the same for both sides; what is left is the second order of the step.
    EXPECT_NEAR(analytic, numeric, 1e-4 * std::max(1.0, std::abs(numeric))) << item.key();
  }
}

TEST(Model, CheckpointingChangesNoBit) {
  Model model = random_model(tiny_config());
  const TokenBatch batch = batch_of({30, 11});
  std::vector<std::vector<Tensor>> gradients;
  std::vector<Tensor> losses;
  for (const bool checkpoint : {false, true}) {
    model->zero_grad();
    ForwardOptions options;
    options.checkpoint_activations = checkpoint;
    losses.push_back(loss_of(model->forward(batch, moba_plan(2, 8, 2), options), batch.tokens));
    losses.back().backward();
    gradients.emplace_back();
    for (const Tensor& parameter : model->parameters()) gradients.back().push_back(parameter.grad().clone());
  }
  EXPECT_TRUE(torch::equal(losses[0].detach(), losses[1].detach()));
  for (std::size_t i = 0; i < gradients[0].size(); ++i)
    EXPECT_TRUE(torch::equal(gradients[0][i], gradients[1][i])) << i;
}

TEST(Model, SixteenBitComputeOverFloatMasters) {
  Model model = random_model(tiny_config());
  const TokenBatch batch = batch_of({60});
  const Tensor exact = logits_of(model, batch);
  EXPECT_EQ(model->compute_dtype(), torch::kFloat32);
  model->set_compute_dtype(torch::kBFloat16);
  const Tensor logits = model->forward(batch, {});
  EXPECT_EQ(logits.scalar_type(), torch::kFloat32);
  EXPECT_LT((logits - exact).norm().item<double>(), 0.05 * exact.norm().item<double>());
  loss_of(logits, batch.tokens).backward();
  for (const auto& item : model->named_parameters()) {
    EXPECT_EQ(item.value().scalar_type(), torch::kFloat32) << item.key();
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_EQ(item.value().grad().scalar_type(), torch::kFloat32) << item.key();
    EXPECT_GT(item.value().grad().norm().item<double>(), 0.0) << item.key();
  }
  // Weights stored in 16 bits compute the same: training and inference share their arithmetic.
  const Tensor stored = [&] {
    Model copy(model->config());
    const torch::NoGradGuard no_gradients;
    const auto source = model->named_parameters();
    for (auto& item : copy->named_parameters()) item.value().copy_(source[item.key()]);
    copy->to(torch::kBFloat16);
    return logits_of(copy, batch);
  }();
  EXPECT_TRUE(torch::equal(stored, logits.detach()));
}

TEST(Model, CachedChunksEqualOneShot) {
  ModelConfig config = tiny_config();
  Model model = random_model(config);
  const TokenBatch batch = batch_of({77});
  // Every option of the choice, each layer its own.
  AttentionPlan options = moba_plan(2, 8, 4);
  options.layers[0].force_previous = true;
  options.layers[0].share = Share::kLayer;
  options.layers[0].share_score = ShareScore::kSumProb;
  options.layers[1].sink_blocks = 1;
  options.layers[1].block_size = 4;
  options.layers[1].share = Share::kGroup;
  options.layers[1].share_score = ShareScore::kMax;
  options.layers[1].representative_dtype = RepresentativeDType::kFloat32;
  for (const AttentionPlan& plan : {AttentionPlan{}, moba_plan(2, 8, 3, 1), options}) {
    const Tensor expected = logits_of(model, batch, plan);
    for (const std::int64_t chunk : {1, 5, 8, 77}) {
      DecodeState state(config, plan, 80, torch::kFloat32);
      std::vector<Tensor> rows;
      for (std::int64_t begin = 0; begin < 77; begin += chunk) {
        const std::int64_t count = std::min<std::int64_t>(chunk, 77 - begin);
        rows.push_back(model->forward_cached(batch.tokens.narrow(0, begin, count), plan, state, count));
      }
      EXPECT_EQ(state.length(), 77);
      EXPECT_LT(difference(torch::cat(rows), expected), 1e-4) << plan.summary() << ", chunk " << chunk;
    }
  }
}

TEST(Model, TruncateForgets) {
  const ModelConfig config = tiny_config();
  Model model = random_model(config);
  const AttentionPlan plan = moba_plan(2, 8, 2);
  const TokenBatch batch = batch_of({50});
  DecodeState state(config, plan, 60, torch::kFloat32);
  model->forward_cached(batch.tokens.narrow(0, 0, 30), plan, state, 0);
  const Tensor expected = model->forward_cached(batch.tokens.narrow(0, 30, 5), plan, state, 5);
  state.truncate(30);
  model->forward_cached(batch.tokens.narrow(0, 40, 10), plan, state, 0);
  state.truncate(30);
  EXPECT_EQ(state.length(), 30);
  EXPECT_TRUE(torch::equal(model->forward_cached(batch.tokens.narrow(0, 30, 5), plan, state, 5), expected));
}

TEST(Model, FullDecodeOverAMobaCache) {
  const ModelConfig config = tiny_config();
  Model model = random_model(config);
  const AttentionPlan plan = moba_plan(2, 8, 2);
  const TokenBatch batch = batch_of({41});
  DecodeState a(config, plan, 60, torch::kFloat32), b(config, plan, 60, torch::kFloat32);
  model->forward_cached(batch.tokens.narrow(0, 0, 40), plan, a, 0);
  model->forward_cached(batch.tokens.narrow(0, 0, 40), plan, b, 0);
  const Tensor sparse = model->forward_cached(batch.tokens.narrow(0, 40, 1), plan, a, 1);
  const Tensor full = model->forward_cached(batch.tokens.narrow(0, 40, 1), {}, b, 1);
  EXPECT_EQ(full.size(0), 1);
  EXPECT_GT(difference(sparse, full), 1e-4);
}

TEST(Model, AttentionInputsAreThoseOfTheLayer) {
  const ModelConfig config = tiny_config();
  Model model = random_model(config);
  const TokenBatch batch = batch_of({20, 5});
  const AttentionInputs first = model->attention_inputs(batch, {}, 0), second = model->attention_inputs(batch, {}, 1);
  EXPECT_EQ(first.q.sizes(), (at::IntArrayRef{25, 4, 8}));
  EXPECT_EQ(first.k.sizes(), (at::IntArrayRef{25, 2, 8}));
  EXPECT_EQ(second.v.sizes(), (at::IntArrayRef{25, 2, 8}));
  EXPECT_GT(difference(first.q, second.q), 1e-3);
  expect_error([&] { model->attention_inputs(batch, {}, 2); }, {"layer=2"});
}

TEST(Model, BadInputIsNamed) {
  const ModelConfig config = tiny_config();
  Model model = random_model(config);
  TokenBatch batch = batch_of({8});
  const auto forward = [&](const TokenBatch& changed, const AttentionPlan& plan = {}) {
    return [&model, changed, plan] { model->forward(changed, plan); };
  };
  expect_error(forward(batch, moba_plan(3, 8, 2)), {"plan has 3 layers", "2"});
  TokenBatch bad = batch;
  bad.tokens = torch::full({8}, 256, torch::kInt64);
  expect_error(forward(bad), {"tokens", "256", "255"});
  bad.tokens = batch.tokens.to(torch::kInt32);
  expect_error(forward(bad), {"tokens", "int64"});
  bad = batch;
  bad.cu_seqlens = torch::tensor({0.0, 8.0});
  expect_error(forward(bad), {"cu_seqlens"});
  DecodeState state(config, {}, 4, torch::kFloat32);
  expect_error([&] { model->forward_cached(batch.tokens, {}, state, 1); }, {"8 tokens", "capacity of 4"});
  expect_error([&] { model->forward_cached(batch.tokens.narrow(0, 0, 2), {}, state, 3); }, {"rows=3"});
  EXPECT_EQ(state.length(), 0);
  expect_error([&] { DecodeState(config, {}, 0, torch::kFloat32); }, {"capacity=0"});
}

}  // namespace
}  // namespace moba::lm
