"""Every case of the shared table on every backend that Python reaches, against attention written out plainly."""

import pytest
import torch
from problems import (
    CASES,
    DTYPES,
    Problem,
    check_within_twice,
    dense,
    gradients,
    make_problem,
    max_error,
    sequences,
    visible,
)

import libmoba  # noqa: F401  (registers the operators)

ops = torch.ops.moba
# The portable backend also runs on the CPU, with plain loops in the place of the fused kernels.
VARIANTS = {"backend": (ops.select, ops.attend), "portable": (ops.portable_select, ops.portable_attend)}


def skip_twins(device: str, variant: str) -> None:
    if device == "cuda" and variant == "portable":
        pytest.skip("on CUDA the portable backend is the backend")


def choose(p: Problem, device: str, variant: str) -> torch.Tensor:
    q, k = p.q.to(device), p.k.to(device)
    blocks = VARIANTS[variant][0](
        q, k, p.cu_q.to(device), p.cu_k.to(device), p.max_q, p.max_k, p.case["block_size"], p.budget + 1,
        **p.gate, softmax_scale=p.case["softmax_scale"],
    )  # fmt: skip
    return blocks.cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_attend(name: str, variant: str, dtype: str, device: str) -> None:
    skip_twins(device, variant)
    p = make_problem(name, DTYPES[dtype])
    blocks = choose(p, device, variant) if p.kind == "list" else None
    mask = visible(p, blocks)

    def run(q, k, v):
        return VARIANTS[variant][1](
            q, k, v, p.cu_q.to(device), p.cu_k.to(device), p.max_q, p.max_k, p.kind, p.case["block_size"],
            p.case["window"], p.case["sink"], None if blocks is None else blocks.to(device), p.case["softmax_scale"],
        )  # fmt: skip

    results = gradients(run, p, p.q.dtype, device)
    assert not any(value.isnan().any() for value in results.values())
    # The portable backend sums an own-block part and a history part (or a window part and a sink part).
    parts = 2 if (variant == "portable" or device == "cuda") and p.kind != "all" else 1
    # On CUDA full attention is torch's own kernel.
    same_precision = dense(p, mask, p.q.dtype, device, rounds_heads=device == "cuda" and p.kind == "all")
    check_within_twice(results, same_precision, dense(p, mask, torch.float64, "cpu"), p.q.dtype, parts)


@pytest.mark.parametrize("name", CASES)
def test_reference_is_exact(name: str) -> None:
    """float64 on the CPU, choice and attention together, against the plain computation."""
    p = make_problem(name, torch.float64)
    blocks = choose(p, "cpu", "backend") if p.kind == "list" else None
    exact = dense(p, visible(p, blocks), torch.float64, "cpu")
    options = {key: p.case[key] for key in ("kind", "block_size", "top_k", "sink", "compat_topk1_full")}
    results = gradients(
        lambda q, k, v: libmoba.attention(
            q, k, v, p.cu_q, p.cu_k, p.max_q, p.max_k, window=p.case["window"] or None,
            softmax_scale=p.case["softmax_scale"] or None, return_lse=True, **options, **p.gate,
        ),  # fmt: skip
        p, torch.float64, "cpu",
    )  # fmt: skip
    p.dlse = p.dlse.double()
    for key, value in exact.items():
        size = float(value[value.isfinite()].abs().max()) if value.numel() else 0.0
        assert max_error(results[key], value) <= 1e-10 * max(1.0, size), key


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["kind"] == "moba"])
def test_select(name: str, variant: str, dtype: str, device: str) -> None:
    """Ascending, of the past, -1 padded, as many as there are; and the best by score, up to a margin of rounding."""
    skip_twins(device, variant)
    p = make_problem(name, DTYPES[dtype])
    blocks = choose(p, device, variant)
    assert blocks.shape == (p.q.size(0), p.lists, p.budget) and blocks.dtype == torch.int32
    size, group = p.case["block_size"], p.case["heads"] // p.case["kv_heads"]
    for q_begin, queries, k_begin, keys in sequences(p):
        whole = keys // size
        means = p.k[k_begin : k_begin + whole * size].float().unflatten(0, (whole, size)).mean(1)
        rounding = torch.finfo(torch.float32).eps
        if p.case["representative_dtype"] == "input":
            means, rounding = means.to(p.k.dtype), torch.finfo(p.k.dtype).eps
        means = means.double().repeat_interleave(group, 1)
        q = p.q[q_begin : q_begin + queries].double()
        own = (torch.arange(queries) + keys - queries).div(size, rounding_mode="floor").clamp_min(0)
        block = torch.arange(whole)
        past = block[None, None] < own[:, None, None]
        # A rounding of the mean to the dtype may go the other way, and float32 sums round too.
        products = torch.einsum("thd,nhd->thn", q, means)
        margins = torch.einsum("thd,nhd->thn", q.abs(), means.abs()) * (rounding + 1e-6)
        scores, margin = shared(p, products, margins, past)
        lists = blocks[q_begin : q_begin + queries]
        chosen = torch.zeros(queries, p.lists, whole + 1, dtype=torch.bool)
        chosen.scatter_(2, torch.where(lists < 0, whole, lists).long(), True)
        chosen = chosen[..., :whole]
        count = torch.minimum(own.clamp_max(whole), torch.tensor(p.budget))
        assert torch.equal(chosen.sum(-1), count[:, None].expand(-1, p.lists))
        assert not (chosen & ~past).any()
        padded = torch.where(lists < 0, 2**31 - 1, lists)
        assert torch.equal(padded, padded.sort(-1).values)
        forced = past & (
            (block < p.case["sink_blocks"]) | (block == own[:, None, None] - 1) & p.case["force_previous"]
        )
        assert not (forced & ~chosen).any()
        worst = (scores + margin).masked_fill(~chosen | forced, torch.inf)
        best_left = (scores - margin).masked_fill(chosen | ~past, -torch.inf)
        if whole:
            assert (best_left.amax(-1) <= worst.amin(-1)).all()


