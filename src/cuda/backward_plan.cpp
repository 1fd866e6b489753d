#include "cuda/backward_plan.h"

#include <algorithm>
#include <string>

#include "cuda/inverse.h"
#include "cuda/sm90/backward.h"
#include "moba/error.h"

namespace moba::cuda {
namespace {

constexpr std::int64_t kRowGrain = 128;        // rounds of rows are multiples of it
constexpr std::int64_t kFewestItemTiles = 32;  // an item of fewer would write more sums than it reads rows

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

BackwardPlan::BackwardPlan(const BackwardShapes& shapes, std::int64_t limit)
    : shapes_(shapes), limit_(limit), beside_(shapes.rows * shapes.heads * shapes.dim * 4) {
  const std::int64_t longest = std::max<std::int64_t>(1, std::min(shapes.longest, shapes.keys));
  unit_tiles = ceil_div(std::min(shapes.block_size, longest), kUnitKeys);
  turns = takes_turns(unit_tiles, static_cast<int>(shapes.dim));
  for (std::int64_t count = 1; count <= shapes.kv_heads; ++count) {
    if (try_round(shapes.rows, shapes.kv_heads, ceil_div(shapes.kv_heads, count))) return;
  }
  std::int64_t heads = shapes.kv_heads;
  while (heads > 1 && !try_round(shapes.rows, heads, heads)) {
    heads = std::min(heads - 1, ceil_div(shapes.kv_heads, ceil_div(shapes.kv_heads, heads) + 1));
  }
  for (std::int64_t count = 1;; ++count) {
    const std::int64_t rows = ceil_div(ceil_div(shapes.rows, count), kRowGrain) * kRowGrain;
    if (try_round(count == 1 ? shapes.rows : rows, heads, heads)) return;
    if (rows <= kRowGrain) break;
  }
  throw Error(ErrorCode::kWorkspace, "workspace_limit is " + std::to_string(limit) + " bytes; it must be at least " +
                                         std::to_string(bytes_ - allowed_ + limit) +
                                         " here (gradients of 128 rows of one key/value head). Raise "
                                         "Context::workspace_limit.");
}

/// Fills in the plan for such a round; whether it fits.
bool BackwardPlan::try_round(std::int64_t rows, std::int64_t round_heads, std::int64_t kv_heads) {
  const int tile_rows = tile_rows_of(static_cast<int>(shapes_.dim));
  const std::int64_t heads = kv_heads * group(), slots = shapes_.budget + 1, block_rows = shapes_.block_rows;
  round_rows = rows;
  round_kv_heads = round_heads;
  chunk_kv_heads = kv_heads;
  chunks = ceil_div(round_heads, kv_heads);

  // Each (row, head) is in at most budget + 1 lists of unit_tiles units, and each list ends in a tile that is not full.
  // A unit of more tiles than an item may have gets fewer than 2 * tiles / tile_limit parts.
  const std::int64_t tiles = unit_tiles * (ceil_div(rows * heads * slots, tile_rows) + 2 * heads * block_rows);
  const std::int64_t slab = 2 * kUnitKeys * shapes_.dim;  // elements
  const std::int64_t slab_bytes = std::max<std::int64_t>(1, (turns ? limit_ : limit_ + beside_) / 6);
  tile_limit = std::max(kFewestItemTiles, ceil_div(2 * tiles * slab * 4, slab_bytes));
  const std::int64_t parts = ceil_div(2 * tiles, tile_limit);
  chunk_units = block_rows * kv_heads * unit_tiles;
  chunk_items = chunk_units + parts;
  slabs = parts * slab;
  turn_tiles = turns ? heads * tiles_of_head(rows, shapes_.budget, block_rows, tile_rows) : 0;
  turn_rows = turns ? rows * heads * slots : 0;
  const std::int64_t place_rows = turns ? turn_tiles * tile_rows : rows * heads * slots * unit_tiles;
  places = place_rows * shapes_.dim * (turns ? 2 : 1);  // of two bytes
  sums = rows < shapes_.rows ? 2 * kv_heads * shapes_.keys * shapes_.dim : 0;

  bytes_ = shapes_.rows * shapes_.heads * static_cast<std::int64_t>(sizeof(RowTerm));
  bytes_ += places * 2 + slabs * 4;
  bytes_ += turn_tiles * (4 + tile_rows * (2 * shapes_.dim * 2 + std::int64_t{sizeof(RowTerm)})) + turn_rows * 4;
  bytes_ += chunks * (chunk_items * static_cast<std::int64_t>(sizeof(BackwardItem)) + chunk_units * 12 +
                      kBackwardCounters * std::int64_t{sizeof(std::int32_t)});
  if (shapes_.budget > 0) {
    bytes_ += BlockInverse::bytes({0, rows, 0, lists_of(0, round_heads * group())}, shapes_.budget, block_rows,
                                  kBackwardInverseItemRows);
  }
  bytes_ += sums * 4;
  // Tiles in turns gain nothing from larger chunks, only from more rows in a round.
  allowed_ = limit_ + (turns ? std::min(sums * 4, beside_) : beside_);
  // Units, rows of a list and places are counted in 32 bits.
  return bytes_ <= allowed_ && rows <= kMaxSliceRows && place_rows < (std::int64_t{1} << 32) - 1 &&
         chunk_units < std::int64_t{1} << 31;
}

}  // namespace moba::cuda
