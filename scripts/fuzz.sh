#!/usr/bin/env bash
# The libFuzzer programs, one after another, from the committed corpus. Usage: fuzz.sh [SECONDS [NAME…]] (60, all); 0 replays
# the corpus and tries nothing new. What is found new is kept in build-fuzz/corpus; an input that ends a program is kept in build-fuzz/findings and fails the script.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
[ $# -gt 0 ] || set -- api paged toml model_config sentencepiece text token_store safetensors weight_map resume metrics
cmake -S . -B build-fuzz -G Ninja -DMOBA_TORCH=OFF -DMOBA_CUDA=OFF -DMOBA_TESTS=ON -DMOBA_FUZZ=ON -DMOBA_SANITIZE=address,undefined \
  -DCMAKE_CXX_COMPILER="${CLANGXX:-clang++}" >build-fuzz.log 2>&1 || { cat build-fuzz.log; exit 1; }
rm -f build-fuzz.log
cmake --build build-fuzz -j "${JOBS:-$(nproc)}" --target $(printf '%s_fuzz ' "$@")
for name in "$@"; do
  mkdir -p "build-fuzz/corpus/$name" "build-fuzz/findings/$name"
  log=build-fuzz/findings/$name/log.txt
  limit=-max_total_time=$seconds
  [ "$seconds" != 0 ] || limit=-runs=0
  if ! "build-fuzz/tests/fuzz/${name}_fuzz" "$limit" -timeout=20 -rss_limit_mb=3000 -max_len=16384 -verbosity=1 \
    -print_final_stats=1 -artifact_prefix="build-fuzz/findings/$name/" "build-fuzz/corpus/$name" "tests/fuzz/corpus/$name" \
    >"$log" 2>&1; then
    tail -40 "$log"
    echo "fuzz: $name: a finding, kept in build-fuzz/findings/$name" >&2
    exit 1
  fi
  echo "fuzz: $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, no finding"
done
