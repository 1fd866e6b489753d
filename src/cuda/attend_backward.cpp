#include "cuda/attend_backward.h"

#include <algorithm>
#include <optional>
#include <string>

#include "cuda/cuda_check.h"
#include "cuda/inverse.h"
#include "cuda/sm90/backward.h"
#include "cuda/tensor_map.h"
#include "moba/error.h"
#include "scratch.h"

namespace moba::cuda {
namespace {

constexpr std::int64_t kRowGrain = 128;        // row chunks are multiples of it
constexpr std::int64_t kFewestItemTiles = 32;  // an item of fewer would write more sums than it reads rows
constexpr std::int64_t kItemRows = 1 << 20;    // of the inverse's own work list, which is not used here

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// How the call is cut, and the scratch of one chunk.
class Plan {
 public:
  Plan(const Context& context, const AttendBackwardArgs& args, std::int64_t block_rows)
      : rows_(args.q.shape[0]),
        keys_(args.k.shape[0]),
        heads_(args.q.shape[1]),
        kv_heads_(args.k.shape[1]),
        dim_(args.q.shape[2]),
        budget_(args.selection.budget()),
        lists_(args.selection.selection_heads()),
        block_rows_(block_rows),
        limit_(context.workspace_limit()) {
    const std::int64_t longest = std::max<std::int64_t>(1, std::min(args.batch.max_seqlen_k, keys_));
    unit_tiles = ceil_div(std::min(args.selection.block_size, longest), kUnitKeys);
    turns = takes_turns(unit_tiles, static_cast<int>(dim_));
    chunk_rows = rows_;
    std::int64_t kv_chunks = 1;
    for (; kv_chunks < kv_heads_ && !fits(rows_, ceil_div(kv_heads_, kv_chunks)); ++kv_chunks) {
    }
    chunk_kv_heads = ceil_div(kv_heads_, kv_chunks);
    for (std::int64_t chunks = 2; chunk_rows > kRowGrain && !fits(chunk_rows, chunk_kv_heads); ++chunks) {
      chunk_rows = ceil_div(ceil_div(rows_, chunks), kRowGrain) * kRowGrain;
    }
    require_workspace(context, bytes(chunk_rows, chunk_kv_heads), "gradients of 128 rows of one key/value head");
    const std::int64_t tiles = most_tiles(chunk_rows, chunk_kv_heads);
    tile_limit = tile_limit_of(tiles);
    slabs = most_slabs(tiles);
    units = block_rows_ * chunk_kv_heads * unit_tiles;
    items = units + slabs;
    partial_bytes = places(chunk_rows, chunk_kv_heads) * place_bytes();
    turn_words = turn_count(chunk_rows, chunk_kv_heads);
    sums = chunk_rows < rows_ ? 2 * chunk_kv_heads * keys_ * dim_ : 0;
  }

  std::int64_t group() const { return heads_ / kv_heads_; }
  /// The selection heads of query heads [first, first + count).
  std::int64_t first_list(std::int64_t head) const { return head * lists_ / heads_; }
  std::int64_t lists_of(std::int64_t first, std::int64_t count) const {
    return first_list(first + count - 1) - first_list(first) + 1;
  }

  std::int64_t chunk_rows = 0, chunk_kv_heads = 0;
  std::int64_t unit_tiles = 1, tile_limit = 0;
  bool turns = false;  // whether the units of a block take turns
  std::int64_t slabs = 0, units = 0, items = 0, partial_bytes = 0, turn_words = 0, sums = 0;

 private:
  std::int64_t slab_bytes() const { return 2 * kUnitKeys * dim_ * 4; }
  std::int64_t most_slab_bytes() const { return limit_ / 6; }

  /// Each (row, head) is in at most budget + 1 lists of unit_tiles units, and each list ends in a tile that is not
  /// full.
  std::int64_t most_tiles(std::int64_t rows, std::int64_t kv_heads) const {
    const std::int64_t heads = kv_heads * group(), tile = tile_rows_of(static_cast<int>(dim_));
    return unit_tiles * (ceil_div(rows * heads * (budget_ + 1), tile) + 2 * heads * block_rows_);
  }
  /// A unit of more than `limit` tiles has fewer than 2 * tiles / limit parts.
  std::int64_t tile_limit_of(std::int64_t tiles) const {
    return std::max(kFewestItemTiles, ceil_div(2 * tiles * slab_bytes(), std::max<std::int64_t>(1, most_slab_bytes())));
  }
  std::int64_t most_slabs(std::int64_t tiles) const { return ceil_div(2 * tiles, tile_limit_of(tiles)); }

  std::int64_t places(std::int64_t rows, std::int64_t kv_heads) const {
    return rows * kv_heads * group() * (budget_ + 1) * (turns ? 1 : unit_tiles);
  }
  std::int64_t place_bytes() const { return dim_ * (turns ? 4 : 2); }
  std::int64_t turn_count(std::int64_t rows, std::int64_t kv_heads) const {
    if (!turns) return 0;
    return kv_heads * group() * turns_of_head(rows, budget_, block_rows_, tile_rows_of(static_cast<int>(dim_))) *
           kTurnsOfTile;
  }

