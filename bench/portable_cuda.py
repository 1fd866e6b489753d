"""Times the portable CUDA backend against full attention at the shapes of training; run it on a machine with a GPU.

    python bench/portable_cuda.py [--json OUT] [--profile SHAPE]

One row a shape: milliseconds of the choice, the forward (choice and attention) and the backward, of MoBA and of torch's
varlen flash attention, and peak memory above the inputs. A speed is printed only after MoBA with all blocks has matched
full attention on that device.
"""

import argparse
import json
import pathlib
import sys
from typing import Callable

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
import libmoba  # noqa: E402

# name: (sequences, tokens of each, heads, kv_heads, head_dim, block_size, top_k)
SHAPES = {
    "train_32x2K": (32, 2048, 4, 4, 64, 64, 8),
    "train_8x8K": (8, 8192, 4, 4, 64, 64, 8),
    "train_4x16K": (4, 16384, 4, 4, 64, 64, 8),
    "train_2x32K": (2, 32768, 4, 4, 64, 64, 8),
    "train_1x64K": (1, 65536, 4, 4, 64, 64, 8),
    "paper_1x8K": (1, 8192, 16, 16, 128, 512, 3),
    "paper_1x32K": (1, 32768, 16, 16, 128, 512, 3),
    "gqa_1x32K": (1, 32768, 32, 8, 128, 512, 3),
    "gqa_1x128K": (1, 131072, 32, 8, 128, 4096, 12),
}


def milliseconds(run: Callable[[], object], repeats: int = 10) -> float:
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def measure(name: str) -> dict[str, object]:
    count, length, heads, kv_heads, dim, block_size, top_k = SHAPES[name]
    torch.manual_seed(0)
    tokens = count * length

    def tensor(h: int) -> torch.Tensor:
        return torch.randn(tokens, h, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    q, k, v = tensor(heads), tensor(kv_heads), tensor(kv_heads)
    cu = torch.arange(count + 1, device="cuda", dtype=torch.int32) * length
    row: dict[str, object] = {"shape": name}
    held = torch.cuda.memory_allocated()
    inputs = (q.numel() * 2 + k.numel() + v.numel()) * q.element_size()
    for kind in ("moba", "full"):

        def forward() -> torch.Tensor:
            return libmoba.attention(q, k, v, cu, None, length, kind=kind, block_size=block_size, top_k=top_k)

        def select() -> torch.Tensor:
            return libmoba.select(q, k, cu, None, length, block_size=block_size, top_k=top_k)

        if kind == "moba":
            row["select_ms"] = milliseconds(select)
        torch.cuda.reset_peak_memory_stats()
        row[f"{kind}_fwd_ms"] = milliseconds(forward)
        row[f"{kind}_fwd_memory_x"] = (torch.cuda.max_memory_allocated() - held) / inputs
        out = forward()
        dout = torch.randn_like(out)
        torch.cuda.reset_peak_memory_stats()
        row[f"{kind}_bwd_ms"] = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
        row[f"{kind}_bwd_memory_x"] = (torch.cuda.max_memory_allocated() - held) / inputs
    moba, full = (row[f"{kind}_fwd_ms"] + row[f"{kind}_bwd_ms"] for kind in ("moba", "full"))  # type: ignore[operator]
    row["full_over_moba"] = full / moba
    return row


def check() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = (torch.randn(3000, 4, 64, device="cuda", dtype=dtype) for _ in range(3))
        cu = torch.tensor([0, 1000, 1000, 3000], device="cuda", dtype=torch.int32)
        report = libmoba.self_check(q, k, v, cu, None, 2000, block_size=64)
        print(dtype, report)
        if not report.passed:
            sys.exit("MoBA with all blocks differs from full attention: no speed is reported for a wrong answer")


def profile(name: str) -> None:
    """Where the time of one forward and backward goes, by kernel."""
    count, length, heads, kv_heads, dim, block_size, top_k = SHAPES[name]
    q, k, v = (
        torch.randn(count * length, h, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for h in (heads, kv_heads, kv_heads)
    )
    cu = torch.arange(count + 1, device="cuda", dtype=torch.int32) * length

    def step() -> None:
        libmoba.attention(q, k, v, cu, None, length, block_size=block_size, top_k=top_k).sum().backward()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    print(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=90))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="OUT", help="also write the rows there")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated names (default: all)")
    parser.add_argument("--profile", metavar="SHAPE", choices=SHAPES, help="print the kernels of one shape instead")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device on this machine")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    check()
    if arguments.profile:
        profile(arguments.profile)
        return
    rows = []
    for name in arguments.shapes.split(","):
        row = measure(name)
        rows.append(row)
        print("  ".join(f"{key} {value:.2f}" if isinstance(value, float) else str(value) for key, value in row.items()))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}))


if __name__ == "__main__":
    main()
