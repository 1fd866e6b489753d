// The forward pass: for each slice of rows and lists, invert -> attend_history -> attend_own, which merges.
#include "cuda/attend.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/cuda_check.h"
#include "cuda/slices.h"
#include "cuda/tensor_map.h"
#include "cuda/verbs.h"
#include "moba/error.h"
#include "scratch.h"

namespace moba::cuda {
namespace {

constexpr std::int64_t kSmallestBlock = 16;
constexpr std::int64_t kMostElements = std::int64_t{1} << 35;  // of q: its rows are found in pieces of 8, in 32 bits

void require_native(bool holds, const char* verb, const std::string& what, const char* rule) {
  if (holds) return;
  throw Error(ErrorCode::kUnsupported,
              std::string(verb) + ": " + what + "; the Hopper kernels take " + rule + ". Use the portable backend.");
}

void require_aligned(const char* argument, const ConstTensorView& tensor) {
  if (is_aligned(tensor)) return;
  throw Error(ErrorCode::kUnsupported, std::string(argument) +
                                           " has an address or a stride that is not a multiple of 16 bytes; the "
                                           "Hopper kernels move it in 16-byte pieces. Make it contiguous first.");
}

/// A tensor without tokens cannot be described to the copy engine and is never read: `other` stands in.
CUtensorMap map_of(const char* argument, const ConstTensorView& tensor, const ConstTensorView& other, int rows) {
  return tensor_map(argument, tensor.shape[0] > 0 ? tensor : other, rows);
}

}  // namespace

void check_native(const char* verb, const ConstTensorView& q, const ConstTensorView& v, const Selection& selection) {
  require_native(q.dtype == DType::kBFloat16 || q.dtype == DType::kFloat16, verb,
                 std::string("q is ") + name_of(q.dtype), "bfloat16 and float16");
  require_native(q.shape[2] == v.shape[2] && (q.shape[2] == 64 || q.shape[2] == 128), verb,
                 "q and v have head dims " + std::to_string(q.shape[2]) + " and " + std::to_string(v.shape[2]),
                 "64 and 128, the same for both");
  require_native(selection.kind == SelectionKind::kList, verb, "selection.kind is not a list of blocks",
                 "lists; dense attention is cuDNN's");
  require_native(selection.row_tile == 1, verb, "selection.row_tile is " + std::to_string(selection.row_tile), "1");
  require_native(selection.block_size >= kSmallestBlock, verb, "block_size is " + std::to_string(selection.block_size),
                 "16 and more");
  require_native(selection.budget() <= kMaxBudget, verb, "top_k is " + std::to_string(selection.budget() + 1),
                 "at most 64");
}

void attend(Context& context, const AttendArgs& args) {
  check_native("attend", args.q, args.v, args.selection);
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], dim = args.q.shape[2];
  if (rows == 0 || heads == 0) return;
  require_aligned("q", args.q);
  require_aligned("k", args.k);
  require_aligned("v", args.v);
  require_aligned("out", args.result.out);
  require_native((rows - 1) * args.q.stride[0] + heads * args.q.stride[1] <= kMostElements, "attend",
                 "q spans more than 64 GiB", "less");
  const std::int64_t budget = args.selection.budget(), lists = args.selection.selection_heads();
  const HeadGroups groups = head_groups(heads, args.k.shape[1], lists);
  const cudaStream_t stream = stream_of(context);
  const auto scale = static_cast<float>(args.softmax_scale);

  const BlockMap map(context, args.batch, rows, args.k.shape[0], args.selection.block_size);
  const std::int64_t map_bytes = map.sequence_count() * static_cast<std::int64_t>(sizeof(SequenceSpan)) +
                                 map.block_rows() * static_cast<std::int64_t>(sizeof(BlockSpan));
  const std::int64_t pair_bytes =
      groups.heads_per_list * (dim * size_of(args.q.dtype) + static_cast<std::int64_t>(sizeof(float)));
  const std::int64_t item_rows =
      item_rows_for({0, rows, 0, lists}, budget, args.selection.block_size, dim, groups, multiprocessors());
  const Slice largest = largest_slice(rows, lists, budget, map.block_rows(), item_rows, pair_bytes,
                                      own_unit_rows(args.selection.block_size), context.workspace_limit() - map_bytes);
  const std::int64_t pairs = largest.rows * largest.lists * groups.heads_per_list * budget;
  const Scratch<std::uint16_t> partial_out(context, pairs * dim, "partial results");
  // And two counters of units, and what is read beyond its end.
  const Scratch<float> partial_lse(context, pairs + 2 + 3, "log-sum-exp of partial results");
  BlockInverse inverse(context, map, args.selection, largest, item_rows);

