#!/usr/bin/env bash
# The rules that a compiler does not hold: layering of the rooms, format, file sizes. Prints each breach; exit 1 if any.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
sources=('*.h' '*.cpp' '*.cu' '*.cuh')
breach() { echo "check: $1" >&2; failed=1; }

# forbid ROOM-GLOB PATTERN WHY: no file of the room includes what the pattern names.
forbid() {
  local hits
  hits=$(git ls-files -- $1 | grep -E '\.(h|cpp|cu|cuh)$' | xargs -r grep -nE "#include +[\"<]($2)" /dev/null)
  [ -z "$hits" ] || breach "$3"$'\n'"$hits"
}
forbid 'include/moba'        '(torch|ATen|c10|cuda|hwy)'               'public headers depend on the standard library alone'
forbid ':(glob)src/*.cpp :(glob)src/*.h'   '(torch|ATen|c10|cuda|hwy|cpu/|reference/)' 'the core includes no backend and no torch'
forbid 'src/selectors'       '(torch|ATen|c10|cuda|hwy|cpu/|reference/)' 'selectors include no backend and no torch'
forbid 'src/reference'       '(torch|ATen|c10|cuda|hwy|cpu/|selectors/)' 'the reference is independent of the CPU backend'
forbid 'src/cpu'             '(torch|ATen|c10|cuda|reference/|selectors/)' 'the CPU backend is independent of selectors and reference'
forbid 'src/cuda'            '(torch|ATen|c10|hwy|cpu/|reference/|selectors/)' 'the CUDA backend is independent of selectors, torch and the other backends'
forbid 'bindings/torch'      '(hwy|cpu/|reference/)'                     'the torch binding reaches kernels through the public headers'
forbid 'lm'                  '(hwy|cpu/|reference/|apps/|CLI)'           'lm reaches attention through bindings/torch only'
forbid 'apps/moba'           '(hwy|cpu/|reference/)'                     'the program reaches kernels through lm and the public headers'
prints=$(git ls-files 'include/*' 'src/*' 'bindings/*' 'lm/*' | grep -E '\.(h|cpp)$' | xargs grep -nE '\b(printf|std::cout|std::cerr|puts|abort|std::exit|_exit)\b *[(<]?' /dev/null | grep -vE 'snprintf|//|vsnprintf')
[ -z "$prints" ] || breach "only apps/moba prints or exits"$'\n'"$prints"

while read -r lines file; do
  [ "$file" = total ] || [ "$lines" -le 700 ] || breach "$file has $lines lines (limit 700)"
done < <(git ls-files "${sources[@]}" '*.py' '*.sh' | xargs wc -l)

open=$(git ls-files "${sources[@]}" '*.py' | xargs grep -nE '\b(TODO|FIXME|XXX|NotImplementedError)\b' /dev/null)
[ -z "$open" ] || breach "left open in the code"$'\n'"$open"

clang_format=.venv/bin/clang-format
if [ -x $clang_format ]; then
  bad=$(git ls-files "${sources[@]}" | xargs $clang_format --dry-run 2>&1 | grep -E 'warning' | cut -d: -f1 | sort -u)
  [ -z "$bad" ] || breach "not formatted (run: make format)"$'\n'"$bad"
else
  echo "check: .venv/bin/clang-format is absent (scripts/install_deps.sh test): format not checked, skipped" >&2
fi
[ $failed = 0 ] && echo "check: layering, sizes and format hold"
exit $failed
