// One attention problem of the benchmark: its numbers, its tensors, and the two ways to compute it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "common/gate_flags.h"
#include "moba/options.h"
#include "moba_torch/attention.h"

namespace moba::app {

struct AttendCase {
  std::string pass;  // "fwd", "bwd", "fwdbwd", "decode"
  std::int64_t n = 0;
  std::int64_t heads = 8;
  std::int64_t kv_heads = 8;
  std::int64_t head_dim = 64;
  std::int64_t block_size = 512;
  std::int64_t top_k = 3;
  std::string dtype = "bf16";  // "fp32", "bf16", "fp16"
  std::string kind = "moba";   // "moba", "full"
  GateFlags gate = {};

  AttentionOptions options() const;
  std::string text() const;
  bool has_gradients() const { return pass == "bwd" || pass == "fwdbwd"; }
};

torch::Dtype dtype_of(const std::string& name);

/// Greatest difference from the reference that rounding explains, relative to the greatest value.
double tolerance_of(const std::string& dtype);

/// Tensors of a case, drawn from a normal distribution with a fixed seed. Decode goes round several queries and caches,
/// for both ways: what one step reads, no other step may have left in the processor's caches.
class AttendProblem {
 public:
  AttendProblem(const AttendCase& wanted, torch::Device device);

  /// MoBA: out [rows, H, D], lse [H, rows]; one row for decode. Gradients can flow for "bwd" and "fwdbwd".
  std::tuple<torch::Tensor, torch::Tensor> moba() const;
  /// torch's dense attention, every key up to the row's own: out [1, H, rows, D]. Not for decode.
  torch::Tensor dense() const;
  /// The pass that is timed. A GPU may still be at it on return: wait() waits.
  void run_moba() const;
  void run_dense() const;
  /// The same by the portable backend. Not for decode, nor for the kind "full".
  void run_portable() const;
  void wait() const;

  /// Throws moba::Error (kMismatch) where sampled rows and heads differ from the reference by more than the dtype
  /// allows; returns the greatest error, relative to the greatest value.
  double verify() const;

 private:
  torch::Tensor portable() const;               // out [n, H, D]
  torch::Tensor query(std::size_t turn) const;  // [1, H, D]
  /// The gradients of `forward`, which "bwd" runs once and keeps.
  template <class Forward>
  void differentiate(torch::Tensor& kept, const Forward& forward, const std::vector<torch::Tensor>& inputs,
                     const torch::Tensor& dout) const;
  double verify_forward(const torch::Tensor& out, const torch::Tensor& lse) const;
  double verify_backward() const;

  AttendCase case_;
  torch::Device device_;
  torch::Tensor q_, k_, v_;                    // [n or 1, H, D], [n, HK, D], [n, HK, D]
  torch::Tensor dense_q_, dense_k_, dense_v_;  // [1, H, rows, D], [1, HK, n, D], contiguous
  torch::Tensor dout_, dense_dout_;
  mutable torch::Tensor moba_out_, dense_out_, portable_out_;  // of "bwd": made once, their gradients taken many times
  torch_ops::SequenceBatch batch_;

  struct DecodeCache {
    torch_ops::KvCache cache;
    torch::Tensor dense_k, dense_v;
  };
  torch::Tensor queries_;  // [turns, H, D]
  std::vector<DecodeCache> caches_;
  mutable std::size_t moba_turn_ = 0, dense_turn_ = 0;
};

}  // namespace moba::app