def shared(p: Problem, products: torch.Tensor, margins: torch.Tensor, past: torch.Tensor):
    """Scores of each list from the products of its heads, (rows, H, blocks) -> (rows, lists, blocks), and their margins."""
    grouped, margins = products.unflatten(1, (p.lists, -1)), margins.unflatten(1, (p.lists, -1))
    if grouped.size(2) == 1 or p.case["share_score"] == "sum_logit":
        return grouped.sum(2), margins.sum(2)
    if p.case["share_score"] == "max":
        return grouped.amax(2), margins.amax(2)
    probability = torch.softmax((grouped * p.scale).masked_fill(~past[:, :, None], -torch.inf), -1)
    off = 4 * p.scale * margins.amax(-1, keepdim=True) if margins.size(-1) else margins
    return probability.sum(2), (probability * (off + 1e-5)).sum(2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ties_go_to_the_lower_index(variant: str, device: str) -> None:
    skip_twins(device, variant)
    for top_k in (3, 40):  # few blocks and many are chosen in different ways
        p = make_problem("ties", torch.bfloat16)
        p.case["block_size"], p.case["top_k"] = 4, top_k
        blocks = choose(p, device, variant)
        own = torch.arange(200) // 4
        slot = torch.arange(top_k - 1)
        expected = torch.where(slot[None] < own[:, None], slot[None], -1)
        assert torch.equal(blocks, expected[:, None, :].expand_as(blocks).int())


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shared_lists(variant: str, heads: int, device: str) -> None:
    """A list for all heads, or one for each key head."""
    skip_twins(device, variant)
    p = make_problem("mixed_lengths", torch.float32)
    blocks = choose(p, device, variant)[:, :heads].contiguous()
    mask = visible(p, blocks)

    def run(q, k, v):
        return VARIANTS[variant][1](
            q, k, v, p.cu_q.to(device), p.cu_k.to(device), p.max_q, p.max_k, "list", 32, 0, 0, blocks.to(device), 0.0
        )

    results = gradients(run, p, torch.float32, device)
    check_within_twice(
        results, dense(p, mask, torch.float32, device), dense(p, mask, torch.float64, "cpu"), torch.float32
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_entries_that_are_not_allowed_are_passed_over(variant: str, device: str) -> None:
    skip_twins(device, variant)
    p = make_problem("mixed_lengths", torch.float32)
    good = choose(p, device, variant)
    attend = VARIANTS[variant][1]

    def run(blocks):
        return attend(
            p.q.to(device), p.k.to(device), p.v.to(device), p.cu_q.to(device), p.cu_k.to(device), p.max_q, p.max_k,
            "list", 32, 0, 0, blocks.to(device), 0.0,
        )  # fmt: skip

    bad = torch.cat([good, torch.full_like(good[..., :1], 10**9), torch.full_like(good[..., :1], -7)], -1)
    repeated = torch.cat([good, good[..., -1:]], -1)
    for blocks in (bad, repeated):
        for a, b in zip(run(blocks), run(good)):
            torch.testing.assert_close(a, b)
