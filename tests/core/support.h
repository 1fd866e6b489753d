// What the tests of the core share: contexts that misbehave on purpose or count, and the list of backends.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "cases/cases.h"
#include "moba/moba.h"

namespace moba::test {

/// Built with a sanitizer: everything takes ten times as long and more.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

/// Threads of its own, scratch full of NaN, and a count of what is held. Fails the test if scratch is not given back.
class TestContext : public Context {
 public:
  explicit TestContext(int threads = 1) : threads_(threads) {}
  ~TestContext() override { EXPECT_EQ(held_, 0) << "scratch was not released"; }
  TestContext(const TestContext&) = delete;
  TestContext& operator=(const TestContext&) = delete;

  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override;
  int num_threads() const override { return threads_; }
  void* allocate(std::size_t bytes) override;
  void release(void* pointer) noexcept override;
  std::int64_t workspace_limit() const override { return limit; }
  std::int32_t* error_word() const override { return &error_bits; }

  std::int64_t peak() const { return peak_; }
  std::int64_t allocations() const { return allocations_; }

  std::int64_t limit = std::int64_t{1536} << 20;
  std::int64_t fail_from = -1;  // the allocation, counted from 0, from which on null is returned; -1: never
  mutable std::int32_t error_bits = 0;

 private:
  int threads_;
  std::mutex mutex_;
  std::unordered_map<void*, std::int64_t> sizes_;
  std::int64_t held_ = 0, peak_ = 0, allocations_ = 0;
};

/// Every backend of the core.
inline const std::vector<const Backend*>& backends() {
  static const std::vector<const Backend*> kBackends = {&reference_backend(), &cpu_backend()};
  return kBackends;
}

class BackendTest : public ::testing::TestWithParam<const Backend*> {
 protected:
  const Backend& backend() const { return *GetParam(); }
  TestContext context;
};

/// float32, bfloat16 and float16: what every backend of the core supports.
inline const std::vector<DType>& dtypes() {
  static const std::vector<DType> kDTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  return kDTypes;
}

inline std::string backend_name(const ::testing::TestParamInfo<const Backend*>& info) {
  return info.param->name();
}

inline std::string name_of_case(const ::testing::TestParamInfo<cases::Case>& info) {
  return info.param.name;
}

using BackendAndCase = std::tuple<const Backend*, cases::Case>;

class CaseTest : public ::testing::TestWithParam<BackendAndCase> {
 protected:
  const Backend& backend() const { return *std::get<0>(GetParam()); }
  const cases::Case& problem_case() const { return std::get<1>(GetParam()); }
  TestContext context;
};

inline std::string case_name(const ::testing::TestParamInfo<BackendAndCase>& info) {
  return std::string(std::get<0>(info.param)->name()) + "_" + std::get<1>(info.param).name;
}

}  // namespace moba::test
