#include "lm/data/batch.h"

#include <algorithm>
#include <string>

#include "moba/error.h"

namespace moba::lm {

// A row being filled: the places of its inputs and targets in the batch, and what the targets are.
struct BatchSource::Row {
  std::span<std::int64_t> tokens, targets;
  std::vector<ByteKind> kinds;          // of the targets so far
  std::vector<std::int64_t> sequences;  // lengths
  std::vector<ByteRange> answers;       // in targets
};

BatchSource::BatchSource(const TokenStore& store, const RecallConfig& recall, std::uint64_t seed, bool page_locked)
    : store_(store), recall_(recall), seed_(seed), page_locked_(page_locked) {
  bool usable = false;
  for (std::int64_t i = 0; i < store.documents() && !usable; ++i) usable = store.document_size(i) >= 2;
  if (!usable)
    throw Error(ErrorCode::kInvalidArgument, "data: no document has two tokens, so there is nothing to predict");
  if (recall.fraction > 0) lexicon_ = build_lexicon(store.bytes());
}

std::int64_t BatchSource::draw_document(Random& random) const {
  for (;;) {
    const auto position = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(store_.tokens())));
    const std::int64_t document = store_.document_of(position);
    if (store_.document_size(document) >= 2) return document;
  }
}

void BatchSource::fill_text_row(Random& random, Row& row) const {
  const auto length = static_cast<std::int64_t>(row.tokens.size());
  std::vector<std::int64_t> window;
  for (std::int64_t filled = 0; filled < length;) {
    const std::int64_t document = draw_document(random);
    const std::int64_t size = store_.document_size(document);
    const std::int64_t take = std::min(length - filled, size - 1);
    // The first window begins anywhere; a document that fills up a row is read from its beginning.
    const std::int64_t offset = filled == 0 ? random.between(0, size - 1 - take) : 0;
    window.resize(static_cast<std::size_t>(take + 1));
    store_.read(store_.document_begin(document) + offset, window);
    std::copy(window.begin(), window.end() - 1, row.tokens.begin() + filled);
    std::copy(window.begin() + 1, window.end(), row.targets.begin() + filled);
    row.sequences.push_back(take);
    filled += take;
  }
  row.kinds.assign(static_cast<std::size_t>(length), ByteKind::kText);
}

std::int64_t BatchSource::draw_recall_length(Random& random, std::int64_t row_length) const {
  constexpr std::int64_t kShortest = 2048;
  std::vector<std::int64_t> shorter;  // row_length / 2, / 4, …
  for (std::int64_t length = row_length; length % 2 == 0 && length / 2 >= kShortest;) shorter.push_back(length /= 2);
  if (shorter.empty() || !random.chance(recall_.shorter_share)) return row_length;
  return random.pick(shorter);
}

void BatchSource::fill_recall_row(Random& random, Row& row) const {
  const auto row_length = static_cast<std::int64_t>(row.tokens.size());
  const std::int64_t length = draw_recall_length(random, row_length);
  for (std::int64_t begin = 0; begin < row_length; begin += length) append_recall_sequence(random, row, length);
}

void BatchSource::append_recall_sequence(Random& random, Row& row, std::int64_t length) const {
  const auto begin = static_cast<std::int64_t>(row.kinds.size());
  const std::span<const std::uint8_t> bytes = store_.bytes();
  std::string joined;  // only for documents that are too short
  std::span<const std::uint8_t> haystack;
  const std::int64_t document = draw_document(random);
  const std::int64_t size = store_.document_size(document);
  if (size > length) {
    const std::int64_t offset = random.between(0, size - length - 1);
    haystack = bytes.subspan(static_cast<std::size_t>(store_.document_begin(document) + offset),
                             static_cast<std::size_t>(length + 1));
  } else {
    for (std::int64_t next = document; static_cast<std::int64_t>(joined.size()) <= length;
         next = draw_document(random)) {
      const auto part = bytes.subspan(static_cast<std::size_t>(store_.document_begin(next)),
                                      static_cast<std::size_t>(store_.document_size(next)));
      if (!joined.empty()) joined += "\n\n";
      joined.append(reinterpret_cast<const char*>(part.data()), part.size());
    }
    haystack = {reinterpret_cast<const std::uint8_t*>(joined.data()), joined.size()};
  }

  // One byte more than the sequence: each token's target is the byte after it.
  const WovenText woven = weave_facts(random, haystack, length + 1, bytes, lexicon_, recall_);
  for (std::int64_t i = 0; i < length; ++i) {
    const auto from = static_cast<std::size_t>(i), to = static_cast<std::size_t>(begin + i);
    row.tokens[to] = static_cast<std::uint8_t>(woven.text[from]);
    row.targets[to] = static_cast<std::uint8_t>(woven.text[from + 1]);
  }
  row.kinds.insert(row.kinds.end(), woven.kinds.begin() + 1, woven.kinds.end());
  for (const ByteRange& answer : woven.answers) {
    row.answers.push_back({begin + answer.begin - 1, begin + answer.end - 1});
  }
  row.sequences.push_back(length);
}

