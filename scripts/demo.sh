#!/usr/bin/env bash
# The main job on a bare CPU: facts hidden in long real text, read with full attention and with MoBA.
#   scripts/demo.sh BUILD OUT TEXT…
set -euo pipefail
build=$1 out=$2
shift 2
if [ $# -eq 0 ]; then
  echo "demo: no text found under /usr/share/common-licenses; name some: make demo TEXT='a.txt b.txt'" >&2
  exit 1
fi
mkdir -p "$out"
echo "Reading 4K and 16K bytes with full attention and MoBA, and 64K with MoBA"
"$build/moba" needle --text "$@" --lengths 4096,16384,65536 --full-up-to 16384 --depths 3 --needles 4 \
  --attention full,moba --json "$out/needle.json" --html "$out/needle.html" --png "$out/needle.png"
