// Options of one attention call: the method and its numbers. Defaults are the published ones.
#pragma once

#include <cstdint>
#include <string_view>

namespace moba {

enum class Kind : std::uint8_t { kFull, kWindow, kMoba };

/// "full", "window", "moba".
const char* name_of(Kind kind);
/// The kind of that name; Error (kInvalidArgument) lists the known ones.
Kind kind_from_name(std::string_view name);

/// Which query heads have one choice of blocks: each its own, those of one key/value head, or all of the layer.
enum class Share : std::uint8_t { kHead, kGroup, kLayer };

/// How the heads of a shared choice score a block together. q·r is the product of a head's query with the block's
/// representative.
enum class ShareScore : std::uint8_t {
  kSumLogit,  // the sum of q·r
  kSumProb,   // the sum of softmax(scale * q·r), each head's over all past blocks of the row
  kMax,       // the greatest q·r
};

/// Whether a block's mean key is rounded to the dtype of the keys, as the published code does, or kept in float32
/// (float64 beside float64).
enum class RepresentativeDType : std::uint8_t { kInput, kFloat32 };

/// "head", "group", "layer".
const char* name_of(Share share);
/// "sum_logit", "sum_prob", "max".
const char* name_of(ShareScore score);
/// "input", "float32".
const char* name_of(RepresentativeDType dtype);
/// The value of that name; Error (kInvalidArgument) lists the known ones.
Share share_from_name(std::string_view name);
ShareScore share_score_from_name(std::string_view name);
RepresentativeDType representative_dtype_from_name(std::string_view name);

struct AttentionOptions {
  Kind kind = Kind::kMoba;

  // moba
  std::int64_t block_size = 512;  // B >= 1, in tokens
  std::int64_t top_k = 3;         // k >= 1 blocks a row attends, **its own counted**
  /// At top_k == 1 the public MoBA kernels fall back to full causal attention; the paper means the own block only, and
  /// so do we. This flag gives the peers' behaviour.
  bool compat_topk1_full = false;
  /// Forced blocks take slots of the k: the block before the row's own, and the first `sink_blocks` of the sequence
  /// (sink_blocks + force_previous <= top_k - 1). One that is both counts once; free slots go to the best of the rest.
  bool force_previous = false;
  std::int64_t sink_blocks = 0;  // >= 0
  Share share = Share::kHead;
  ShareScore share_score = ShareScore::kSumLogit;  // of no effect where a choice serves one head
  RepresentativeDType representative_dtype = RepresentativeDType::kInput;

  // window: the last `window` keys, the row's own among them, and the first `sink` keys
  std::int64_t window = 0;
  std::int64_t sink = 0;

  /// Factor on q·k before the softmax; 0 means 1/sqrt(head_dim). The choice of blocks does not use it,
  /// but for share_score kSumProb.
  double softmax_scale = 0.0;
};

}  // namespace moba