  std::int64_t bytes(std::int64_t rows, std::int64_t kv_heads) const {
    const std::int64_t heads = kv_heads * group(), unit_count = block_rows_ * kv_heads * unit_tiles;
    const std::int64_t slab_count = most_slabs(most_tiles(rows, kv_heads));
    std::int64_t total = rows_ * heads_ * static_cast<std::int64_t>(sizeof(RowTerm));
    total += places(rows, kv_heads) * place_bytes() + turn_count(rows, kv_heads) * 4 + slab_count * slab_bytes();
    total += (unit_count + slab_count) * static_cast<std::int64_t>(sizeof(BackwardItem)) + unit_count * 8;
    if (budget_ > 0) total += BlockInverse::bytes({0, rows, 0, lists_of(0, heads)}, budget_, block_rows_, kItemRows);
    if (rows < rows_) total += 2 * kv_heads * keys_ * dim_ * 4;
    return total;
  }
  /// Units, items and places are counted in 32 bits.
  static constexpr std::int64_t kMostUnits = std::int64_t{1} << 31;
  bool fits(std::int64_t rows, std::int64_t kv_heads) const {
    return bytes(rows, kv_heads) <= limit_ && rows <= kMaxSliceRows &&
           places(rows, kv_heads) < (std::int64_t{1} << 32) - 1 && block_rows_ * kv_heads * unit_tiles < kMostUnits;
  }

  std::int64_t rows_, keys_, heads_, kv_heads_, dim_, budget_, lists_, block_rows_, limit_;
};

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

BackwardChunk whole_call(const AttendBackwardArgs& args, const BlockMap& map, const RowTerm* terms, const Plan& plan) {
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

}  // namespace

void attend_backward(Context& context, const AttendBackwardArgs& args) {
  check_supported(args);
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], kv_heads = args.k.shape[1];
  const DType dtype = args.q.dtype;
  const int dim = static_cast<int>(args.q.shape[2]);
  const auto stream = static_cast<cudaStream_t>(context.stream());
  const BlockMap map(context, args.batch, rows, args.k.shape[0], args.selection.block_size);
  const Plan plan(context, args, map.block_rows());

  const Scratch<RowTerm> terms(context, rows * heads, "terms of each row");
  launch_row_terms({rows_of("out", args.out), rows_of("dout", args.dout), args.lse.as<float>(), args.lse.stride[0],
                    args.lse.stride[1], args.dlse.present() ? args.dlse.as<float>() : nullptr, args.dlse.stride[0],
                    args.dlse.stride[1], rows, static_cast<std::int32_t>(heads), terms.data()},
                   dtype, dim, stream);
  BackwardChunk chunk = whole_call(args, map, terms.data(), plan);
  launch_clear_keyless(chunk, kv_heads, dtype, dim, stream);

  const Scratch<std::int32_t> counters(context, kBackwardCounters, "counters of the work list");
  const Scratch<BackwardItem> items(context, plan.items, "work list");
  const Scratch<UnitSlabs> unit_slabs(context, plan.units, "slabs of each unit");
  const Scratch<std::uint16_t> partials(context, plan.partial_bytes / 2, "gradients of queries from each block");
  const Scratch<std::int32_t> turns(context, plan.turn_words, "turns of the units of a block");
  const Scratch<float> slabs(context, plan.slabs * 2 * kUnitKeys * dim, "gradients of keys from parts of the work");
  const Scratch<float> sums(context, plan.sums, "gradients of keys over chunks of rows");
  chunk.counters = counters.data();
  chunk.items = items.data();
  chunk.unit_slabs = unit_slabs.data();
  chunk.partials = partials.data();
  chunk.turns = plan.turns ? turns.data() : nullptr;
  chunk.slabs = slabs.data();
  chunk.sums = plan.sums > 0 ? sums.data() : nullptr;
  std::optional<BlockInverse> inverse;
  if (chunk.budget > 0) {
    inverse.emplace(context, map, args.selection,
                    Slice{0, plan.chunk_rows, 0, plan.lists_of(0, plan.chunk_kv_heads * plan.group())}, kItemRows);
  }
  const int processors = multiprocessors();

  for (std::int64_t kv = 0; kv < kv_heads; kv += plan.chunk_kv_heads) {
    chunk.first_kv_head = static_cast<std::int32_t>(kv);
    chunk.kv_heads = static_cast<std::int32_t>(std::min(plan.chunk_kv_heads, kv_heads - kv));
    chunk.first_selection_head = static_cast<std::int32_t>(plan.first_list(kv * plan.group()));
    if (plan.sums > 0) {
      check_cuda(cudaMemsetAsync(chunk.sums, 0, static_cast<std::size_t>(plan.sums) * sizeof(float), stream),
                 "cudaMemsetAsync(sums of keys)");
    }
    for (std::int64_t row = 0; row == 0 || row < rows; row += plan.chunk_rows) {
      chunk.first_row = row;
      chunk.rows = std::min(plan.chunk_rows, rows - row);
      if (inverse.has_value()) {
        inverse->build({row, chunk.rows, chunk.first_selection_head,
                        plan.lists_of(kv * plan.group(), chunk.kv_heads * plan.group())});
        chunk.offsets = inverse->offsets();
        chunk.entries = inverse->entries();
      }
      if (plan.turns) {
        check_cuda(
            cudaMemsetAsync(chunk.turns, 0, static_cast<std::size_t>(plan.turn_words) * sizeof(std::int32_t), stream),
            "cudaMemsetAsync(turns)");
      }
      launch_list_items(chunk, dim, stream);
      launch_backward_products(chunk, dtype, dim, processors, stream);
      launch_add_slabs(chunk, dtype, dim, stream);
      launch_add_partials(chunk, dtype, dim, stream);
      if (plan.chunk_rows == 0) break;  // no rows: dk and dv are zero, and written
    }
    if (plan.sums > 0) launch_round_sums(chunk, dtype, dim, stream);
  }
}

}  // namespace moba::cuda
