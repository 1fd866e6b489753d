#!/usr/bin/env bash
# A relocatable tree for another machine that has torch 2.11 for Python (a GPU node, a cluster): no compiler and no
# Debian packages are needed there, only glibc at least as new as here.
#   scripts/make_bundle.sh BUILD [OUT]        OUT defaults to dist/moba-bundle
# There: OUT/moba doctor, OUT/moba train …, OUT/run_tests (the Python tests on its GPU),
# OUT/run_bench (native kernels against cuDNN).
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 out=${2:-dist/moba-bundle}
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/tests"
cp "$build/moba" "$out/bin/moba"
cp "$build/libmoba_torch.so" "$out/lib/"
if [ -e "$build/libmoba_cuda.so" ]; then
  cp "$build/libmoba_cuda.so" "$out/lib/"
else
  echo "make_bundle: $build/libmoba_cuda.so is not there (make cuda): the bundle has no native kernels" >&2
fi
strip --strip-debug "$out/bin/moba" "$out"/lib/libmoba_*.so
cp -r python configs bench "$out/"
cp -r tests/python tests/cases "$out/tests/"
find "$out" -name __pycache__ -prune -exec rm -rf {} +
[ ! -d models ] || cp -r models "$out/"

# Third-party libraries travel along; torch, CUDA, libstdc++ and glibc are the other machine's.
ldd "$out/bin/moba" "$out/lib/libmoba_torch.so" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
  grep -vE '/(torch|nvidia)/|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|z|gomp)[.-]' | while read -r library; do
    cp -L "$library" "$out/lib/"
  done

cat > "$out/env.sh" <<'ENV'
# Source this: finds the torch of python3 and this bundle.
bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
torch=$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])') || {
  echo "this bundle needs torch 2.11 for python3: pip install torch==2.11.0" >&2; return 1; }
export LD_LIBRARY_PATH="$bundle/lib:$torch/lib:$torch/../nvidia/cu13/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONPATH="$bundle/python${PYTHONPATH:+:$PYTHONPATH}" MOBA_TORCH_LIBRARY="$bundle/lib/libmoba_torch.so"
ENV
cat > "$out/moba" <<'RUN'
#!/usr/bin/env bash
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" && exec "$bundle/bin/moba" "$@"
RUN
cat > "$out/run_tests" <<'RUN'
#!/usr/bin/env bash
# The Python tests on this machine, those for a GPU included.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" && cd "$bundle" && exec python3 -m pytest tests/python -q -rs "$@"
RUN
cat > "$out/run_bench" <<'RUN'
#!/usr/bin/env bash
# The native kernels of this machine's Hopper GPU against cuDNN and the portable backend.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" && exec python3 "$bundle/bench/native_cuda.py" "$@"
RUN
chmod +x "$out/moba" "$out/run_tests" "$out/run_bench"
tar -C "$(dirname "$out")" -czf "$out.tar.gz" "$(basename "$out")"
echo "$out.tar.gz: $(du -h "$out.tar.gz" | cut -f1)"
