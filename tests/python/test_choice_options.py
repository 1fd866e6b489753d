"""The options of the choice through `libmoba`, and what a choice is worth."""

import pytest
import torch
from problems import offsets

import libmoba

ops = torch.ops.moba
GATES = {
    "previous": dict(force_previous=True),
    "sinks": dict(sink_blocks=2),
    "group": dict(share="group"),
    "layer, probabilities": dict(share="layer", share_score="sum_prob"),
    "group, greatest": dict(share="group", share_score="max"),
    "float32 means": dict(representative_dtype="float32"),
    "all": dict(
        force_previous=True, sink_blocks=1, share="group", share_score="sum_prob", representative_dtype="float32"
    ),
}


def tensors(tokens=150, heads=4, kv_heads=2, dim=32, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(tokens, h, dim, generator=generator).to(device, dtype) for h in (heads, kv_heads, kv_heads)
    )


@pytest.mark.parametrize("gate", GATES)
def test_every_block_is_full_attention(gate, device):
    q, k, v = tensors(device=device)
    cu = offsets([60, 90]).to(device)
    full = libmoba.attention(q, k, v, cu, kind="full")
    some = libmoba.attention(q, k, v, cu, block_size=16, top_k=4, **GATES[gate])
    every = libmoba.attention(q, k, v, cu, block_size=16, top_k=6, **GATES[gate])
    torch.testing.assert_close(every, full, rtol=2e-5, atol=2e-5)
    assert not torch.allclose(some, full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", GATES)
def test_portable_chooses_as_the_cpu_does(gate, dtype, device):
    q, k, _ = tensors(700, dtype=dtype)
    cu_q, cu_k = offsets([200, 100]), offsets([400, 300])
    arguments = (cu_q, cu_k, 200, 400, 8, 6)
    expected = ops.select(q[:300], k, *arguments, **GATES[gate])
    there = [x.to(device) for x in (q[:300], k, cu_q, cu_k)]
    blocks = ops.portable_select(*there, *arguments[2:], **GATES[gate]).cpu()
    assert blocks.shape == expected.shape
    # Sums in another order decide a near tie otherwise, and a mean in bfloat16 may round otherwise.
    rounded = dtype == torch.bfloat16 and GATES[gate].get("representative_dtype") != "float32"
    assert (blocks != expected).any(-1).float().mean() < (2e-2 if rounded else 2e-3)


@pytest.mark.parametrize("variant", ["", "portable_"])
def test_what_is_not_a_number_is_chosen_by_force_only(variant, device):
    q, k, _ = tensors(100, device=device)
    k[24, 1, 3] = torch.nan  # block 3, for the query heads 2 and 3
    cu = offsets([100]).to(device)
    select = getattr(ops, f"{variant}select")
    for score in ("sum_logit", "sum_prob", "max"):
        last = select(q, k, cu, cu, 100, 100, 8, 12, share="layer", share_score=score)[99, 0]
        assert last.tolist() == [0, 1, 2, *range(4, 12)]
        forced = select(q, k, cu, cu, 100, 100, 8, 12, share="layer", share_score=score, sink_blocks=4)[99, 0]
        assert 3 in forced.tolist()
        minus = k.nan_to_num(-torch.inf)
        seen = select(q.abs(), minus, cu, cu, 100, 100, 8, 12, share="layer", share_score=score)[99, 0].tolist()
        assert (3 in seen) == (score != "sum_logit")


@pytest.mark.parametrize("gate", GATES)
def test_decode_is_prefill(gate, device):
    q, k, v = tensors(device=device)
    cu = offsets([150]).to(device)
    options = dict(GATES[gate])
    whole = libmoba.attention(q, k, v, cu, block_size=8, top_k=5, **options)
    means = options.pop("representative_dtype", "input")
    cache = libmoba.KvCache(150, kv_heads=2, head_dim=32, block_size=8, device=device, representative_dtype=means)
    begin = 0
    for count in (70, 1, 1, 9, 1, 60, 1, 7):
        rows = slice(begin, begin + count)
        cache.append(k[rows], v[rows])
        out, _ = cache.attend(q[rows], top_k=5, **options)
        torch.testing.assert_close(out, whole[rows], rtol=2e-5, atol=2e-5)
        begin += count
    assert begin == 150


def test_diagnosis_by_its_definition(device):
    q, k, v = tensors(90, device=device)
    cu = offsets([90]).to(device)
    options = dict(block_size=8, top_k=4, force_previous=True, share="group", share_score="max")
    found = libmoba.diagnose(q, k, cu, **options)
    assert torch.equal(found.blocks, libmoba.select(q, k, cu, **options))
    means = k[:88].unflatten(0, (11, 8)).mean(1).double()
    position = torch.arange(90, device=device)
    weights = torch.einsum("thd,shd->hts", q.double(), k.double().repeat_interleave(2, 1)) / 32**0.5
    weights = weights.masked_fill(position[None, None] > position[None, :, None], -torch.inf).softmax(-1)
    for row in (0, 5, 30, 89):
        for head in range(4):
            listed = [block for block in found.blocks[row, head // 2].tolist() if block >= 0]
            seen = torch.isin(position // 8, torch.tensor([*listed, row // 8], device=device))
            expected = weights[head, row][seen].sum().item()
            assert abs(found.mass[head, row].item() - expected) < 1e-5
            for slot, block in enumerate(listed):
                heads = q[row, head // 2 * 2 : head // 2 * 2 + 2].double()
                score = (heads @ means[block, head // 2]).max().item()
                assert abs(found.scores[row, head // 2, slot].item() - score) < 1e-4
            assert found.scores[row, head // 2, len(listed) :].isnan().all()
    assert torch.equal(libmoba.diagnose(q, k, cu, kind="full").mass, torch.ones(4, 90, device=device))
    window = libmoba.diagnose(q, k, cu, kind="window", window=20, sink=2)
    assert window.blocks is None and window.scores is None
    inside = weights[2, 80][61:81].sum() + weights[2, 80][:2].sum()
    assert abs(window.mass[2, 80].item() - inside.item()) < 1e-5


def test_bad_options_name_themselves(device):
    q, k, v = tensors(device=device)
    cu = offsets([150]).to(device)
    for options, message in (
        (dict(sink_blocks=3), "sink_blocks is 3"),
        (dict(sink_blocks=-1), "sink_blocks is -1"),
        (dict(top_k=1, force_previous=True), "force_previous True"),
        (dict(share="row"), "share is 'row'"),
        (dict(share_score="mean"), "share_score is 'mean'"),
        (dict(representative_dtype="bfloat16"), "representative_dtype is 'bfloat16'"),
    ):
        with pytest.raises(ValueError, match=message):
            libmoba.attention(q, k, v, cu, **{"block_size": 16, **options})
    with pytest.raises(ValueError, match="forced blocks"):
        libmoba.select(q, k, cu, block_size=16, top_k=2, sink_blocks=2)
    cache = libmoba.KvCache(150, kv_heads=2, head_dim=32, block_size=16, device=device)
    cache.append(k, v)
    with pytest.raises(ValueError, match="share is"):
        cache.attend(q[-1:], share="all")
