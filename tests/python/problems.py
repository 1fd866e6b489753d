"""The shared case table as tensors, and attention written out plainly: the oracle of the Python tests."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zlib
from typing import Any, Callable, Optional

import torch
from torch import Tensor

_TABLE = json.loads((pathlib.Path(__file__).resolve().parents[1] / "cases" / "cases.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: {**_TABLE["defaults"], **case} for case in _TABLE["cases"]}
DTYPES = {name: getattr(torch, name) for name in _TABLE["dtypes"]}
# Roundings of float32, in units of the largest value, on top of the 2x rule.
FLOAT32_ROUNDINGS = 4


def offsets(lengths: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


@dataclasses.dataclass
class Problem:
    """Inputs in `dtype` on the CPU, and the options of one case."""

    case: dict[str, Any]
    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    dlse: Tensor
    cu_q: Tensor
    cu_k: Tensor

    @property
    def max_q(self) -> int:
        return max(self.case["q_lengths"])

    @property
    def max_k(self) -> int:
        return max(self.case["k_lengths"])

    @property
    def kind(self) -> str:
        """The kind of selection."""
        if self.case["kind"] == "moba":
            return "all" if self.case["compat_topk1_full"] and self.case["top_k"] == 1 else "list"
        return {"full": "all", "window": "span"}[self.case["kind"]]

    @property
    def gate(self) -> dict[str, Any]:
        """The options of the choice beside block_size and top_k."""
        names = ("force_previous", "sink_blocks", "share", "share_score", "representative_dtype")
        return {name: self.case[name] for name in names}

    @property
    def lists(self) -> int:
        """How many choices each row makes."""
        return {"head": self.case["heads"], "group": self.case["kv_heads"], "layer": 1}[self.case["share"]]

    @property
    def scale(self) -> float:
        return self.case["softmax_scale"] or self.q.size(2) ** -0.5

    @property
    def budget(self) -> int:
        return min(self.case["top_k"] - 1, max(self.max_k - 1, 0) // self.case["block_size"])


def make_problem(name: str, dtype: torch.dtype) -> Problem:
    case = dict(CASES[name])
    case.setdefault("k_lengths", case["q_lengths"])
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    total_q, total_k = sum(case["q_lengths"]), sum(case["k_lengths"])
    q = normal(total_q, case["heads"], case["head_dim"])
    k = normal(total_k, case["kv_heads"], case["head_dim"])
    v = normal(total_k, case["kv_heads"], case["value_dim"])
    dout = normal(total_q, case["heads"], case["value_dim"])
    dlse = normal(case["heads"], total_q)
    if case["data"] == "equal_keys":
        k[:] = k[0].clone()
    elif case["data"] == "huge_key":
        k[total_k // 3] *= 100
    elif case["data"] == "large":
        q *= 10
    elif case["data"] == "skewed":
        q[..., 0] += 4
        popular = torch.arange(total_k) // case["block_size"] % 5 == 0
        k[popular, :, 0] += 4
    else:
        assert case["data"] == "normal", case["data"]
    return Problem(
        case,
        *(x.to(dtype) for x in (q, k, v, dout)),
        dlse,
        offsets(case["q_lengths"]),
        offsets(case["k_lengths"], torch.int64),
    )


def sequences(p: Problem) -> list[tuple[int, int, int, int]]:
    """(first query row, queries, first key, keys) of each sequence."""
    rows = []
    q_begin = k_begin = 0
    for queries, keys in zip(p.case["q_lengths"], p.case["k_lengths"]):
        rows.append((q_begin, queries, k_begin, keys))
        q_begin, k_begin = q_begin + queries, k_begin + keys
    return rows


def visible(p: Problem, blocks: Optional[Tensor]) -> Tensor:
    """bool [H, Tq, Tk]: which keys each row attends, straight from the definition."""
    heads = p.case["heads"]
    mask = torch.zeros(heads, p.q.size(0), p.k.size(0), dtype=torch.bool)
    for q_begin, queries, k_begin, keys in sequences(p):
        position = torch.arange(queries)[:, None] + keys - queries
        key = torch.arange(keys)[None, :]
        seen = (key <= position).expand(heads, -1, -1)
        if p.kind == "span":
            seen = seen & ((key > position - p.case["window"]) | (key < p.case["sink"]))
        if p.kind == "list":
            assert blocks is not None
            size = p.case["block_size"]
            own = key // size == position // size
            listed = blocks[q_begin : q_begin + queries].transpose(0, 1)  # [selection heads, queries, budget]
            listed = listed.repeat_interleave(heads // listed.size(0), 0)
            chosen = torch.zeros(heads, queries, keys // size + 2, dtype=torch.bool)
            chosen.scatter_(2, torch.where(listed < 0, chosen.size(2) - 1, listed).long(), True)
            chosen[..., -1] = False
            seen = seen & (own | chosen[:, :, torch.arange(keys) // size])
        mask[:, q_begin : q_begin + queries, k_begin : k_begin + keys] = seen
    return mask


Results = dict[str, Tensor]


def gradients(run: Callable[..., tuple[Tensor, Tensor]], p: Problem, dtype: torch.dtype, device: str) -> Results:
    """out, lse, dq, dk, dv of `run(q, k, v)`, with gradients through out and lse, as float64 on the CPU."""
    q, k, v = (x.to(device, dtype, copy=True).requires_grad_() for x in (p.q, p.k, p.v))
    out, lse = run(q, k, v)
    lse_seen = torch.where(lse.detach() == -torch.inf, 0.0, lse)  # no gradient where a row is empty
    loss = (out * p.dout.to(device, dtype)).sum(dtype=torch.float64) + (lse_seen * p.dlse.to(device, lse.dtype)).sum(
        dtype=torch.float64
    )
    dq, dk, dv = torch.autograd.grad(loss, (q, k, v))
    results = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    return {name: value.detach().to("cpu", torch.float64) for name, value in results.items()}


def dense(p: Problem, mask: Tensor, dtype: torch.dtype, device: str, rounds_heads: bool = False) -> Results:
    """Attention as one masked softmax, written out, backward too; in float64 it is the exact result.

    For other dtypes it rounds what a fused kernel rounds, and no more: probabilities and their gradients before a
    matrix product, and the results; sums are float32, and delta = sum(dout * out) uses the rounded out.
    `rounds_heads`: dk and dv of each query head are results of their own before a group's are summed, as in torch's
    FlashAttention for grouped heads.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    group = p.case["heads"] // p.case["kv_heads"]

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).to(wide)

    def heads_first(x: Tensor) -> Tensor:
        return x.to(device, wide).transpose(0, 1)

    mask = mask.to(device)
    q, k, v, dout = (heads_first(x) for x in (p.q, p.k, p.v, p.dout))
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    scores = (q @ k.transpose(1, 2) * p.scale).masked_fill(~mask, -torch.inf)
    empty = ~mask.any(-1)
    lse = torch.logsumexp(scores.masked_fill(empty[..., None], 0.0), -1)
    probability = torch.exp(scores - lse[..., None])
    out = rounded(rounded(probability) @ v)
    delta = (dout * out).sum(-1, keepdim=True)
    dlse = p.dlse.to(device, wide).masked_fill(empty, 0.0)
    ds = rounded(probability * (dout @ v.transpose(1, 2) - delta + dlse[..., None]))

    def of_key_heads(gradient: Tensor) -> Tensor:
        gradient = rounded(gradient) if rounds_heads else gradient
        return gradient.unflatten(0, (p.case["kv_heads"], group)).sum(1)

    results = {
        "out": out.transpose(0, 1),
        "lse": lse.masked_fill(empty, -torch.inf),
        "dq": rounded(ds @ k * p.scale).transpose(0, 1),
        "dk": rounded(of_key_heads(ds.transpose(1, 2) @ q * p.scale)).transpose(0, 1),
        "dv": rounded(of_key_heads(rounded(probability).transpose(1, 2) @ dout)).transpose(0, 1),
    }
    return {name: value.to("cpu", torch.float64) for name, value in results.items()}


