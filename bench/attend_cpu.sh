#!/bin/sh
# The CPU backend alone beside torch's dense attention, in one run. `moba bench attend` does the same through the torch
# operators; this needs no torch build.
#   bench/attend_cpu.sh [LIBRARY=build/src/libmoba.a] [PYTHON=.venv/bin/python] [THREADS=2]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
library=${1:-$root/build/src/libmoba.a}
python=${2:-$root/.venv/bin/python}
threads=${3:-2}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${CXX:-g++}" -std=c++20 -O2 -I"$root/include" "$root/bench/attend_cpu.cpp" "$library" -lhwy -pthread -o "$folder/attend_cpu"

dense() {  # pass n head_dim
  "$python" "$root/bench/attend_cpu_dense.py" "$threads" "$1" "$2" 8 "$3"
}
ours() {  # kind pass n head_dim block_size top_k
  "$folder/attend_cpu" "$threads" "$1" "$2" "$3" 8 8 "$4" "$5" "$6"
}
for dim in 64 128; do
  for n in 8192 16384 32768; do
    dense fwd "$n" "$dim"
    ours moba fwd "$n" "$dim" 512 3
    ours moba fwd "$n" "$dim" 128 8
  done
  ours full fwd 8192 "$dim" 512 3
  ours moba fwd 65536 "$dim" 512 3
  dense bwd 16384 "$dim"
  ours moba bwd 16384 "$dim" 512 3
  dense decode 131072 "$dim"
  ours full decode 131072 "$dim" 512 3
  ours moba decode 131072 "$dim" 512 3
done
