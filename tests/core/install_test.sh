#!/bin/sh
# Installs the core into a fresh prefix, builds the example out of tree against it, warnings being errors, and runs it.
# Usage: install_test.sh BUILD_DIR SOURCE_DIR COMPILER
set -eu
build=$(cd "$1" && pwd)
source=$(cd "$2" && pwd)
compiler=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" >"$work/install.log" || { cat "$work/install.log"; exit 1; }
if grep -rnE "$source|$build|/libhwy" "$work/prefix" --include='*.cmake'; then
  echo "the installed CMake files name paths of this build" >&2
  exit 1
fi
mv "$work/prefix" "$work/moved" # it must not matter where the prefix lies
cp -r "$source/examples" "$work/examples"
cmake -S "$work/examples" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/moved" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_CXX_FLAGS="-Wall -Wextra -Wshadow -Werror" >"$work/configure.log" ||
  { cat "$work/configure.log"; exit 1; }
cmake --build "$work/build" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
"$work/build/attention"