def max_error(a: Tensor, b: Tensor) -> float:
    """max |a - b|; equal values count 0, a NaN or infinity in one only counts as infinite."""
    same = (a == b) | (a.isnan() & b.isnan())
    difference = (a - b).abs().masked_fill(same, 0.0).nan_to_num(torch.inf)
    return float(difference.max()) if difference.numel() else 0.0


def check_within_twice(
    results: Results, same_precision: Results, exact: Results, dtype: torch.dtype, parts: int = 1
) -> None:
    """The 2x rule: at most twice as far from the exact result as a dense computation of the same precision is.

    A result is always allowed its rounding to `dtype`, and a few roundings of float32; a gradient, for which every
    probability is exp(score - lse), as many more as lse is large, since half a unit in its last place moves them by
    |lse| / 2 units (the dense computation escapes this where its scores are rounded just as its lse was). `parts`: how
    many results, each already rounded to `dtype`, are summed, for torch's fused kernels give no wider ones: the rule
    then holds for each part.
    """

    def largest(values: Tensor) -> float:
        finite = values[values.isfinite()].abs()
        return float(finite.max()) if finite.numel() else 0.0

    half_unit = torch.finfo(dtype).eps / 2
    for name, value in exact.items():
        size = largest(value)
        roundings = FLOAT32_ROUNDINGS + (largest(exact["lse"]) if name in ("dq", "dk", "dv") else 0.0)
        allowed = parts * max(2 * max_error(same_precision[name], value), half_unit * size)
        allowed += roundings * torch.finfo(torch.float32).eps * size
        error = max_error(results[name], value)
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
