"""What the portable backend does its own way, on the CPU against the CPU backend, and on CUDA against it too."""

import pytest
import torch
from problems import offsets

import libmoba

ops = torch.ops.moba


def tensors(tokens, heads, kv_heads, dim, dtype=torch.float32):
    return tuple(torch.randn(tokens, h, dim, dtype=dtype) for h in (heads, kv_heads, kv_heads))


@pytest.mark.parametrize(
    "lengths,heads,kv_heads,dim,block_size,top_k",
    [
        ([512, 512], 4, 2, 64, 64, 8),
        ([300, 0, 37, 563], 4, 4, 64, 16, 8),
        ([1500], 2, 1, 32, 4, 6),  # many blocks, chosen in two steps; slots in several chunks
        ([1024], 4, 4, 64, 64, 8),  # heads in several chunks
        ([10, 1290], 1, 1, 16, 2, 9),
        ([700], 3, 3, 20, 32, 3),  # rows that are no multiple of 16 bytes
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_problems_in_chunks(lengths, heads, kv_heads, dim, block_size, top_k, dtype, device):
    inputs = tensors(sum(lengths), heads, kv_heads, dim, dtype)
    cu, longest = offsets(lengths), max(lengths)
    blocks = ops.select(*inputs[:2], cu, cu, longest, longest, block_size, top_k)
    expected_blocks = blocks if dtype == torch.float32 else None  # bf16 means may round differently
    results = []
    for select, attend, where in ((ops.select, ops.attend, "cpu"), (ops.portable_select, ops.portable_attend, device)):
        q, k, v = (x.to(where, copy=True).requires_grad_() for x in inputs)
        cu_there = cu.to(where)
        if expected_blocks is not None:
            chosen = select(q, k, cu_there, cu_there, longest, longest, block_size, top_k).cpu()
            # float32 sums in another order may decide a near tie otherwise.
            assert (chosen != expected_blocks).any(-1).float().mean() < 2e-3
        out, lse = attend(
            q, k, v, cu_there, cu_there, longest, longest, "list", block_size, 0, 0, blocks.to(where), 0.0
        )
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(where, dtype)
        dlse = torch.randn(lse.shape, generator=torch.Generator().manual_seed(2)).to(where)
        gradients = torch.autograd.grad((out, lse), (q, k, v), (dout, dlse))
        results.append([x.detach().cpu().float() for x in (out, lse, *gradients)])
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [3, 20])
def test_wide_choice_prefers_the_lower_index(count, device):
    """2000 candidates, three levels of score and no more."""
    length, block_size = 4002, 2
    level = torch.randint(0, 3, (length // block_size,)).float()
    k = level.repeat_interleave(block_size)[:, None, None].expand(-1, 1, 8).contiguous().to(device)
    q = torch.ones(length, 1, 8, device=device)
    cu = offsets([length]).to(device)
    blocks = ops.portable_select(q, k, cu, cu, length, length, block_size, count + 1)[:, 0].cpu()
    for row in (1, 7, 500, 3001, 4001):
        order = torch.sort(level[: row // block_size], stable=True, descending=True).indices[:count]
        expected = torch.full((count,), -1)
        expected[: order.numel()] = order.sort().values
        assert torch.equal(blocks[row].long(), expected), row


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["list", "all", "window", "sink"])
def test_what_is_not_finite_in_v_stays_with_the_rows_that_see_it(kind, bad, device):
    lengths = [70, 130]
    q, k, v = (x.to(device) for x in tensors(200, 4, 2, 32))
    cu, block_size, window, sink = offsets(lengths).to(device), 16, 20, 4
    v[3, 1, 5] = v[70 + 37, 0] = bad
    blocks = ops.portable_select(q, k, cu, cu, 130, 130, block_size, 3)
    name, extent = {"list": ("list", 0), "all": ("all", 0)}.get(kind, ("span", window))
    arguments = (name, block_size, extent, sink if kind == "sink" else 0, blocks, 0.0)
    out, _ = ops.portable_attend(q, k, v, cu, cu, 130, 130, *arguments)
    clean = v.nan_to_num(0.0, 0.0, 0.0)
    finite, _ = ops.portable_attend(q, k, clean, cu, cu, 130, 130, *arguments)

    row = torch.arange(200, device=device)
    expected = torch.zeros(200, 4, dtype=torch.bool, device=device)
    for key, heads, begin, end in ((3, slice(2, 4), 0, 70), (70 + 37, slice(0, 2), 70, 200)):
        after = (row >= key) & (row < end)
        if kind == "list":
            own = after & ((row - begin) // block_size == (key - begin) // block_size)
            listed = (blocks[:, heads] == (key - begin) // block_size).any(-1) & (row >= begin)[:, None]
            expected[:, heads] |= own[:, None] | (listed & (row < end)[:, None])
        else:
            seen = after if kind == "all" else after & (row < key + window)
            if kind == "sink" and key - begin < sink:
                seen = after
            expected[:, heads] |= seen[:, None]
    assert torch.equal((~out.isfinite()).any(-1), expected)
    torch.testing.assert_close(out[~expected], finite[~expected])


@pytest.mark.parametrize("kind", ["list", "all"])
def test_one_row_a_sequence_sees_all_and_is_not_cleaned(kind, device):
    """Decode of a batch: nothing is masked, so what is not finite may stay in v, and spoils its own row alone."""
    q, k, v = torch.randn(2, 4, 32), torch.randn(90, 2, 32), torch.randn(90, 2, 32)
    v[85, 0] = torch.nan
    q, k, v = (x.to(device) for x in (q, k, v))
    cu_q, cu_k = offsets([1, 1]).to(device), offsets([37, 53]).to(device)
    blocks = ops.portable_select(q, k, cu_q, cu_k, 1, 53, 16, 3)
    arguments = (cu_q, cu_k, 1, 53, kind, 16, 0, 0, blocks, 0.0)
    out, _ = ops.portable_attend(q, k, v, *arguments)
    assert out[0].isfinite().all() and out[1, 2:].isfinite().all() and out[1, :2].isnan().all()
    expected, _ = ops.portable_attend(q, k, v.nan_to_num(0.0), *arguments)
    torch.testing.assert_close(out[0], expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 100, 700])
def test_decode_is_the_last_row(length, heads, kv_heads, dtype, device):
    q, k, v = (x.to(device) for x in tensors(length, heads, kv_heads, 32, dtype))
    cu = offsets([length]).to(device)
    for block_size, top_k in ((16, 3), (16, 1), (4, 8), (16, 100), (1000, 1)):
        expected, expected_lse = libmoba.attention(q, k, v, cu, block_size=block_size, top_k=top_k, return_lse=True)
        whole = length // block_size
        means = k[: whole * block_size].float().unflatten(0, (whole, block_size)).mean(1).to(dtype)
        out, lse = ops.portable_decode(q[-1:], k, v, means, block_size, top_k, 0.0)
        tolerance = 2e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out, expected[-1:], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(lse, expected_lse[:, -1:], rtol=tolerance, atol=tolerance)


def test_decode_passes_over_a_nan_block(device):
    q, k, v = (x.to(device) for x in tensors(100, 2, 2, 32))
    k[16:32] = v[16:32] = torch.nan
    means = k[:96].unflatten(0, (6, 16)).mean(1)
    out, lse = ops.portable_decode(q[-1:], k, v, means, 16, 100, 0.0)
    rest = torch.cat([k[:16], k[32:]]), torch.cat([v[:16], v[32:]])
    expected, expected_lse = libmoba.attention(
        q[-1:], *rest, offsets([1]).to(device), offsets([84]).to(device), 1, 84, kind="full", return_lse=True
    )
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="rows of q"):
        ops.portable_decode(q, k, v, means, 16, 3, 0.0)
    with pytest.raises(ValueError, match="representatives"):
        ops.portable_decode(q[-1:], k, v, means[:-1], 16, 3, 0.0)


@pytest.mark.parametrize("scale", [-1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("variant", ["", "portable_"])
def test_scales_are_checked_by_the_operators(variant, scale, device):
    q, k, v = (x.to(device) for x in tensors(20, 2, 2, 32))
    cu = offsets([20]).to(device)
    arguments = (cu, cu, 20, 20, "all", 1, 0, 0, None)
    out, lse = getattr(ops, f"{variant}attend")(q, k, v, *arguments, 0.0)
    with pytest.raises(ValueError, match="softmax_scale is"):
        getattr(ops, f"{variant}attend")(q, k, v, *arguments, scale)
    with pytest.raises(ValueError, match="softmax_scale is"):
        getattr(ops, f"{variant}attend_backward")(out, None, q, k, v, out, lse, *arguments, scale)
