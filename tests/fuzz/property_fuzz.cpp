// The random cases of the property tests until told to stop (Ctrl-C), a time or a failure. A failing case is printed
// with its seed, and `property_fuzz --seed N` repeats it.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "core/property_case.h"

namespace moba::test {
namespace {

std::atomic<bool> stopped{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

struct Options {
  std::uint64_t first = 0, count = std::numeric_limits<std::uint64_t>::max();
  double seconds = std::numeric_limits<double>::infinity();
};
Options options;

TEST(PropertyFuzz, UntilStopped) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  double told = 0.0;
  std::uint64_t done = 0;
  for (; done < options.count && !stopped && elapsed() < options.seconds; ++done) {
    const RandomCase c = random_case(options.first + done);
    SCOPED_TRACE("repeat with: property_fuzz --seed " + std::to_string(c.problem.seed) + "\n" + c.describe());
    expect_agreement(c);
    if (HasFailure()) break;
    if (elapsed() > told + 10.0) {
      told = elapsed();
      std::printf("%.0f s: %llu cases agree, the next seed is %llu\n", told, static_cast<unsigned long long>(done + 1),
                  static_cast<unsigned long long>(options.first + done + 1));
      std::fflush(stdout);
    }
  }
  std::printf("%llu cases agree, from seed %llu on, in %.0f s\n", static_cast<unsigned long long>(done),
              static_cast<unsigned long long>(options.first), elapsed());
}

int usage() {
  std::fputs("usage: property_fuzz [--seed N] [--from N] [--seconds S]\n", stderr);
  return 2;
}

}  // namespace
}  // namespace moba::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  std::random_device device;
  moba::test::options.first = std::uint64_t{device()} << 32;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return moba::test::usage();
    const std::string name = argv[i];
    char* end = nullptr;
    if (name == "--seed" || name == "--from") {
      moba::test::options.first = std::strtoull(argv[i + 1], &end, 10);
      if (name == "--seed") moba::test::options.count = 1;
    } else if (name == "--seconds") {
      moba::test::options.seconds = std::strtod(argv[i + 1], &end);
    } else {
      return moba::test::usage();
    }
    if (end == argv[i + 1] || *end != '\0') return moba::test::usage();
  }
  std::signal(SIGINT, [](int) { moba::test::stopped = true; });
  std::signal(SIGTERM, [](int) { moba::test::stopped = true; });
  return RUN_ALL_TESTS();
}
