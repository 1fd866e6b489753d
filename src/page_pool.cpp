#include "moba/page_pool.h"

#include <limits>
#include <string>

#include "checks.h"

namespace moba {
namespace {

std::size_t index_of(std::int32_t page, std::int64_t pages) {
  require(page >= 0 && page < pages, "page", std::to_string(page),
          "between 0 and " + std::to_string(pages - 1) + ", the last of the pool",
          "Only take() hands out pages; is the page table of another pool?");
  return static_cast<std::size_t>(page);
}

void require_held(std::int64_t holders, std::int32_t page) {
  require(holders > 0, "page", std::to_string(page), "one that is held", "It is free: take() it first.");
}

}  // namespace

PagePool::PagePool(std::int64_t pages) {
  require(pages >= 0 && pages <= std::numeric_limits<std::int32_t>::max(), "pages", std::to_string(pages),
          "between 0 and 2^31 - 1", "Page numbers are int32; make the pages larger.");
  holders_.assign(static_cast<std::size_t>(pages), 0);
  free_.resize(holders_.size());
  for (std::size_t i = 0; i < free_.size(); ++i) free_[i] = static_cast<std::int32_t>(free_.size() - 1 - i);
}

std::int64_t PagePool::holders(std::int32_t page) const {
  return holders_[index_of(page, pages())];
}

void PagePool::take(std::span<std::int32_t> wanted) {
  if (wanted.size() > free_.size()) {
    throw Error(ErrorCode::kWorkspace, "the page pool has " + std::to_string(free_pages()) + " free pages of " +
                                           std::to_string(pages()) + "; this call needs " +
                                           std::to_string(wanted.size()) +
                                           ". Truncate sequences that are done, or make the pool larger.");
  }
  for (std::int32_t& page : wanted) {
    page = free_.back();
    free_.pop_back();
    holders_[static_cast<std::size_t>(page)] = 1;
  }
}

void PagePool::share(std::span<const std::int32_t> shared) {
  for (std::int32_t page : shared) require_held(holders(page), page);
  for (std::int32_t page : shared) ++holders_[static_cast<std::size_t>(page)];
}

void PagePool::release(std::span<const std::int32_t> released) {
  for (std::int32_t page : released) require_held(holders(page), page);
  for (std::size_t i = 0; i < released.size(); ++i) {
    std::int64_t& count = holders_[static_cast<std::size_t>(released[i])];
    if (count == 0) {  // named more often than it is held: undo, so that nothing has changed
      for (std::size_t j = i; j-- > 0;) {
        if (holders_[static_cast<std::size_t>(released[j])]++ == 0) free_.pop_back();
      }
      require_held(0, released[i]);
    }
    if (--count == 0) free_.push_back(released[i]);
  }
}

}  // namespace moba
