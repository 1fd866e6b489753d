#include "checks.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "moba/backend.h"
#include "moba/selection.h"

namespace moba::torch_ops {
namespace {

template <class T>
std::string text(const T& value) {
  std::ostringstream stream;
  stream << value;
  return stream.str();
}

std::string shape_of(const at::Tensor& tensor) {
  return "of shape " + text(tensor.sizes());
}

void check_rank(const char* argument, const at::Tensor& tensor, const char* axes) {
  require(tensor.dim() == 3, argument, shape_of(tensor), std::string("of shape ") + axes, "Reshape the tensor.");
}

void check_device(const char* argument, const at::Tensor& tensor, const at::Tensor& like, const char* like_name) {
  require(tensor.device() == like.device(), argument, "on " + tensor.device().str(),
          std::string("on the device of ") + like_name + ", " + like.device().str(), "Move it with .to(device).");
}

void check_dtype(const char* argument, const at::Tensor& tensor, at::ScalarType dtype, const char* like_name) {
  require(tensor.scalar_type() == dtype, argument, std::string("of dtype ") + c10::toString(tensor.scalar_type()),
          std::string("of the dtype of ") + like_name + ", " + c10::toString(dtype), "Convert it with .to(dtype).");
}

void check_dim(const char* argument, std::int64_t dim) {
  require(dim >= kMinHeadDim && dim <= kMaxHeadDim, std::string("the last axis of ") + argument, std::to_string(dim),
          "between " + std::to_string(kMinHeadDim) + " and " + std::to_string(kMaxHeadDim),
          "Pad it with zeros, or split the head.");
}

void check_offsets(const char* argument, const at::Tensor& offsets, const at::Tensor& q) {
  require(offsets.dim() == 1 && offsets.size(0) >= 1, argument, shape_of(offsets), "of shape [sequences + 1]",
          "Pass [0, total] for one sequence.");
  require(offsets.scalar_type() == at::kInt || offsets.scalar_type() == at::kLong, argument,
          std::string("of dtype ") + c10::toString(offsets.scalar_type()), "int32 or int64", "Convert it.");
  check_device(argument, offsets, q, "q");
}

}  // namespace

void require(bool holds, const std::string& argument, const std::string& value, const std::string& rule,
             const std::string& remedy) {
  if (!holds) {
    throw Error(ErrorCode::kInvalidArgument, argument + " is " + value + "; it must be " + rule + ". " + remedy);
  }
}

void check_queries_and_keys(const at::Tensor& q, const at::Tensor& k) {
  check_rank("q", q, "[Tq, H, D]");
  check_rank("k", k, "[Tk, HK, D]");
  const at::ScalarType dtype = q.scalar_type();
  const bool floating = dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
  const std::string dtype_text = std::string("of dtype ") + c10::toString(dtype);
  if (q.is_cuda()) {
    require(floating, "q", dtype_text, "float32, bfloat16 or float16 on CUDA", "Convert it; float64 runs on the CPU.");
  } else {
    require(q.is_cpu(), "q", "on " + q.device().str(), "on the CPU or a CUDA device", "Move it with .to(device).");
    require(floating || dtype == at::kDouble, "q", dtype_text, "float32, bfloat16, float16 or float64", "Convert it.");
  }
  check_dtype("k", k, dtype, "q");
  check_device("k", k, q, "q");
  check_dim("q", q.size(2));
  require(k.size(2) == q.size(2), "the last axis of k", std::to_string(k.size(2)),
          "that of q, " + std::to_string(q.size(2)), "q and k share the head dim.");
  require(k.size(1) >= 1 && q.size(1) >= 1 && q.size(1) % k.size(1) == 0, "the number of heads of k",
          std::to_string(k.size(1)), "a divisor of the number of heads of q, " + std::to_string(q.size(1)),
          "Query head h reads key head h * HK / H.");
}

void check_values(const at::Tensor& k, const at::Tensor& v) {
  check_rank("v", v, "[Tk, HK, Dv]");
  check_dtype("v", v, k.scalar_type(), "q");
  check_device("v", v, k, "q");
  require(v.size(0) == k.size(0) && v.size(1) == k.size(1), "v", shape_of(v),
          "[Tk, HK, any] beside k of shape " + text(k.sizes()), "Keys and values come in pairs.");
  check_dim("v", v.size(2));
}

void check_batch(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch) {
  check_offsets("cu_seqlens_q", batch.cu_seqlens_q, q);
  check_offsets("cu_seqlens_k", batch.cu_seqlens_k, q);
  require(batch.cu_seqlens_q.size(0) == batch.cu_seqlens_k.size(0), "cu_seqlens_k", shape_of(batch.cu_seqlens_k),
          "of the shape of cu_seqlens_q, " + text(batch.cu_seqlens_q.sizes()),
          "Both hold a zero and the end of each sequence.");
  const auto check_maximum = [](const char* argument, std::int64_t maximum, std::int64_t tokens) {
    require(maximum >= (tokens > 0 ? 1 : 0), argument, std::to_string(maximum),
            "an upper bound of the sequence lengths, at least 1 where there are tokens", "Pass the longest length.");
  };
  check_maximum("max_seqlen_q", batch.max_seqlen_q, q.size(0));
  check_maximum("max_seqlen_k", batch.max_seqlen_k, k.size(0));
}

void check_options(const AttentionOptions& options, std::int64_t max_seqlen_k) {
  if (options.kind == Kind::kMoba) {
    require(options.block_size >= 1, "block_size", std::to_string(options.block_size), "at least 1",
            "The published values are 512 to 4096.");
    require(options.top_k >= 1, "top_k", std::to_string(options.top_k),
            "at least 1: a row always attends its own block", "The published values are 3 to 12.");
    require(options.sink_blocks >= 0, "sink_blocks", std::to_string(options.sink_blocks), "at least 0",
            "0 means none.");
    const std::int64_t previous = options.force_previous ? 1 : 0, slots = options.top_k - 1;
    const bool takes_all = slots >= most_past_blocks(max_seqlen_k, options.block_size);
    require(takes_all || options.sink_blocks <= slots - previous, "top_k", std::to_string(options.top_k),
            "above the number of forced blocks, sink_blocks " + std::to_string(options.sink_blocks) +
                " + force_previous " + std::to_string(previous),
            "The own block and every forced one take a slot each.");
    // Each throws where the value is none of its enumeration.
    static_cast<void>(name_of(options.share));
    static_cast<void>(name_of(options.share_score));
    static_cast<void>(name_of(options.representative_dtype));
  }
  if (options.kind == Kind::kWindow) {
    require(options.window >= 1, "window", std::to_string(options.window), "at least 1: a row always sees its own key",
            "Set the number of last keys.");
    require(options.sink >= 0, "sink", std::to_string(options.sink), "at least 0", "0 means no sink tokens.");
  }
  require(std::isfinite(options.softmax_scale) && options.softmax_scale >= 0, "softmax_scale",
          text(options.softmax_scale), "positive and finite, or 0 (None in Python) for 1/sqrt(head_dim)",
          "Flip the sign of q for a negative scale.");
}

void check_representatives(const at::Tensor& k, const at::Tensor& representatives) {
  check_rank("representatives", representatives, "[block rows, HK, D]");
  check_device("representatives", representatives, k, "k");
  const bool wide = representatives.scalar_type() == accumulator_type(k);
  check_dtype("representatives", representatives, wide ? accumulator_type(k) : k.scalar_type(), "k");
  require(representatives.size(1) == k.size(1) && representatives.size(2) == k.size(2), "representatives",
          shape_of(representatives), "[block rows, HK, D] beside k of shape " + text(k.sizes()), "Pool the keys.");
}

void check_blocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& blocks) {
  check_rank("blocks", blocks, "[Tq, selection heads, budget]");
  require(blocks.scalar_type() == at::kInt, "blocks", std::string("of dtype ") + c10::toString(blocks.scalar_type()),
          "int32", "Convert it.");
  check_device("blocks", blocks, q, "q");
  const std::int64_t heads = blocks.size(1);
  require(blocks.size(0) == q.size(0) && (heads == q.size(1) || heads == k.size(1) || heads == 1), "blocks",
          shape_of(blocks), "[Tq, H, HK or 1, budget] beside q of shape " + text(q.sizes()),
          "Make the list with libmoba.select.");
}

