"""Times torch's dense causal attention on the CPU, bfloat16: one JSON line. Beside attend_cpu.cpp; see attend_cpu.sh.

    attend_cpu_dense.py THREADS PASS N HEADS HEAD_DIM [REPEATS]     PASS: fwd | bwd | decode
"""

import json
import statistics
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention


def main() -> None:
    threads, name, n, heads, dim = (int(a) if a.isdigit() else a for a in sys.argv[1:6])
    repeats = int(sys.argv[6]) if len(sys.argv) > 6 else 3
    torch.set_num_threads(threads)
    rows = 1 if name == "decode" else n
    q = torch.randn(1, heads, rows, dim, dtype=torch.bfloat16)
    k, v = (torch.randn(1, heads, n, dim, dtype=torch.bfloat16) for _ in range(2))
    gradient = torch.randn_like(q)
    for tensor in (q, k, v):
        tensor.requires_grad_(name == "bwd")

    wall, processor = [], []
    for _ in range(1 + repeats):  # the first warms up
        start, processor_start = time.perf_counter(), time.process_time()
        out = scaled_dot_product_attention(q, k, v, is_causal=name != "decode")
        if name == "bwd":  # the backward alone
            start, processor_start = time.perf_counter(), time.process_time()
            out.backward(gradient)
        wall.append(1e3 * (time.perf_counter() - start))
        processor.append(1e3 * (time.process_time() - processor_start))
    row = {"pass": name, "kind": "torch_sdpa", "n": n, "heads": heads, "kv_heads": heads, "head_dim": dim}
    row |= {"ms": round(statistics.median(wall[1:]), 2), "cpu_ms": round(statistics.median(processor[1:]), 2)}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
