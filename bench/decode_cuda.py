"""Times decode steps over a PagedKvCache on a Hopper GPU against torch's dense attention over a contiguous cache.

    python bench/decode_cuda.py [--json OUT] [--rows 128K_gqa_b1,...]

One row a problem: microseconds of one step (choice and attention, replayed as a graph), what it reads by the time, the
share of the speed of a copy in the same run, and dense attention's time over ours. bfloat16, random normal inputs,
medians. Steps go round several batches, so that what one reads the one before has not left in the L2 cache. A speed is
printed only after the step was compared with float32 attention over the blocks that torch chooses.
"""

import argparse
import json
import pathlib
import sys
from typing import Callable

import torch
from torch import Tensor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
import libmoba  # noqa: E402

K = 1024
# name: (tokens, sequences of a step, heads, kv_heads, head_dim, block_size, top_k)
ROWS: dict[str, tuple[int, int, int, int, int, int, int]] = {
    "8K_gqa_b1": (8 * K, 1, 32, 8, 128, 128, 8),
    "32K_gqa_b1": (32 * K, 1, 32, 8, 128, 128, 8),
    "128K_gqa_b1": (128 * K, 1, 32, 8, 128, 128, 8),
    "8K_gqa_b16": (8 * K, 16, 32, 8, 128, 128, 8),
    "32K_gqa_b16": (32 * K, 16, 32, 8, 128, 128, 8),
    "128K_gqa_b16": (128 * K, 16, 32, 8, 128, 128, 8),
    "8K_gqa_b64": (8 * K, 64, 32, 8, 128, 128, 8),
    "32K_gqa_b64": (32 * K, 64, 32, 8, 128, 128, 8),
    "128K_gqa_b64": (128 * K, 64, 32, 8, 128, 128, 8),
    "128K_mha_b1": (128 * K, 1, 16, 16, 128, 128, 8),
    "32K_mha_b16": (32 * K, 16, 16, 16, 128, 128, 8),
    "128K_mqa_b1": (128 * K, 1, 16, 1, 128, 128, 8),
    "128K_mqa_b16": (128 * K, 16, 16, 1, 128, 128, 8),
}
PAGE = 64
TOLERANCE = 2e-2  # of the largest value