void check_results(const at::Tensor& q, const at::Tensor& v, const at::Tensor& dout,
                   const std::optional<at::Tensor>& dlse, const at::Tensor& out, const at::Tensor& lse) {
  const auto check = [&](const char* argument, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype) {
    require(tensor.sizes() == shape, argument, shape_of(tensor), "of shape " + text(shape), "Reshape the tensor.");
    require(tensor.scalar_type() == dtype, argument, std::string("of dtype ") + c10::toString(tensor.scalar_type()),
            c10::toString(dtype), "Convert it with .to(dtype).");
    check_device(argument, tensor, q, "q");
  };
  const std::int64_t rows[] = {q.size(0), q.size(1), v.size(2)}, lse_shape[] = {q.size(1), q.size(0)};
  check("dout", dout, rows, q.scalar_type());
  check("out", out, rows, q.scalar_type());
  check("lse", lse, lse_shape, accumulator_type(q));
  if (dlse.has_value() && dlse->defined()) check("dlse", *dlse, lse_shape, accumulator_type(q));
}

void check_device_values(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch) {
  const auto check = [](const std::string& suffix, const at::Tensor& cu, std::int64_t maximum, std::int64_t total) {
    const at::Tensor offsets = cu.to(at::kCPU, at::kLong).contiguous();
    const std::int64_t* value = offsets.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < offsets.numel(); ++i) {
      const std::string name = "cu_seqlens_" + suffix + "[" + std::to_string(i) + "]";
      require(value[i] >= (i > 0 ? value[i - 1] : 0) && value[i] <= total, name, std::to_string(value[i]),
              "between its predecessor and the number of tokens, " + std::to_string(total),
              "Offsets begin at 0 and do not fall.");
      require(i == 0 || value[i] - value[i - 1] <= maximum, "the length of sequence " + std::to_string(i - 1),
              std::to_string(i > 0 ? value[i] - value[i - 1] : 0),
              "at most max_seqlen_" + suffix + ", " + std::to_string(maximum), "Raise the maximum.");
    }
  };
  check("q", batch.cu_seqlens_q, batch.max_seqlen_q, q.size(0));
  check("k", batch.cu_seqlens_k, batch.max_seqlen_k, k.size(0));
}

void raise_as_torch_error(const Error& error) {
  TORCH_CHECK_WITH(OutOfMemoryError, error.code() != ErrorCode::kWorkspace, error.what());
  TORCH_CHECK_VALUE(false, error.what());
}

}  // namespace moba::torch_ops
