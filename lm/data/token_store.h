// All the text of a run as one memory-mapped file of tokens with the ends of its documents.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lm/data/text_files.h"
#include "lm/tokenizer/tokenizer.h"
#include "lm/util/files.h"

namespace moba::lm {

/// Called now and then while text is turned into tokens.
using ByteProgress = std::function<void(std::int64_t done, std::int64_t total)>;

/// File format (little-endian): the tokens; padding to 8 bytes; the end of each document as int64 [documents],
/// ascending; then int64 bytes a token (1, 2 or 4), documents, tokens, and "MOBATOK1". What is known last stands last,
/// so that a store is written in one pass.
class TokenStore {
 public:
  /// Opens the store of these files in `cache_dir`, building it first when it is not there. The name holds a hash of
  /// the list (paths, sizes, times) and of `tokenizer_name`, so a change of either builds another. The file appears
  /// whole.
  static TokenStore open_or_build(const std::vector<TextFile>& files, const Tokenizer& tokenizer,
                                  const std::string& tokenizer_name, const std::filesystem::path& cache_dir,
                                  const ByteProgress& progress);

  std::int64_t documents() const { return static_cast<std::int64_t>(ends_.size()); }
  std::int64_t tokens() const { return ends_.empty() ? 0 : ends_.back(); }

  std::int64_t document_begin(std::int64_t document) const {
    return document == 0 ? 0 : ends_[static_cast<std::size_t>(document - 1)];
  }
  std::int64_t document_end(std::int64_t document) const { return ends_[static_cast<std::size_t>(document)]; }
  std::int64_t document_size(std::int64_t document) const { return document_end(document) - document_begin(document); }
  /// The document that holds token `position`.
  std::int64_t document_of(std::int64_t position) const;

  /// Tokens begin … begin + out.size() of the whole store.
  void read(std::int64_t begin, std::span<std::int64_t> out) const;

  /// The tokens themselves, where they are bytes (width 1); empty otherwise.
  std::span<const std::uint8_t> bytes() const;

 private:
  explicit TokenStore(const std::filesystem::path& file);

  std::unique_ptr<MappedFile> file_;
  std::span<const std::int64_t> ends_;
  const std::uint8_t* data_ = nullptr;
  std::int64_t width_ = 1;
};

}  // namespace moba::lm
