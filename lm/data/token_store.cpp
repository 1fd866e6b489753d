#include "lm/data/token_store.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "moba/error.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "MOBATOK1";
struct Footer {
  std::int64_t width, documents, tokens;
  char magic[8];
};
static_assert(sizeof(Footer) == 32);

std::int64_t padded(std::int64_t bytes) {
  return (bytes + 7) / 8 * 8;
}

// FNV-1a, 64 bit.
std::uint64_t hash_text(std::string_view text) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

std::string store_name(const std::vector<TextFile>& files, const std::string& tokenizer_name) {
  std::string key = std::string(kMagic) + "\n" + tokenizer_name + "\n";
  for (const TextFile& file : files)
    key += fmt::format("{}\t{}\t{}\n", fs::absolute(file.path).lexically_normal().string(), file.size, file.modified);
  return fmt::format("tokens-{:016x}.bin", hash_text(key));
}

std::int64_t width_for(std::int64_t vocab_size) {
  return vocab_size <= 256 ? 1 : vocab_size <= 65536 ? 2 : 4;
}

// Tokens packed to `width` bytes each.
std::vector<std::uint8_t> pack(const std::vector<std::int64_t>& tokens, std::int64_t width) {
  std::vector<std::uint8_t> packed(tokens.size() * static_cast<std::size_t>(width));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto value = static_cast<std::uint32_t>(tokens[i]);
    std::memcpy(packed.data() + i * static_cast<std::size_t>(width), &value, static_cast<std::size_t>(width));
  }
  return packed;
}

// The tokens of one document: what the tokenizer puts before a prompt, the text, and its end token, if it has them.
std::vector<std::int64_t> encode_document(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::int64_t> tokens = tokenizer.prompt_prefix();
  const std::vector<std::int64_t> body = tokenizer.encode(text);
  tokens.insert(tokens.end(), body.begin(), body.end());
  if (tokenizer.end_token() >= 0) tokens.push_back(tokenizer.end_token());
  return tokens;
}

void build(const fs::path& target, const std::vector<TextFile>& files, const Tokenizer& tokenizer,
           const std::string& tokenizer_name, const ByteProgress& progress) {
  const std::int64_t width = width_for(tokenizer.vocab_size());
  AtomicFile out(target);
  std::vector<std::int64_t> ends;
  std::int64_t total_bytes = 0, done_bytes = 0, tokens = 0;
  for (const TextFile& file : files) total_bytes += file.size;
  for (const TextFile& file : files) {
    const MappedFile text(file.path);
    if (tokenizer_name == "bytes") {
      out.write(text.data(), text.size());
      tokens += static_cast<std::int64_t>(text.size());
    } else {
      std::vector<std::int64_t> document;
      try {
        document = encode_document(tokenizer, {reinterpret_cast<const char*>(text.data()), text.size()});
      } catch (const Error& error) {
        throw Error(error.code(), file.path.string() + ": " + error.what());
      }
      const std::vector<std::uint8_t> packed = pack(document, width);
      out.write(packed.data(), packed.size());
      tokens += static_cast<std::int64_t>(document.size());
    }
    ends.push_back(tokens);
    done_bytes += file.size;
    if (progress) progress(done_bytes, total_bytes);
  }
  const char zeros[8] = {};
  out.write(zeros, static_cast<std::size_t>(padded(tokens * width) - tokens * width));
  out.write(ends.data(), ends.size() * sizeof(std::int64_t));
  Footer footer{width, static_cast<std::int64_t>(ends.size()), tokens, {}};
  std::memcpy(footer.magic, kMagic.data(), kMagic.size());
  out.write(&footer, sizeof footer);
  out.commit();
}

}  // namespace

TokenStore TokenStore::open_or_build(const std::vector<TextFile>& files, const Tokenizer& tokenizer,
                                     const std::string& tokenizer_name, const fs::path& cache_dir,
                                     const ByteProgress& progress) {
  const fs::path target = cache_dir / store_name(files, tokenizer_name);
  if (!fs::exists(target)) {
    build(target, files, tokenizer, tokenizer_name, progress);
  }
  return TokenStore(target);
}

TokenStore::TokenStore(const fs::path& file) : file_(std::make_unique<MappedFile>(file)) {
  const auto fail = [&file](const char* rule) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: not a whole token store: {}; remove it and it is built again", file.string(), rule));
  };
  const auto size = static_cast<std::int64_t>(file_->size());
  const auto* data = reinterpret_cast<const std::uint8_t*>(file_->data());
  Footer footer{};
  const std::int64_t body = size - static_cast<std::int64_t>(sizeof footer);
  if (body < 0) fail("shorter than its footer");
  std::memcpy(&footer, data + body, sizeof footer);
  if (std::string_view(footer.magic, sizeof footer.magic) != kMagic) fail("wrong last bytes");
  if (footer.width != 1 && footer.width != 2 && footer.width != 4) fail("width is not 1, 2 or 4");
  if (footer.documents < 1 || footer.documents > body / 8 || footer.tokens < 0 || footer.tokens > body ||
      body != padded(footer.tokens * footer.width) + footer.documents * 8)
    fail("its length does not fit its footer");
  ends_ = {reinterpret_cast<const std::int64_t*>(data + padded(footer.tokens * footer.width)),
           static_cast<std::size_t>(footer.documents)};
  if (!std::is_sorted(ends_.begin(), ends_.end()) || ends_.front() < 0 || ends_.back() != footer.tokens)
    fail("its document ends do not ascend to the number of tokens");
  width_ = footer.width;
  data_ = data;
}

std::int64_t TokenStore::document_of(std::int64_t position) const {
  return std::upper_bound(ends_.begin(), ends_.end(), position) - ends_.begin();
}

void TokenStore::read(std::int64_t begin, std::span<std::int64_t> out) const {
  const std::uint8_t* from = data_ + begin * width_;
  if (width_ == 1) {
    std::copy(from, from + out.size(), out.begin());
    return;
  }
  for (std::size_t i = 0; i < out.size(); ++i, from += width_) {
    std::uint32_t value = 0;
    std::memcpy(&value, from, static_cast<std::size_t>(width_));
    out[i] = value;
  }
}

std::span<const std::uint8_t> TokenStore::bytes() const {
  if (width_ != 1) return {};
  return {data_, static_cast<std::size_t>(tokens())};
}

}  // namespace moba::lm
