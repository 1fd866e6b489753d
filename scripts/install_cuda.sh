#!/usr/bin/env bash
# What the kernels for Hopper GPUs are compiled with, in .venv: the headers of CUTLASS, and NVIDIA's compiler where the
# system has none (12.8 or newer). No GPU and no driver are needed to compile.
set -euo pipefail
cd "$(dirname "$0")/.."

system_nvcc() {
  local nvcc=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)} version
  [ -x "$nvcc" ] || return 1
  version=$("$nvcc" --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  [ -n "$version" ] && [ "$(echo "$version" | awk '{print $1 * 100 + $2}')" -ge 1208 ]
}

if [ "$(uname -m)" != x86_64 ]; then
  echo "install_cuda: the pinned compiler is for x86-64; with CUDA 12.8 or newer in PATH build with -DMOBA_CUDA=ON" >&2
  system_nvcc || exit 1
fi
lists=(scripts/requirements-cuda.txt)
system_nvcc || lists+=(scripts/requirements-nvcc.txt)
stamp=.venv/.moba-cuda-deps
if ! cat "${lists[@]}" | cmp -s - $stamp 2>/dev/null; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  echo "fetching what the CUDA kernels are compiled with into .venv (once): ${lists[*]}"
  for list in "${lists[@]}"; do
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r "$list"
  done
  cat "${lists[@]}" > $stamp
fi
