// PagedKvCache as a class that Python can hold: torch.classes.moba.PagedKvCache.
#include <torch/custom_class.h>

#include <vector>

#include "cache_options.h"
#include "checks.h"
#include "moba_torch/paged_kv_cache.h"

namespace moba::torch_ops {
namespace {

using Numbers = std::vector<std::int64_t>;

struct PagedHolder : torch::CustomClassHolder {
  PagedKvCache cache;

  PagedHolder(const PagedKvCache::Sizes& sizes, const AttentionOptions& options, at::TensorOptions tensor_options)
      : cache(sizes, options, tensor_options) {}
};
using Paged = c10::intrusive_ptr<PagedHolder>;

std::vector<SequenceTokens> parts_of(const Numbers& sequences, const Numbers& counts) {
  require(sequences.size() == counts.size(), "the length of counts", std::to_string(counts.size()),
          "that of sequences, " + std::to_string(sequences.size()), "Pass one count for each sequence.");
  std::vector<SequenceTokens> parts(sequences.size());
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i] = {sequences[i], counts[i]};
  return parts;
}

// block_size 0: no representatives.
Paged make_paged(std::int64_t pages, std::int64_t page_size, std::int64_t sequences, std::int64_t capacity,
                 std::int64_t kv_heads, std::int64_t head_dim, std::int64_t value_dim, std::int64_t block_size,
                 at::ScalarType dtype, at::Device device, const std::string& representative_dtype) {
  return as_operator([&] {
    return c10::make_intrusive<PagedHolder>(
        PagedKvCache::Sizes{pages, page_size, sequences, capacity, kv_heads, head_dim, value_dim},
        options_of_cache(block_size, representative_dtype), at::TensorOptions(dtype).device(device));
  });
}

// out, lse and, where wanted, the numbers of ReadCount in their order.
std::tuple<at::Tensor, at::Tensor, Numbers> attend_paged(
    const Paged& self, const Numbers& sequences, const Numbers& counts, const at::Tensor& q, const std::string& kind,
    std::int64_t block_size, std::int64_t top_k, std::int64_t window, std::int64_t sink, double softmax_scale,
    bool compat_topk1_full, bool force_previous, std::int64_t sink_blocks, const std::string& share,
    const std::string& share_score, const std::string& representative_dtype, bool count_reads) {
  return as_operator([&] {
    ReadCount reads;
    const auto [out, lse] =
        self->cache.attend(parts_of(sequences, counts), q,
                           options_of(kind, block_size, top_k, window, sink, softmax_scale, compat_topk1_full,
                                      force_previous, sink_blocks, share, share_score, representative_dtype),
                           count_reads ? &reads : nullptr);
    Numbers numbers;
    if (count_reads) {
      numbers = {reads.blocks_read, reads.blocks_chosen, reads.keys_read,
                 reads.keys_chosen, reads.key_bytes,     reads.representative_bytes};
    }
    return std::tuple(out, lse, numbers);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moba, library) {
  library.class_<PagedHolder>("PagedKvCache")
      .def(torch::init(make_paged))
      .def("append",
           [](const Paged& self, const Numbers& sequences, const Numbers& counts, const at::Tensor& k,
              const at::Tensor& v) { as_operator([&] { self->cache.append(parts_of(sequences, counts), k, v); }); })
      .def("grow", [](const Paged& self, const Numbers& sequences,
                      const Numbers& counts) { as_operator([&] { self->cache.grow(parts_of(sequences, counts)); }); })
      .def("write",
           [](const Paged& self, const Numbers& sequences, const Numbers& counts, const at::Tensor& k,
              const at::Tensor& v) { as_operator([&] { self->cache.write(parts_of(sequences, counts), k, v); }); })
      .def("attend", attend_paged)
      .def("fork", [](const Paged& self, std::int64_t source, std::int64_t target,
                      std::int64_t length) { as_operator([&] { self->cache.fork(source, target, length); }); })
      .def("truncate", [](const Paged& self, std::int64_t sequence,
                          std::int64_t length) { as_operator([&] { self->cache.truncate(sequence, length); }); })
      .def("length", [](const Paged& self,
                        std::int64_t sequence) { return as_operator([&] { return self->cache.length(sequence); }); })
      .def("sequences", [](const Paged& self) { return self->cache.sequences(); })
      .def("capacity", [](const Paged& self) { return self->cache.capacity(); })
      .def("pages", [](const Paged& self) { return self->cache.pages(); })
      .def("free_pages", [](const Paged& self) { return self->cache.free_pages(); });
}

}  // namespace moba::torch_ops
