#!/bin/sh
# Builds the core's tests for aarch64 and runs them under qemu-user: the NEON kernels, on any Linux machine.
#   scripts/test_aarch64.sh [BUILD_FOLDER] [ARGUMENTS OF THE TEST PROGRAM…]
# Needs (Debian, Ubuntu): g++-aarch64-linux-gnu qemu-user libhwy-dev libgtest-dev. Highway's headers serve every
# processor, and with the one level that is compiled here (NEON) its library is not needed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build/aarch64}
[ $# -gt 0 ] && shift
compiler=${AARCH64_CXX:-aarch64-linux-gnu-g++}
googletest=/usr/src/googletest/googletest

missing() {  # what package
  echo "test_aarch64: $1 is missing; apt-get install $2" >&2
  exit 1
}
command -v "$compiler" > /dev/null || missing "$compiler" g++-aarch64-linux-gnu
command -v qemu-aarch64 > /dev/null || missing qemu-aarch64 qemu-user
[ -f "$googletest/src/gtest-all.cc" ] || missing "$googletest" libgtest-dev

mkdir -p "$build/include" "$build/objects"
ln -sfn /usr/include/hwy "$build/include/hwy"  # not -I/usr/include, which holds this machine's own C headers

compile() {  # source object
  [ "$2" -nt "$1" ] && [ -z "$(find "$root/src" "$root/include" "$root/tests" -name '*.h' -newer "$2")" ] && return
  echo "test_aarch64: compiling ${1#"$root"/}"
  "$compiler" -std=c++20 -O2 -DNDEBUG -pthread "-DMOBA_CASES_JSON=\"$root/tests/cases/cases.json\"" -I"$root/include" -I"$root/src" -I"$root/tests" \
    -isystem "$build/include" -isystem "$googletest/include" -isystem "$googletest" -c "$1" -o "$2"
}

objects=
for source in "$root"/src/*.cpp "$root"/src/selectors/*.cpp "$root"/src/reference/*.cpp "$root"/src/cpu/*.cpp \
  "$root"/tests/core/*.cpp "$root"/tests/cases/*.cpp "$googletest/src/gtest-all.cc" "$googletest/src/gtest_main.cc"; do
  object=$build/objects/$(echo "${source#"$root"/}" | tr / _).o
  compile "$source" "$object"
  objects="$objects $object"
done
# shellcheck disable=SC2086  # a list of paths that this script made
"$compiler" -pthread -static $objects -o "$build/core_tests"
exec qemu-aarch64 "$build/core_tests" "$@"
