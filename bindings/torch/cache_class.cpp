// KvCache as a class that Python can hold: torch.classes.moba.KvCache.
#include <torch/custom_class.h>

#include "cache_options.h"
#include "checks.h"
#include "moba_torch/attention.h"

namespace moba::torch_ops {
namespace {

struct CacheHolder : torch::CustomClassHolder {
  KvCache cache;

  CacheHolder(std::int64_t capacity, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t value_dim,
              const AttentionOptions& options, at::TensorOptions tensor_options)
      : cache(capacity, kv_heads, head_dim, value_dim, options, tensor_options) {}
};

// block_size 0: no representatives.
c10::intrusive_ptr<CacheHolder> make(std::int64_t capacity, std::int64_t kv_heads, std::int64_t head_dim,
                                     std::int64_t value_dim, std::int64_t block_size, at::ScalarType dtype,
                                     at::Device device, const std::string& representative_dtype) {
  return as_operator([&] {
    return c10::make_intrusive<CacheHolder>(capacity, kv_heads, head_dim, value_dim,
                                            options_of_cache(block_size, representative_dtype),
                                            at::TensorOptions(dtype).device(device));
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moba, library) {
  using Holder = c10::intrusive_ptr<CacheHolder>;
  library.class_<CacheHolder>("KvCache")
      .def(torch::init(make))
      .def("append", [](const Holder& self, const at::Tensor& k,
                        const at::Tensor& v) { as_operator([&] { self->cache.append(k, v); }); })
      .def("attend",
           [](const Holder& self, const at::Tensor& q, const std::string& kind, std::int64_t block_size,
              std::int64_t top_k, std::int64_t window, std::int64_t sink, double softmax_scale, bool compat_topk1_full,
              bool force_previous, std::int64_t sink_blocks, const std::string& share, const std::string& share_score,
              const std::string& representative_dtype) {
             return as_operator([&] {
               return self->cache.attend(
                   q, options_of(kind, block_size, top_k, window, sink, softmax_scale, compat_topk1_full,
                                 force_previous, sink_blocks, share, share_score, representative_dtype));
             });
           })
      .def("truncate",
           [](const Holder& self, std::int64_t length) { as_operator([&] { self->cache.truncate(length); }); })
      .def("length", [](const Holder& self) { return self->cache.length(); })
      .def("capacity", [](const Holder& self) { return self->cache.capacity(); });
}

}  // namespace moba::torch_ops