  HistoryArgs history;
  history.q = args.q.data;
  history.q_row_stride = args.q.stride[0], history.q_head_stride = args.q.stride[1];
  history.block_size = args.selection.block_size;
  history.groups = groups;
  history.softmax_scale = scale;
  const int history_rows = history_key_rows(history.block_size);
  const CUtensorMap history_k = map_of("k", args.k, args.q, history_rows);
  const CUtensorMap history_v = map_of("v", args.v, args.q, history_rows);

  OwnArgs own;
  own.q = args.q.data, own.k = args.k.data, own.v = args.v.data;
  own.q_row_stride = args.q.stride[0], own.q_head_stride = args.q.stride[1];
  own.k_row_stride = args.k.stride[0], own.k_head_stride = args.k.stride[1];
  own.v_row_stride = args.v.stride[0], own.v_head_stride = args.v.stride[1];
  own.out = args.result.out.data;
  own.out_row_stride = args.result.out.stride[0], own.out_head_stride = args.result.out.stride[1];
  own.lse = args.result.lse.as<float>();
  own.lse_head_stride = args.result.lse.stride[0];
  own.sequences = map.sequences();
  own.sequence_count = map.sequence_count();
  // Beyond every position a block size is as good as any other, and the kernel divides in 32 bits.
  own.block_size = std::min<std::int64_t>(args.selection.block_size, std::numeric_limits<std::int32_t>::max());
  own.heads_per_kv = groups.heads_per_kv;
  own.softmax_scale = scale;
  const CUtensorMap own_q = tensor_map("q", args.q, kOwnRows);
  const CUtensorMap own_k = map_of("k", args.k, args.q, kOwnRows);
  const CUtensorMap own_v = map_of("v", args.v, args.q, kOwnRows);

  for (std::int64_t first_row = 0; first_row < rows; first_row += largest.rows) {
    for (std::int64_t first_list = 0; first_list < lists; first_list += largest.lists) {
      const Slice slice{first_row, std::min(largest.rows, rows - first_row), first_list,
                        std::min(largest.lists, lists - first_list)};
      Partials partials;
      partials.out = partial_out.data(), partials.lse = partial_lse.data();
      partials.first_row = first_row, partials.rows = slice.rows;
      partials.first_head = static_cast<std::int32_t>(first_list) * groups.heads_per_list;
      partials.heads = static_cast<std::int32_t>(slice.lists) * groups.heads_per_list;
      partials.budget = static_cast<std::int32_t>(budget);
      // The counters of units begin at -1, which is what marks a slot without a block too. Before the kernels: what is
      // between two of them keeps the second from being launched early.
      const auto begin_slots = [&](std::int64_t slots) {
        const auto bytes = static_cast<std::size_t>(slots + 2) * sizeof(float);
        check_cuda(cudaMemsetAsync(partials.lse, 0xff, bytes, stream), "cudaMemsetAsync");
        history.units_taken = reinterpret_cast<std::int32_t*>(partials.lse + slots);
        own.units_taken = history.units_taken + 1;
      };
      if (budget > 0 && map.block_rows() > 0) {
        begin_slots(slice.rows * partials.heads * budget);
        inverse.build(slice);
        history.items = inverse.items();
        history.item_count = inverse.item_count();
        history.entries = inverse.entries();
        history.first_list = static_cast<std::int32_t>(first_list);
        history.partials = partials;
        launch_attend_history(stream, args.q.dtype, dim, history, history_k, history_v,
                              inverse.max_items() * groups.units_per_list);
      } else {
        partials.budget = 0;
        begin_slots(0);
      }
      own.first_row = first_row, own.rows = slice.rows;
      own.partials = partials;
      launch_attend_own(stream, args.q.dtype, dim, own, own_q, own_k, own_v);
    }
  }
  launch_fill_unheld_rows(stream, args.q.dtype, dim, own, rows, static_cast<std::int32_t>(heads));
}

}  // namespace moba::cuda
