#include "cuda/attend_backward.h"

#include <algorithm>
#include <optional>
#include <string>

#include "cuda/backward_plan.h"
#include "cuda/cuda_check.h"
#include "cuda/inverse.h"
#include "cuda/sm90/backward.h"
#include "cuda/tensor_map.h"
#include "moba/error.h"
#include "scratch.h"

namespace moba::cuda {
namespace {

template <class View>
RowsOf rows_of(const char* argument, const View& view) {
  if (!is_aligned(view)) {
    throw Error(ErrorCode::kUnsupported, std::string(argument) +
                                             " has an address or a stride that is not a multiple of 16 bytes; the "
                                             "Hopper kernels move it in 16-byte pieces. Make it contiguous first.");
  }
  return {const_cast<void*>(static_cast<const void*>(view.data)), view.stride[0], view.stride[1]};
}

void check_supported(const AttendBackwardArgs& args) {
  const auto refuse = [](const std::string& argument, const std::string& rule) {
    throw Error(ErrorCode::kUnsupported, argument + "; the Hopper kernels of attend_backward take " + rule +
                                             ". Use the portable backend for this call.");
  };
  const Selection& selection = args.selection;
  if (selection.kind != SelectionKind::kList) refuse("selection is not a list of blocks", "lists");
  if (selection.row_tile != 1) refuse("row_tile is " + std::to_string(selection.row_tile), "1");
  if (selection.budget() > kMaxBudget) refuse("budget is " + std::to_string(selection.budget()), "less than 64");
  if (args.v.shape[2] != args.q.shape[2]) {
    refuse("value dim is " + std::to_string(args.v.shape[2]) + " and head dim " + std::to_string(args.q.shape[2]),
           "equal ones");
  }
}

BackwardChunk whole_call(const AttendBackwardArgs& args, const BlockMap& map, const RowTerm* terms,
                         const BackwardPlan& plan) {
  BackwardChunk chunk{};
  chunk.q = rows_of("q", args.q);
  chunk.k = rows_of("k", args.k);
  chunk.v = rows_of("v", args.v);
  chunk.dout = rows_of("dout", args.dout);
  chunk.dq = rows_of("dq", args.dq);
  chunk.dk = rows_of("dk", args.dk);
  chunk.dv = rows_of("dv", args.dv);
  chunk.total_rows = args.q.shape[0];
  chunk.total_keys = args.k.shape[0];
  chunk.terms = terms;
  chunk.softmax_scale = static_cast<float>(args.softmax_scale);
  chunk.sequences = map.sequences();
  chunk.sequence_count = map.sequence_count();
  chunk.block_spans = map.blocks();
  chunk.block_rows = map.block_rows();
  chunk.blocks = args.selection.blocks.as<std::int32_t>();
  chunk.blocks_row_stride = args.selection.blocks.stride[0];
  chunk.blocks_head_stride = args.selection.blocks.stride[1];
  chunk.heads = static_cast<std::int32_t>(args.q.shape[1]);
  chunk.selection_heads = static_cast<std::int32_t>(args.selection.selection_heads());
  chunk.budget = static_cast<std::int32_t>(args.selection.budget());
  chunk.block_size = args.selection.block_size;
  chunk.group = static_cast<std::int32_t>(plan.group());
  chunk.unit_tiles = static_cast<std::int32_t>(plan.unit_tiles);
  chunk.tile_limit = static_cast<std::int32_t>(plan.tile_limit);
  return chunk;
}

/// What every launch must know.
struct Kind {
  DType dtype;
  int dim;
  int processors;
  cudaStream_t stream;
};

void run_round(const BackwardRound& round, const BackwardPlan& plan, const Kind& kind) {
  launch_list_items(round, kind.dim, kind.stream);
  for (int number = 0; number < round.chunks; ++number) {
    const BackwardChunk chunk = round.chunk(number);
    if (plan.turns) {
      check_cuda(cudaMemsetAsync(chunk.turns, 0, static_cast<std::size_t>(plan.turn_tiles) * sizeof(std::int32_t),
                                 kind.stream),
                 "cudaMemsetAsync(turns)");
      launch_pack_tiles(chunk, kind.stream);
    }
    launch_backward_products(chunk, kind.dtype, kind.dim, kind.processors, kind.stream);
    launch_backward_sums(chunk, kind.dtype, kind.dim, kind.processors, kind.stream);
    if (plan.turns) launch_add_tiles(chunk, kind.dtype, kind.stream);
  }
}

}  // namespace

void attend_backward(Context& context, const AttendBackwardArgs& args) {
  check_supported(args);
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], kv_heads = args.k.shape[1];
  const Kind kind{args.q.dtype, static_cast<int>(args.q.shape[2]), multiprocessors(),
                  static_cast<cudaStream_t>(context.stream())};
  const cudaStream_t stream = kind.stream;
  const BlockMap map(context, args.batch, rows, args.k.shape[0], args.selection.block_size);
  const BackwardPlan plan(
      {rows, args.k.shape[0], heads, kv_heads, kind.dim, args.selection.budget(), args.selection.selection_heads(),
       args.selection.block_size, map.block_rows(), args.batch.max_seqlen_k},
      context.workspace_limit());

