#!/usr/bin/env bash
# clang-tidy over the core (.clang-tidy says which checks, all of them errors). Usage: tidy.sh [FILE…]
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- $(git ls-files ":(glob)src/**/*.cpp" | grep -v "^src/cuda/")
# A compilation database of clang++: g++ has flags that clang-tidy does not know.
cmake -S . -B build-clang -G Ninja -DMOBA_TORCH=OFF -DMOBA_CUDA=OFF -DMOBA_TESTS=ON -DMOBA_WERROR=ON -DCMAKE_CXX_COMPILER="${CLANGXX:-clang++}" \
  >build-clang.log 2>&1 || { cat build-clang.log; exit 1; }
rm -f build-clang.log
printf '%s\n' "$@" | xargs -P "${JOBS:-$(nproc)}" -n 4 clang-tidy -p build-clang --quiet 2>/dev/null
echo "tidy: $# files, no findings"
