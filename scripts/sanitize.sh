#!/usr/bin/env bash
# The core's tests under sanitizers. Usage: sanitize.sh [address|thread]...; without a word both. Any finding fails a test.
# A case takes ten times as long here, so the random ones run at MOBA_PROPERTY_PERCENT (5) percent of their number. No finding is
# suppressed.
set -euo pipefail
cd "$(dirname "$0")/.."
export MOBA_PROPERTY_PERCENT=${MOBA_PROPERTY_PERCENT:-5}
jobs=${JOBS:-$(nproc)}

# check SANITIZERS FOLDER CTEST-ARGUMENTS…
check() {
  local sanitizers=$1 folder=$2
  shift 2
  cmake -S . -B "$folder" -G Ninja -DMOBA_TORCH=OFF -DMOBA_CUDA=OFF -DMOBA_TESTS=ON -DMOBA_SANITIZE="$sanitizers" >"$folder.log" 2>&1 ||
    { cat "$folder.log"; exit 1; }
  rm -f "$folder.log"
  cmake --build "$folder" -j "$jobs" --target core_tests
  ctest --test-dir "$folder" -j "$jobs" --timeout 900 --output-on-failure --no-tests=error -Q "$@" ||
    { echo "sanitize: $sanitizers found something: ctest --test-dir $folder --rerun-failed --output-on-failure" >&2; exit 1; }
  echo "sanitize: $sanitizers: no findings"
}

[ $# -gt 0 ] || set -- address thread
for word in "$@"; do
  case $word in
    # The authors' grid (GridTest) and tensors of 4 GiB steps take minutes each and reach no code that the others do not.
    address) check address,undefined build-asan -E 'GridTest|LargeOffset' ;;
    # Races need threads: what runs on two or three, or on threads of its own.
    thread) check thread build-tsan -R 'PropertyTest|AgreementTest|ContextTest|FewRows|KvCache|PagedTest|SimdTest|SelfCheck' ;;
    *) echo "usage: sanitize.sh [address|thread]..." >&2; exit 2 ;;
  esac
done