  const Scratch<RowTerm> terms(context, rows * heads, "terms of each row");
  launch_row_terms({rows_of("out", args.out), rows_of("dout", args.dout), args.lse.as<float>(), args.lse.stride[0],
                    args.lse.stride[1], args.dlse.present() ? args.dlse.as<float>() : nullptr, args.dlse.stride[0],
                    args.dlse.stride[1], rows, static_cast<std::int32_t>(heads), terms.data()},
                   kind.dtype, kind.dim, stream);
  const Scratch<std::int32_t> counters(context, plan.chunks * kBackwardCounters, "counters of the work lists");
  const Scratch<BackwardItem> items(context, plan.chunks * plan.chunk_items, "work lists");
  const Scratch<UnitSlabs> unit_slabs(context, plan.chunks * plan.chunk_units, "slabs of each unit");
  const Scratch<std::int32_t> cut_units(context, plan.chunks * plan.chunk_units, "units with slabs");
  const Scratch<std::uint16_t> partials(context, plan.places, "gradients of queries from each block");
  const Scratch<float> slabs(context, plan.slabs, "gradients of keys from parts of the work");
  const std::int64_t turn_elements = plan.turn_tiles * tile_rows_of(kind.dim);
  const Scratch<std::int32_t> turns(context, plan.turn_tiles, "turns of the units of a block");
  const Scratch<std::uint16_t> tiles(context, turn_elements * 2 * kind.dim, "tiles of query rows");
  const Scratch<RowTerm> tile_terms(context, turn_elements, "terms of rows of tiles");
  const Scratch<std::uint32_t> tile_rows(context, plan.turn_rows, "rows of tiles of gradients");
  const Scratch<float> sums(context, plan.sums, "gradients of keys over rounds of rows");

  BackwardRound round{};
  round.whole = whole_call(args, map, terms.data(), plan);
  round.chunk_kv_heads = static_cast<std::int32_t>(plan.chunk_kv_heads);
  round.chunks = static_cast<std::int32_t>(plan.chunks);
  round.chunk_items = static_cast<std::int32_t>(plan.chunk_items);
  round.chunk_units = static_cast<std::int32_t>(plan.chunk_units);
  BackwardChunk& whole = round.whole;
  whole.counters = counters.data();
  whole.items = items.data();
  whole.unit_slabs = unit_slabs.data();
  whole.cut_units = cut_units.data();
  whole.partials = partials.data();
  whole.tiles = tiles.data();
  whole.tile_terms = tile_terms.data();
  whole.tile_rows = tile_rows.data();
  whole.turns = plan.turns ? turns.data() : nullptr;
  whole.slabs = slabs.data();
  whole.sums = plan.sums > 0 ? sums.data() : nullptr;
  std::optional<BlockInverse> inverse;
  if (whole.budget > 0) {
    inverse.emplace(context, map, args.selection,
                    Slice{0, plan.round_rows, 0, plan.lists_of(0, plan.round_kv_heads * plan.group())},
                    kBackwardInverseItemRows);
  }
  launch_clear_keyless(whole, kv_heads, kind.dtype, kind.dim, stream);
  for (std::int64_t kv = 0; kv < kv_heads; kv += plan.round_kv_heads) {
    whole.first_kv_head = static_cast<std::int32_t>(kv);
    whole.kv_heads = static_cast<std::int32_t>(std::min(plan.round_kv_heads, kv_heads - kv));
    whole.first_selection_head = static_cast<std::int32_t>(plan.first_list(kv * plan.group()));
    if (plan.sums > 0) {
      check_cuda(cudaMemsetAsync(whole.sums, 0, static_cast<std::size_t>(plan.sums) * sizeof(float), stream),
                 "cudaMemsetAsync(sums of keys)");
    }
    for (std::int64_t row = 0; row == 0 || row < rows; row += plan.round_rows) {
      whole.first_row = row;
      whole.rows = std::min(plan.round_rows, rows - row);
      whole.own_tiles =
          static_cast<std::int32_t>(own_tiles_of_head(whole.rows, whole.block_rows, tile_rows_of(kind.dim)));
      whole.head_tiles =
          static_cast<std::int32_t>(tiles_of_head(whole.rows, whole.budget, whole.block_rows, tile_rows_of(kind.dim)));
      check_cuda(
          cudaMemsetAsync(whole.counters, 0, static_cast<std::size_t>(counters.size()) * sizeof(std::int32_t), stream),
          "cudaMemsetAsync(counters)");
      if (inverse.has_value()) {
        inverse->build({row, whole.rows, whole.first_selection_head,
                        plan.lists_of(kv * plan.group(), whole.kv_heads * plan.group())});
        whole.offsets = inverse->offsets();
        whole.entries = inverse->entries();
      }
      run_round(round, plan, kind);
      if (plan.round_rows == 0) break;  // no rows: dk and dv are zero, and written
    }
    if (plan.sums > 0) launch_round_sums(whole, kind.dtype, kind.dim, stream);
  }
}

}  // namespace moba::cuda
