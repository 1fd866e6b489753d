// Which pages of a pool are free, and how many sequences hold each of the others.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moba {

/// Hands out page numbers of a pool and counts their holders. It owns these counters and nothing else: the pages
/// themselves are tensors of the caller. Every call is O(pages named), does all or nothing, and allocates nothing.
/// Not for several threads at once.
class PagePool {
 public:
  /// All pages free; the first to be handed out are 0, 1, 2, … Errors: kInvalidArgument beyond 0 … 2^31 - 1 pages.
  explicit PagePool(std::int64_t pages);

  std::int64_t pages() const { return static_cast<std::int64_t>(holders_.size()); }
  std::int64_t free_pages() const { return static_cast<std::int64_t>(free_.size()); }
  /// How many hold the page; 0 for a free one. Errors: kInvalidArgument for a page that the pool does not have.
  std::int64_t holders(std::int32_t page) const;

  /// Fills `pages` with free ones, each of which then has one holder. Errors: kWorkspace when there are too few.
  void take(std::span<std::int32_t> pages);
  /// One more holder for each. Errors: kInvalidArgument for one that is free.
  void share(std::span<const std::int32_t> pages);
  /// One holder less for each; a page without holders is free. Errors: kInvalidArgument for one that is free.
  void release(std::span<const std::int32_t> pages);

 private:
  std::vector<std::int64_t> holders_;
  std::vector<std::int32_t> free_;  // the next one last
};

}  // namespace moba