def microseconds(run: Callable[[int], object], calls: int) -> float:
    """Of one of `calls` calls replayed as one graph: the median of several replays."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            run(i)
    times = []
    for _ in range(7):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / calls)
    return sorted(times)[len(times) // 2]


def copy_speed() -> float:
    """Bytes read and written by second."""
    a = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / microseconds(lambda _: b.copy_(a), 4) * 1e6


def chosen_blocks(q: Tensor, k: Tensor, block_size: int, top_k: int) -> Tensor:
    """The past blocks of each head of one row: (H, top_k - 1), in float32."""
    past = (k.size(0) - 1) // block_size
    means = k[: past * block_size].unflatten(0, (past, block_size)).float().mean(1).to(k.dtype).float()
    scores = torch.einsum("hd,bhd->hb", q.float(), means.repeat_interleave(q.size(0) // k.size(1), 1))
    return scores.topk(min(top_k - 1, past), 1).indices


def check(out: Tensor, q: Tensor, k: Tensor, v: Tensor, block_size: int, top_k: int) -> None:
    tokens, kv_heads = k.size(0), k.size(1)
    group = q.size(0) // kv_heads
    blocks = chosen_blocks(q, k, block_size, top_k)
    own = torch.arange((tokens - 1) // block_size * block_size, tokens, device=q.device)
    within = torch.arange(block_size, device=q.device)
    for head in range(q.size(0)):
        rows = torch.cat([(blocks[head, :, None] * block_size + within).flatten(), own])
        keys, values = k[rows, head // group].float(), v[rows, head // group].float()
        p = (keys @ q[head].float() * q.size(1) ** -0.5).softmax(0)
        expected = p @ values
        error = float((out[head].float() - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            raise SystemExit(f"head {head}: error {error:.2e} of the largest value, allowed {TOLERANCE}: not timed")


def measure(name: str, copy: float) -> dict[str, object]:
    tokens, batch, heads, kv_heads, dim, block_size, top_k = ROWS[name]
    torch.manual_seed(0)
    batches = max(1, 16 // batch)
    sequences = batches * batch
    cache = libmoba.PagedKvCache(
        pages=sequences * tokens // PAGE,
        page_size=PAGE,
        sequences=sequences,
        capacity=tokens,
        kv_heads=kv_heads,
        head_dim=dim,
        block_size=block_size,
        dtype=torch.bfloat16,
        device="cuda",
    )

    def normal(rows: int, of: int) -> Tensor:
        return torch.randn(rows, of, dim, device="cuda", dtype=torch.bfloat16)

    # Pieces of the sequences in turn, so that their pages alternate in the pool; the first sequence is kept to compare.
    first: list[tuple[Tensor, Tensor]] = []
    last = tokens - 5
    for begin in range(0, last, 4 * K):
        count = min(4 * K, last - begin)
        for s in range(sequences):
            k, v = normal(count, kv_heads), normal(count, kv_heads)
            cache.append(k, v, sequences=[s], counts=[count])
            if s == 0:
                first.append((k, v))
    q = normal(sequences, heads)
    k, v = (torch.cat([pair[i] for pair in first]) for i in range(2))

    def step(i: int) -> Tensor:
        begin = i % batches * batch
        chosen = range(begin, begin + batch)
        return cache.attend(q[begin : begin + batch], sequences=chosen, top_k=top_k)[0]

    check(step(0)[0], q[0], k, v, block_size, top_k)
    step_us = microseconds(step, 8 * batches)
    row: dict[str, object] = {"name": name, "step_us": step_us}

    # Distinct blocks of each key/value head of the first sequence: what is read of it.
    blocks = chosen_blocks(q[0], k, block_size, top_k).view(kv_heads, -1)
    past = (last - 1) // block_size
    keys = sum(len(set(of.tolist())) for of in blocks) * block_size + kv_heads * (last - past * block_size)
    read = batch * (keys * dim * 4 + past * kv_heads * dim * 2)
    row["read_mb"] = read / 1e6
    row["gb_per_s"] = read / step_us / 1e3
    row["of_copy"] = read / step_us * 1e6 / copy

    full_us = microseconds(lambda i: cache.attend(q[:batch], sequences=range(batch), kind="full"), 4)
    row["all_keys_us"], row["all_keys_x"] = full_us, full_us / step_us
    del first, k, v, cache
    torch.cuda.empty_cache()

    dense_k, dense_v = (torch.randn(batch, kv_heads, last, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    dense_q = q[:batch].unsqueeze(2)
    dense_us = microseconds(
        lambda _: torch.nn.functional.scaled_dot_product_attention(
            dense_q, dense_k, dense_v, enable_gqa=heads != kv_heads
        ),
        4,
    )
    row["sdpa_us"], row["sdpa_x"] = dense_us, dense_us / step_us
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write all rows here")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    args = parser.parse_args()
    names = args.rows.split(",")
    for name in names:
        if name not in ROWS:
            parser.error(f"--rows {name}: must be of {', '.join(ROWS)}")
    copy = copy_speed()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, f"copy {copy / 1e9:.0f} GB/s")
    rows = []
    with torch.no_grad():
        for name in names:
            row = measure(name, copy)
            rows.append(row)
            print("  ".join(f"{key} {x:.3g}" if isinstance(x, float) else str(x) for key, x in row.items()))
            sys.stdout.flush()
            torch.cuda.empty_cache()
    if args.json:
        result = {"device": torch.cuda.get_device_name(), "copy_gb_per_s": copy / 1e9, "rows": rows}
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
