// MoBA forward on random data with the installed library, and the proof that it is exact: with every block chosen it
// equals full attention.
#include <moba/moba.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

int main() {
  constexpr std::int64_t kTokens = 4096, kHeads = 8, kKvHeads = 2, kDim = 64;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  std::vector<float> q(kTokens * kHeads * kDim), k(kTokens * kKvHeads * kDim), v(k.size());
  for (auto* tensor : {&q, &k, &v}) {
    for (float& x : *tensor) x = normal(random);
  }
  const std::int32_t cu_seqlens[] = {0, kTokens};
  const moba::ConstTensorView offsets(cu_seqlens, moba::DType::kInt32, {2});
  const moba::PackedBatch batch{offsets, offsets, kTokens, kTokens};

  moba::SerialContext context;
  const auto attend = [&](const moba::AttentionOptions& options) {
    std::vector<float> out(q.size()), lse(kHeads * kTokens);
    moba::attention(context, moba::cpu_backend(), options, {q.data(), moba::DType::kFloat32, {kTokens, kHeads, kDim}},
                    {k.data(), moba::DType::kFloat32, {kTokens, kKvHeads, kDim}},
                    {v.data(), moba::DType::kFloat32, {kTokens, kKvHeads, kDim}}, batch,
                    {{out.data(), moba::DType::kFloat32, {kTokens, kHeads, kDim}},
                     {lse.data(), moba::DType::kFloat32, {kHeads, kTokens}}});
    return out;
  };
  moba::AttentionOptions sparse, every_block, full;  // kind moba, blocks of 512, top_k 3 unless said otherwise
  every_block.top_k = kTokens / every_block.block_size;
  full.kind = moba::Kind::kFull;
  const std::vector<float> expected = attend(full);
  const auto max_error = [&](const std::vector<float>& out) {
    float error = 0;
    for (std::size_t i = 0; i < out.size(); ++i) error = std::fmax(error, std::fabs(out[i] - expected[i]));
    return error;
  };
  const float difference = max_error(attend(sparse)), error = max_error(attend(every_block));
  std::printf("against full attention: top_k 3 of 8 differs by %.3f, every block by %.1e\n", difference, error);
  return error < 1e-5f ? 0 : 1;
}
