// What a caller lends to a verb: threads, scratch memory, a stream, a limit. libmoba owns none of these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace moba {

/// A non-owning reference to a callable `void(begin, end)`; it must outlive the call it is passed to.
class RangeTask {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, RangeTask>)
      // NOLINTNEXTLINE(google-explicit-constructor,bugprone-forwarding-reference-overload): the line above keeps copies
      RangeTask(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, std::int64_t begin, std::int64_t end) {
          (*static_cast<std::remove_reference_t<F>*>(object))(begin, end);
        }) {}
  void operator()(std::int64_t begin, std::int64_t end) const { call_(object_, begin, end); }

 private:
  void* object_;
  void (*call_)(void*, std::int64_t, std::int64_t);
};

/// Lent by the caller to every verb, for the length of one call.
class Context {
 public:
  virtual ~Context() = default;

  /// Runs `task` over disjoint ranges that cover [0, count), each a multiple of `grain` long but for the last, on any
  /// threads, and returns when all are done. Exceptions of a task reach the caller. Results never depend on the split.
  virtual void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) = 0;

  /// How many ranges `parallel_for` runs at once; sizes the scratch of each thread. At least 1.
  virtual int num_threads() const = 0;

  /// Scratch in the memory of the tensors' device, 64-byte aligned; null means "no more" and becomes an Error. May be
  /// called from inside a task, from several threads at once. `release` takes back what `allocate` gave.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* pointer) noexcept = 0;

  /// cudaStream_t of the caller, or null.
  virtual void* stream() const { return nullptr; }

  /// The most scratch one verb may hold at a time, in bytes. Verbs cut their work to fit. (attend_backward of the CUDA
  /// backend may take what dense flash attention holds for dq beside it, 4 bytes for each element of q.)
  virtual std::int64_t workspace_limit() const { return std::int64_t{1536} << 20; }

  /// An int32 in the tensors' device memory, or null: bits of DeviceError are set in it (never cleared) where values
  /// that the host cannot see were out of range and have been clamped.
  virtual std::int32_t* error_word() const { return nullptr; }
};

/// Bits of `Context::error_word`.
enum DeviceError : std::int32_t {
  kCuSeqlensOutOfRange = 1,  // an offset below its predecessor or beyond the tensor
  kSeqlenAboveMaximum = 2,   // a sequence longer than max_seqlen_q / max_seqlen_k
  kSelectionOutOfRange = 4,  // a listed block that is not in the row's past
  kPageOutOfRange = 8,       // a page that the pool does not have
};

/// Runs everything on the calling thread with the C++ allocator: for examples, tests and small work.
class SerialContext : public Context {
 public:
  void parallel_for(std::int64_t count, std::int64_t /*grain*/, RangeTask task) override {
    if (count > 0) task(0, count);
  }
  int num_threads() const override { return 1; }
  void* allocate(std::size_t bytes) override {
    return ::operator new (bytes == 0 ? 1 : bytes, std::align_val_t{64}, std::nothrow);
  }
  void release(void* pointer) noexcept override { ::operator delete (pointer, std::align_val_t{64}); }
};

}  // namespace moba
