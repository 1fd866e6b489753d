"""Times the native kernels for Hopper GPUs against torch's dense attention (cuDNN) and the portable backend.

    python bench/native_cuda.py [--json OUT] [--rows 8K_512_3,32K_128_8] [--portable] [--no-backward]

One row a problem of the table in docs/kernels: milliseconds of the choice, of the whole forward (choice and attention)
and of the backward, and dense attention's time over ours. bfloat16, causal, one sequence of random normal inputs,
medians, each side by itself on a card that it has heated. A speed is printed only after out, dq, dk and dv have been
compared with float32 attention over the same list (long problems: on rows sampled from all over the sequence, and dq).
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Callable, Optional

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
import libmoba  # noqa: E402

K = 1024
# name: (tokens, heads, kv_heads, head_dim, block_size, top_k, asked of forward, asked of backward)
ROWS: dict[str, tuple[int, int, int, int, int, int, float, float]] = {
    "8K_512_3": (8 * K, 16, 16, 128, 512, 3, 1.7, 2.0),
    "32K_512_3": (32 * K, 16, 16, 128, 512, 3, 6, 7),
    "32K_128_8": (32 * K, 16, 16, 128, 128, 8, 4.5, 7),
    "64K_d64_64_8": (64 * K, 4, 4, 64, 64, 8, 6, 6),
    "128K_512_3": (128 * K, 16, 16, 128, 512, 3, 32, 35),
    "128K_128_8": (128 * K, 16, 16, 128, 128, 8, 20, 33),
    "128K_4096_12": (128 * K, 16, 16, 128, 4096, 12, 1.6, 1.2),
    "128K_gqa_128_8": (128 * K, 32, 8, 128, 128, 8, 20, 33),
    "512K_128_8": (512 * K, 16, 16, 128, 128, 8, 70, 0),
    "512K_4096_12": (512 * K, 16, 16, 128, 4096, 12, 5.5, 0),
    "1M_4096_12": (1024 * K, 16, 16, 128, 4096, 12, 11, 0),
}
DEFAULT = list(ROWS)[:8]
TOLERANCE = 2e-2  # of the largest value, for bfloat16


def milliseconds(run: Callable[[], object], seconds: float = 0.3) -> float:
    """The median of some runs, on a card as hot as the same work makes it in a quarter of a second."""

    def once() -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop)

    begin = time.monotonic()
    last = once()
    while time.monotonic() - begin < 0.25:
        last = once()
    fewest = 3 if last < 1000 else 1
    times = [once() for _ in range(max(fewest, min(20, int(seconds * 1000 / last))))]
    return sorted(times)[len(times) // 2]


def compare(name: str, a: Tensor, b: Tensor) -> float:
    error = float((a.detach().float() - b.detach().float()).abs().max() / b.detach().float().abs().max())
    if not error <= TOLERANCE:
        raise SystemExit(f"{name}: error {error:.2e} of the largest value, allowed {TOLERANCE}: not timed")
    return error


def sampled_rows(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lists: Tensor, block_size: int) -> tuple[Tensor, ...]:
    """rows, and for them out and dq of attention over the lists, in float32."""
    tokens, heads, dim = q.shape
    rows = torch.cat([torch.arange(0, tokens, max(1, tokens // 61)), torch.tensor([tokens - 1])]).unique().to(q.device)
    outs, dqs = [], []
    key = torch.arange(tokens, device=q.device)
    for row in rows.tolist():
        own = row // block_size
        head_out, head_dq = [], []
        for head in range(heads):
            kv = head * k.size(1) // heads
            chosen = [int(b) for b in lists[row, head].tolist() if b >= 0]
            seen = torch.cat([key[b * block_size : (b + 1) * block_size] for b in [*chosen, own]])
            seen = seen[seen <= row]
            ks, vs = k[seen, kv].float(), v[seen, kv].float()
            p = (ks @ q[row, head].float() * dim**-0.5).softmax(0)
            out = p @ vs
            dp = vs @ dout[row, head].float()
            head_out.append(out)
            head_dq.append((p * (dp - (dout[row, head].float() * out).sum())) @ ks * dim**-0.5)
        outs.append(torch.stack(head_out))
        dqs.append(torch.stack(head_dq))
    return rows, torch.stack(outs), torch.stack(dqs)


def measure(name: str, with_portable: bool, backward: bool) -> dict[str, object]:
    tokens, heads, kv_heads, dim, block_size, top_k, ask_fwd, ask_bwd = ROWS[name]
    torch.manual_seed(0)

    def tensor(h: int) -> Tensor:
        return torch.randn(tokens, h, dim, device="cuda", dtype=torch.bfloat16, requires_grad=backward)

    q, k, v = tensor(heads), tensor(kv_heads), tensor(kv_heads)
    dout = torch.randn_like(q)
    cu = torch.tensor([0, tokens], device="cuda", dtype=torch.int32)
    row: dict[str, object] = {"row": name}

    def choose() -> Tensor:
        return libmoba.select(q, k, cu, None, tokens, block_size=block_size, top_k=top_k)

    def attend(lists: Optional[Tensor] = None) -> Tensor:
        lists = choose() if lists is None else lists
        return libmoba.attend(q, k, v, lists, cu, None, tokens, block_size=block_size)

    lists = choose()
    out = attend(lists)
    rows, exact_out, exact_dq = sampled_rows(q.detach(), k.detach(), v.detach(), dout, lists, block_size)
    row["error_out"] = compare("out", out[rows], exact_out)
    if backward:
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
        row["error_dq"] = compare("dq", dq[rows], exact_dq)
        if tokens <= 32 * K:
            args = (q, k, v, cu, cu, tokens, tokens, "list", block_size, 0, 0, lists, 0.0)
            expected = torch.autograd.grad(torch.ops.moba.portable_attend(*args)[0], (q, k, v), dout)
            for part, a, b in zip(("dq", "dk", "dv"), (dq, dk, dv), expected):
                row[f"error_{part}"] = compare(part, a, b)
        del dq, dk, dv
    torch.cuda.empty_cache()

    with torch.no_grad():
        row["select_ms"] = milliseconds(choose)
        row["fwd_ms"] = milliseconds(attend)
    if backward:
        row["bwd_ms"] = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    if with_portable and tokens <= 128 * K:
        batch = (cu, cu, tokens, tokens)

        def portable() -> Tensor:
            chosen = torch.ops.moba.portable_select(q, k, *batch, block_size, top_k, None)
            return torch.ops.moba.portable_attend(q, k, v, *batch, "list", block_size, 0, 0, chosen, 0.0)[0]

        with torch.no_grad():
            row["portable_fwd_ms"] = milliseconds(portable)
        if backward:
            result = portable()
            row["portable_bwd_ms"] = milliseconds(
                lambda: torch.autograd.grad(result, (q, k, v), dout, retain_graph=True)
            )
            del result
    del out
    torch.cuda.empty_cache()

    # [1, H, T, D] views of the same memory.
    dense_in = [x.detach().transpose(0, 1).unsqueeze(0).requires_grad_(backward) for x in (q, k, v)]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):

        def dense() -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(
                *dense_in, is_causal=True, enable_gqa=heads != kv_heads
            )

        with torch.no_grad():
            row["dense_fwd_ms"] = milliseconds(dense)
        if backward and tokens <= 128 * K:
            result = dense()
            dense_dout = dout.transpose(0, 1).unsqueeze(0)
            row["dense_bwd_ms"] = milliseconds(
                lambda: torch.autograd.grad(result, dense_in, dense_dout, retain_graph=True)
            )
    for part, ask in (("fwd", ask_fwd), ("bwd", ask_bwd)):
        if f"dense_{part}_ms" in row and f"{part}_ms" in row:
            row[f"{part}_x"] = row[f"dense_{part}_ms"] / row[f"{part}_ms"]  # type: ignore[operator]
            row[f"{part}_asked"] = ask
    row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write all rows here")
    parser.add_argument("--rows", default=",".join(DEFAULT), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--portable", action="store_true", help="time the portable backend too")
    parser.add_argument("--no-backward", action="store_true")
    args = parser.parse_args()
    names = args.rows.split(",")
    for name in names:
        if name not in ROWS:
            parser.error(f"--rows {name}: must be of {', '.join(ROWS)}")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    rows = []
    for name in names:
        torch.cuda.reset_peak_memory_stats()
        backward = not args.no_backward and ROWS[name][0] <= 512 * K
        row = measure(name, args.portable, backward)
        rows.append(row)
        print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else str(value) for key, value in row.items()))
        sys.stdout.flush()
        torch.cuda.empty_cache()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