StepBatch BatchSource::make(std::int64_t step, const PhaseConfig& phase) const {
  const std::int64_t length = phase.sequence_length;
  const std::int64_t rows_a_part = phase.micro_batch_tokens / length;
  const std::int64_t parts = phase.batch_tokens / phase.micro_batch_tokens;
  const auto options = torch::TensorOptions().pinned_memory(page_locked_);

  StepBatch batch;
  batch.step = step;
  batch.tokens = phase.batch_tokens;
  for (std::int64_t p = 0; p < parts; ++p) {
    MicroBatch part;
    part.tokens = torch::empty({phase.micro_batch_tokens}, options.dtype(torch::kInt64));
    part.targets = torch::empty({phase.micro_batch_tokens}, options.dtype(torch::kInt64));
    part.weights = torch::empty({phase.micro_batch_tokens}, options.dtype(torch::kFloat32));
    part.text_mask = torch::empty({phase.micro_batch_tokens}, options.dtype(torch::kFloat32));
    float* weights = part.weights.data_ptr<float>();
    float* text_mask = part.text_mask.data_ptr<float>();
    std::vector<std::int32_t> cu_seqlens{0};
    std::vector<std::int64_t> answer_rows, answer_facts;
    for (std::int64_t r = 0; r < rows_a_part; ++r) {
      Random random(seed_, {static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(p * rows_a_part + r)});
      const std::int64_t begin = r * length;
      const auto span_of = [&](torch::Tensor& tensor) {
        return std::span(tensor.data_ptr<std::int64_t>() + begin, static_cast<std::size_t>(length));
      };
      Row row{span_of(part.tokens), span_of(part.targets), {}, {}, {}};
      if (recall_.fraction > 0 && random.chance(recall_.fraction)) {
        fill_recall_row(random, row);
      } else {
        fill_text_row(random, row);
      }
      for (std::int64_t i = 0; i < length; ++i) {
        const ByteKind kind = row.kinds[static_cast<std::size_t>(i)];
        const float weight = kind == ByteKind::kAnswer ? static_cast<float>(recall_.answer_weight) : 1.0F;
        weights[begin + i] = weight;
        text_mask[begin + i] = kind == ByteKind::kText ? 1.0F : 0.0F;
        batch.weight_sum += weight;
        batch.text_tokens += kind == ByteKind::kText;
      }
      for (const std::int64_t sequence : row.sequences) {
        cu_seqlens.push_back(cu_seqlens.back() + static_cast<std::int32_t>(sequence));
        part.max_seqlen = std::max(part.max_seqlen, sequence);
      }
      for (const ByteRange& answer : row.answers) {
        for (std::int64_t i = answer.begin; i < answer.end; ++i) {
          answer_rows.push_back(begin + i);
          answer_facts.push_back(part.facts);
        }
        ++part.facts;
      }
    }
    const auto copy_of = [&options](const auto& values, torch::Dtype dtype) {
      torch::Tensor tensor = torch::empty({static_cast<std::int64_t>(values.size())}, options.dtype(dtype));
      std::copy(values.begin(), values.end(), tensor.data_ptr<std::decay_t<decltype(values[0])>>());
      return tensor;
    };
    part.cu_seqlens = copy_of(cu_seqlens, torch::kInt32);
    part.answer_rows = copy_of(answer_rows, torch::kInt64);
    part.answer_facts = copy_of(answer_facts, torch::kInt64);
    batch.answer_tokens += part.answer_rows.size(0);
    batch.facts += part.facts;
    batch.parts.push_back(std::move(part));
  }
  return batch;
}

}  // namespace moba::lm
