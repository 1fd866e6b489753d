"""The grid of the tests of MoonshotAI/MoBA with its bounds. On the CPU a corner of it: the C++ tests run it whole.

As there, two bfloat16 results are compared: the oracle is computed in float32 and rounded. (Left in float32, the
difference would be mostly the rounding that any bfloat16 result has: 2.9e-4 of the allowed mean of 4e-4 over short
sequences.)
"""

import itertools

import pytest
import torch
from problems import offsets

import libmoba

MAX_ERROR, MEAN_ERROR = 4e-2, 4e-4


def masked_softmax(q, k, v, blocks, block_size):
    """One sequence, float32, every row's own block and its list."""
    length, heads = q.shape[:2]
    position = torch.arange(length, device=q.device)
    block = position // block_size
    chosen = torch.zeros(length, heads, int(block[-1]) + 2, dtype=torch.bool, device=q.device)
    chosen.scatter_(2, torch.where(blocks < 0, chosen.size(2) - 1, blocks).long(), True)
    mask = chosen[:, :, block] | (block[:, None] == block[None])[:, None]
    mask &= (position[:, None] >= position[None])[:, None]
    scores = torch.einsum("thd,uhd->htu", q, k) * q.size(2) ** -0.5
    weights = scores.masked_fill(~mask.transpose(0, 1), -torch.inf).softmax(-1)
    return torch.einsum("htu,uhd->thd", weights, v)


@pytest.mark.parametrize("block_size,top_k", list(itertools.product((128, 256, 1024), (2, 3, 4))))
@pytest.mark.parametrize(
    "batch,heads,length", list(itertools.product((1, 4, 7), (1, 2, 4, 8), (512, 1024, 2048)))
)
def test_grid(batch, heads, length, block_size, top_k, device):
    if device == "cpu" and (batch, heads, length) != (4, 2, 512):
        pytest.skip("the C++ tests run the whole grid on the CPU")
    generator = torch.Generator().manual_seed(batch * 1000 + heads * 100 + length + top_k)
    # Total tokens `length` in `batch` sequences of uneven lengths.
    cuts = sorted(torch.randperm(length - 1, generator=generator)[: batch - 1].add(1).tolist())
    lengths = [end - begin for begin, end in zip([0, *cuts], [*cuts, length])]
    q, k, v = (
        torch.randn(length, heads, 128, generator=generator).to(device, torch.bfloat16).requires_grad_() for _ in range(3)
    )
    dout = torch.randn(length, heads, 128, generator=generator).to(device, torch.bfloat16)
    cu = offsets(lengths).to(device)
    blocks = libmoba.select(q, k, cu, None, max(lengths), block_size=block_size, top_k=top_k)
    out = libmoba.moba_attn_varlen(q, k, v, cu, max(lengths), block_size, top_k)
    results = [out, *torch.autograd.grad(out, (q, k, v), dout)]

    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    parts, begin = [], 0
    for part in lengths:
        rows = slice(begin, begin + part)
        parts.append(masked_softmax(*(x[rows] for x in exact), blocks[rows], block_size))
        begin += part
    expected_out = torch.cat(parts)
    expected = [expected_out, *torch.autograd.grad(expected_out, exact, dout.float())]
    for name, a, b in zip(("out", "dq", "dk", "dv"), results, expected):
        b = b.detach().bfloat16().float()
        error = (a.detach().float() - b).abs()
        # The bounds were set for values of about 1; gradients here reach larger ones.
        size = max(1.0, float(b.abs().max()) / 4)
        assert float(error.max()) < MAX_ERROR * size, name
        assert float(error.mean()) < MEAN_ERROR * size, f"{name} {float(error.mean())}"
