#!/usr/bin/env bash
# Installs what a build needs: Debian/Ubuntu packages (only those missing) and three wheels in .venv.
#   scripts/install_deps.sh [build|test|proof]      test adds the test libraries and a headless browser, proof clang besides
# Supported: Debian 12 and 13, Ubuntu 24.04. On another system install the packages named below by its own means;
# with SKIP_APT=1 this script leaves the system's packages alone.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-build}

packages=(g++ cmake ninja-build python3 python3-venv libhwy-dev libsentencepiece-dev libcli11-dev
  nlohmann-json3-dev libtomlplusplus-dev libfmt-dev libpng-dev)
if [ "$what" = proof ]; then packages+=(clang clang-tidy libclang-rt-dev); fi
if [ "$what" != build ]; then
  packages+=(libgtest-dev)
  # Ubuntu's chromium is a snap shim that cannot run in a container: there the browser test is skipped.
  if [ -e /etc/debian_version ] && ! grep -qi ubuntu /etc/os-release; then packages+=(chromium); fi
fi

if [ "${SKIP_APT:-0}" != 1 ]; then
  missing=()
  for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
      echo "install_deps: this is not Debian or Ubuntu; install these and set SKIP_APT=1: ${missing[*]}" >&2
      exit 1
    fi
    as_root=()
    if [ "$(id -u)" != 0 ]; then
      command -v sudo >/dev/null || { echo "install_deps: run as root: apt-get install ${missing[*]}" >&2; exit 1; }
      as_root=(sudo)
    fi
    echo "installing: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
  fi
fi

# The C++ side needs libtorch_cpu and two small CUDA runtime libraries that it links: three wheels, none of their own
# dependencies. `make python` completes the environment for `import torch`.
stamp=.venv/.moba-build-deps
if ! cmp -s scripts/requirements-build.txt $stamp 2>/dev/null; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  echo "fetching torch into .venv (once, about 0.6 GB)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r scripts/requirements-build.txt
  cp scripts/requirements-build.txt $stamp
fi
if [ "$what" != build ] && ! .venv/bin/clang-format --version >/dev/null 2>&1; then
  # One formatter version everywhere: distributions carry different ones, and they disagree.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check clang-format==14.0.6
fi
