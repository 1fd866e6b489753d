// What one step trains on: rows of packed sequences with a target and a weight for each token.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <torch/torch.h>

#include "lm/config/train_config.h"
#include "lm/data/lexicon.h"
#include "lm/data/random.h"
#include "lm/data/recall.h"
#include "lm/data/token_store.h"

namespace moba::lm {

/// One forward pass, T tokens in S sequences, on the CPU (page-locked where asked).
struct MicroBatch {
  torch::Tensor tokens;         // int64 [T]
  torch::Tensor targets;        // int64 [T]: the token after each
  torch::Tensor weights;        // float32 [T]: of each target in the loss
  torch::Tensor text_mask;      // float32 [T]: 1 where the target is plain text
  torch::Tensor cu_seqlens;     // int32 [S + 1]
  torch::Tensor answer_rows;    // int64 [A]: rows whose target belongs to an answer, ascending
  torch::Tensor answer_facts;   // int64 [A]: the answer it belongs to, 0 … facts - 1
  std::int64_t max_seqlen = 0;  // of these sequences
  std::int64_t facts = 0;       // answers asked
};

struct StepBatch {
  std::int64_t step = 0;
  std::vector<MicroBatch> parts;
  double weight_sum = 0;    // over all parts
  std::int64_t tokens = 0;  // of all parts, from here on
  std::int64_t text_tokens = 0, answer_tokens = 0, facts = 0;
};

/// Draws batches from a store. make() is const, may be called from many threads, and depends on nothing but the seed,
/// the step and the phase: the position in the data is the step number.
class BatchSource {
 public:
  /// The store outlives this. Error when no document has two tokens.
  BatchSource(const TokenStore& store, const RecallConfig& recall, std::uint64_t seed, bool page_locked);

  /// Rows of sequence_length tokens. A row of text is a window of one document; where the document is shorter, others
  /// follow as sequences of their own, and none attends another. A row with facts is one sequence, or, in
  /// recall.shorter_share of them, several of half, a quarter, … of its length (2048 at least); each is from one
  /// document where that is long enough.
  StepBatch make(std::int64_t step, const PhaseConfig& phase) const;

 private:
  struct Row;

  void fill_text_row(Random& random, Row& row) const;
  void fill_recall_row(Random& random, Row& row) const;
  void append_recall_sequence(Random& random, Row& row, std::int64_t length) const;
  std::int64_t draw_recall_length(Random& random, std::int64_t row_length) const;
  std::int64_t draw_document(Random& random) const;

  const TokenStore& store_;
  RecallConfig recall_;
  Lexicon lexicon_;
  std::uint64_t seed_;
  bool page_locked_;
};

}  // namespace moba::lm
