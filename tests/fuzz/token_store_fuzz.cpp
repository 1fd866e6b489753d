// The cached token store: any bytes in its place are a whole store or an error.
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "fuzz/fuzz.h"
#include "lm/data/token_store.h"

namespace {

namespace fs = std::filesystem;
using namespace moba;

/// A folder with one text and its store, removed at the end.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("token_store_fuzz." + std::to_string(getpid()))) {
    fs::create_directories(path_);
    std::ofstream(path_ / "text.txt") << "some text";
    files_ = lm::list_text_files({path_ / "text.txt"}, "fuzz");
    open();
    for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
      if (entry.path().extension() == ".bin") store_ = entry.path();
    }
    fuzz::check(!store_.empty());
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const fs::path& store() const { return store_; }
  lm::TokenStore open() const {
    return lm::TokenStore::open_or_build(files_, *tokenizer_, "bytes", path_, [](std::int64_t, std::int64_t) {});
  }

 private:
  fs::path path_, store_;
  std::vector<lm::TextFile> files_;
  std::unique_ptr<lm::Tokenizer> tokenizer_ = lm::make_byte_tokenizer();
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  std::ofstream(folder.store(), std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  fuzz::allow_error([&] {
    const lm::TokenStore store = folder.open();
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(store.tokens()));
    store.read(0, tokens);
    fuzz::check(store.documents() >= 1);
    for (std::int64_t d = 0; d < store.documents(); ++d) {
      fuzz::check(store.document_begin(d) <= store.document_end(d) && store.document_end(d) <= store.tokens());
    }
    if (!tokens.empty()) fuzz::check(store.document_of(store.tokens() - 1) < store.documents());
    fuzz::check(store.bytes().size() <= size);
  });
  return 0;
}
