// libmoba: block-sparse attention for long context. This header brings the whole public C++ API.
#pragma once

#include "moba/backend.h"
#include "moba/context.h"
#include "moba/diagnose.h"
#include "moba/error.h"
#include "moba/kv_cache.h"
#include "moba/options.h"
#include "moba/page_pool.h"
#include "moba/page_table.h"
#include "moba/paged_kv_cache.h"
#include "moba/pipeline.h"
#include "moba/reads.h"
#include "moba/selection.h"
#include "moba/tensor.h"
