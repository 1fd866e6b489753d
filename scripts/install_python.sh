#!/usr/bin/env bash
# Completes .venv for Python: all that `import torch` needs, and libmoba (a link to python/ in this clone).
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/.moba-python-deps
if ! cmp -s scripts/requirements-python.txt $stamp 2>/dev/null; then
  echo "completing .venv for Python (once, a few GB: torch's CUDA libraries)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/requirements-python.txt
  cp scripts/requirements-python.txt $stamp
fi
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$PWD/python" > "$site/libmoba.pth"
