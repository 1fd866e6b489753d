#include "lm/train/train.h"

#include <fmt/core.h>

#include <chrono>
#include <memory>
#include <utility>

#include "lm/config/train_config.h"
#include "lm/data/text_files.h"
#include "lm/train/resume_parts.h"
#include "lm/train/run.h"
#include "lm/train/run_folder.h"
#include "lm/util/device.h"
#include "lm/util/files.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

std::unique_ptr<Tokenizer> load_tokenizer(const TrainConfig& config) {
  std::unique_ptr<Tokenizer> tokenizer =
      config.data.tokenizer == "bytes" ? make_byte_tokenizer() : load_sentencepiece(config.data.tokenizer);
  if (tokenizer->vocab_size() > config.model.config.vocab_size)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("model.vocab_size = {}: the tokenizer {} has {} tokens; make it at least that",
                            config.model.config.vocab_size, config.data.tokenizer, tokenizer->vocab_size()));
  return tokenizer;
}

// A line every two seconds while text becomes tokens.
ByteProgress token_progress(const std::string& key, const std::function<void(const std::string&)>& log) {
  using Clock = std::chrono::steady_clock;
  auto last = std::make_shared<Clock::time_point>(Clock::now());
  return [key, log, last](std::int64_t done, std::int64_t total) {
    const auto now = Clock::now();
    if (!log || now - *last < std::chrono::seconds(2)) return;
    *last = now;
    log(fmt::format("{}: {:.0f} of {:.0f} MB turned into tokens", key, static_cast<double>(done) / 1e6,
                    static_cast<double>(total) / 1e6));
  };
}

// The store's name must change with the tokenizer: a model file counts by its content's size and time too.
std::string tokenizer_name(const TrainConfig& config) {
  if (config.data.tokenizer == "bytes") return "bytes";
  const TextFile file = list_text_files({config.data.tokenizer}, "data.tokenizer").front();
  return fmt::format("{}\t{}\t{}", std::filesystem::absolute(file.path).string(), file.size, file.modified);
}

}  // namespace

TrainOutcome train(const TrainArguments& arguments) {
  process_seconds();  // the clock starts before any work
  TrainConfig config = load_train_config(arguments.config, arguments.overrides);
  if (arguments.out) config.run.out = *arguments.out;
  const std::vector<TextFile> train_files = list_text_files(config.data.train, "data.train");
  std::vector<TextFile> valid_files;
  if (!config.data.valid.empty()) valid_files = list_text_files(config.data.valid, "data.valid");
  if (config.run.validate_every > 0 && valid_files.empty())
    throw Error(ErrorCode::kInvalidArgument, "data.valid: is missing, and run.validate_every asks for it");
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(config);
  if (config.run.resume_parts) check_resume_folder(*config.run.resume_parts);
  const torch::Device device = resolve_device(config.run.device);
  const RunFolder folder(config.run.out);
  folder.prepare(arguments.resume);

  const std::string name = tokenizer_name(config);
  RunInputs inputs{TokenStore::open_or_build(train_files, *tokenizer, name, config.data.cache_dir,
                                             token_progress("data.train", arguments.log)),
                   std::nullopt};
  if (config.run.validate_every > 0) {
    inputs.valid = TokenStore::open_or_build(valid_files, *tokenizer, name, config.data.cache_dir,
                                             token_progress("data.valid", arguments.log));
  }
  Run run(config, inputs, folder, device, arguments);
  return run.train();
}

}  // namespace moba::lm
