// attend_cached over pages in memory that the host does not reach.
#pragma once

#include <span>

#include "moba/backend.h"
#include "moba/options.h"
#include "moba/paged_kv_cache.h"

namespace moba {

/// As attend_cached, whose checks of the cache, the parts and q are done. The backend has device_pages().
void attend_device_pages(Context& context, const Backend& backend, const PagedKvCache& cache,
                         std::span<const SequenceTokens> parts, const AttentionOptions& options,
                         const ConstTensorView& q, const Partial& result);

}  // namespace moba
