"""The functions of the package: their meaning, their gradients, their errors."""

import pytest
import torch
from problems import check_within_twice, dense, gradients, make_problem, offsets, visible

import libmoba


def tensors(device, total=200, heads=4, kv_heads=2, dim=32, value_dim=32, dtype=torch.float32, total_k=None):
    total_k = total if total_k is None else total_k
    q = torch.randn(total, heads, dim, dtype=dtype)
    k = torch.randn(total_k, kv_heads, dim, dtype=dtype)
    v = torch.randn(total_k, kv_heads, value_dim, dtype=dtype)
    return q.to(device), k.to(device), v.to(device)


def tolerance(device, dtype=torch.float32):
    """float32 on CUDA sums in another order in each kernel, the 16-bit types round each part before the merge."""
    if dtype == torch.float32:
        return dict(rtol=2e-5, atol=2e-5)
    return dict(rtol=2e-2, atol=2e-2)


def test_all_blocks_is_full_attention(device):
    q, k, v = tensors(device)
    cu = offsets([90, 0, 110]).to(device)
    full = libmoba.attention(q, k, v, cu, None, 110, kind="full", return_lse=True)
    moba = libmoba.attention(q, k, v, cu, None, 110, block_size=16, top_k=7, return_lse=True)
    for a, b in zip(moba, full):
        torch.testing.assert_close(a, b, **tolerance(device))
    torch.testing.assert_close(libmoba.full_attn_varlen(q, k, v, cu, 110), full[0], rtol=0, atol=0)


def test_top_k_1_is_own_block_attention(device):
    q, k, v = tensors(device)
    cu = offsets([90, 110]).to(device)
    blocks = offsets([32, 32, 26, 32, 32, 32, 14]).to(device)
    own = libmoba.attention(q, k, v, cu, None, 110, block_size=32, top_k=1)
    torch.testing.assert_close(own, libmoba.full_attn_varlen(q, k, v, blocks, 32), **tolerance(device))
    compatible = libmoba.attention(q, k, v, cu, None, 110, block_size=32, top_k=1, compat_topk1_full=True)
    torch.testing.assert_close(compatible, libmoba.full_attn_varlen(q, k, v, cu, 110), rtol=0, atol=0)
    assert (own - compatible).abs().max() > 0.1


def test_the_peers_call(device):
    q, k, v = tensors(device, heads=4, kv_heads=4, dtype=torch.bfloat16)
    cu = offsets([90, 110]).to(device)
    peers = libmoba.moba_attn_varlen(q, k, v, cu, 110, 16, 3)
    ours = libmoba.attention(q, k, v, cu, cu, 110, 110, kind="moba", block_size=16, top_k=3)
    assert torch.equal(peers, ours)
    own_block = libmoba.attention(q, k, v, cu, block_size=16, top_k=1)
    assert torch.equal(libmoba.moba_attn_varlen(q, k, v, cu, 110, 16, 1), own_block)


def test_maxima_are_read_where_left_out(device):
    q, k, v = tensors(device, total=60, total_k=200)
    cu_q, cu_k = offsets([10, 50]).to(device), offsets([100, 100], torch.int64).to(device)
    given = libmoba.attention(q, k, v, cu_q, cu_k, 50, 100, block_size=16)
    assert torch.equal(libmoba.attention(q, k, v, cu_q, cu_k, block_size=16), given)


def test_chunked_prefill_is_one_shot(device):
    q, k, v = tensors(device)
    cu = offsets([200]).to(device)
    whole, whole_lse = libmoba.attention(q, k, v, cu, block_size=16, return_lse=True)
    for begin, end in [(0, 1), (1, 16), (16, 50), (50, 199), (199, 200)]:
        part, lse = libmoba.attention(
            q[begin:end], k[:end], v[:end], offsets([end - begin]).to(device), offsets([end]).to(device), block_size=16,
            return_lse=True,
        )  # fmt: skip
        torch.testing.assert_close(part, whole[begin:end], **tolerance(device))
        torch.testing.assert_close(lse, whole_lse[:, begin:end], **tolerance(device))


def test_packed_is_each_sequence_alone(device):
    q, k, v = tensors(device)
    lengths = [70, 1, 129]
    packed = libmoba.attention(q, k, v, offsets(lengths).to(device), block_size=16)
    begin = 0
    for length in lengths:
        rows = slice(begin, begin + length)
        alone = libmoba.attention(q[rows], k[rows], v[rows], offsets([length]).to(device), block_size=16)
        torch.testing.assert_close(packed[rows], alone, **tolerance(device))
        begin += length


@pytest.mark.parametrize("kind", ["moba", "window", "full"])
def test_slices_of_a_projection(kind, device):
    """q, k and v as strided views of one tensor, with an odd offset, forward and backward."""
    for shift in (0, 3):
        qkv = torch.randn(150, 8, 32 + shift).to(device)[..., shift:].requires_grad_()
        plain = qkv.detach().clone().contiguous().requires_grad_()
        cu = offsets([100, 50]).to(device)
        results = []
        for x in (qkv, plain):
            out = libmoba.attention(x[:, :4], x[:, 4:6], x[:, 6:], cu, kind=kind, block_size=16, window=20, sink=2)
            results.append((out, torch.autograd.grad(out.square().sum(), x)[0]))
        assert torch.equal(results[0][0], results[1][0])
        torch.testing.assert_close(results[0][1], results[1][1], **tolerance(device))
    q = torch.randn(32, 4, 150).to(device).permute(2, 1, 0)  # last axis not contiguous
    k = v = torch.randn(150, 2, 32).to(device)
    a = libmoba.attention(q, k, v, cu, kind=kind, block_size=16, window=20)
    assert torch.equal(a, libmoba.attention(q.contiguous(), k, v, cu, kind=kind, block_size=16, window=20))


def test_gradcheck_of_a_fixed_list():
    q, k, v = (x.requires_grad_() for x in tensors("cpu", 23, 2, 1, 8, 9, torch.float64))
    cu = offsets([9, 14])
    blocks = libmoba.select(q, k, cu, block_size=4, top_k=3)

    def run(q, k, v):
        out, lse = libmoba.attend(q, k, v, blocks, cu, block_size=4, softmax_scale=0.4, return_lse=True)
        return out, lse

    assert torch.autograd.gradcheck(run, (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: run(*x)[1], (q, k, v))


@pytest.mark.parametrize("kind", ["window", "full"])
def test_gradcheck_of_kinds_without_a_choice(kind):
    q, k, v = (x.requires_grad_() for x in tensors("cpu", 13, 2, 1, 8, 8, torch.float64))
    assert torch.autograd.gradcheck(
        lambda *x: libmoba.attention(*x, offsets([5, 8]), kind=kind, window=3, sink=2, return_lse=True), (q, k, v)
    )


def test_gradient_through_lse_alone(device):
    p = make_problem("packed", torch.float32)
    p.dout.zero_()
    blocks = libmoba.select(p.q, p.k, p.cu_q, p.cu_k, block_size=64)
    mask = visible(p, blocks)

    def run(q, k, v):
        out, lse = libmoba.attend(
            q, k, v, blocks.to(device), p.cu_q.to(device), p.cu_k.to(device), block_size=64, return_lse=True
        )
        return torch.zeros_like(out) + 0 * v.sum(), lse

    check_within_twice(
        gradients(run, p, torch.float32, device) | {"out": torch.zeros(p.q.shape, dtype=torch.float64)},
        dense(p, mask, torch.float32, device),
        dense(p, mask, torch.float64, "cpu") | {"out": torch.zeros(p.q.shape, dtype=torch.float64)},
        torch.float32,
    )


def test_no_second_derivative():
    q, k, v = (x.requires_grad_() for x in tensors("cpu", 20))
    out = libmoba.attention(q, k, v, offsets([20]), block_size=4)
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        dq.sum().backward()


@pytest.mark.parametrize("kind", ["moba", "full"])
def test_nan_in_v_spoils_only_the_rows_that_see_it(kind, device):
    q, k, v = tensors(device)
    cu = offsets([200]).to(device)
    v[37] = torch.nan
    out = libmoba.attention(q, k, v, cu, kind=kind, block_size=16, top_k=3)
    spoilt = out.isnan().any(-1)
    assert not spoilt[:37].any() and spoilt[37:48].all()
    if kind == "moba":
        blocks = libmoba.select(q, k, cu, block_size=16, top_k=3)
        expected = (blocks == 2).any(-1)
        expected[37:48] = True
        assert torch.equal(spoilt, expected)


def test_nan_score_is_never_chosen(device):
    q, k, _ = tensors(device)
    k[20] = torch.nan  # block 1 of 16 tokens
    blocks = libmoba.select(q, k, offsets([200]).to(device), block_size=16, top_k=4)
    assert not (blocks == 1).any()
    assert (blocks[100:] >= 0).all()


def test_more_blocks_than_a_launch_takes(device):
    """Own blocks of one token: the result is v itself, in more segments than an axis of a launch grid holds."""
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (x.requires_grad_() for x in tensors(device, 70000, 1, 1, 8, 8, dtype))
        out, lse = libmoba.attention(q, k, v, offsets([70000]).to(device), block_size=1, top_k=1, return_lse=True)
        torch.testing.assert_close(out, v, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse[0], (q.float() * k.float()).sum(-1)[:, 0] * 8**-0.5, rtol=1e-5, atol=1e-5)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), v.detach())
        torch.testing.assert_close(dv, v, rtol=1e-5, atol=1e-5)
        # No gradient but for the rounding of lse, of a probability of 1.
        assert dq.abs().max() < 1e-3 and dk.abs().max() < 1e-3


def test_rows_of_no_sequence(device):
    q, k, v = (x.requires_grad_() for x in tensors(device, 50))
    out, lse = libmoba.attention(q, k, v, offsets([10, 20]).to(device), block_size=4, return_lse=True)
    assert (out[30:] == 0).all() and (lse[:, 30:] == -torch.inf).all()
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert (gradient[30:] == 0).all() and gradient.isfinite().all()


def test_empty_inputs(device):
    q, k, v = tensors(device, 0)
    for cu in (offsets([]), offsets([0, 0])):
        out, lse = libmoba.attention(q, k, v, cu.to(device), return_lse=True)
        assert out.shape == (0, 4, 32) and lse.shape == (4, 0)


def test_offsets_out_of_range_are_clamped_or_reported(device):
    q, k, v = tensors(device, 40)
    for cu in ([0, 50], [0, 30, 20, 40], [-3, 40]):
        offset_tensor = torch.tensor(cu, dtype=torch.int32, device=device)
        out = libmoba.attention(q, k, v, offset_tensor, None, 40, block_size=8)
        assert out.shape == q.shape
        with pytest.raises(ValueError, match="cu_seqlens_q"):
            libmoba.attention(q, k, v, offset_tensor, None, 40, block_size=8, check_values=True)
    with pytest.raises(ValueError, match="max_seqlen_q"):
        libmoba.attention(q, k, v, offsets([40]).to(device), None, 39, block_size=8, check_values=True)
    libmoba.attention(q, k, v, offsets([40]).to(device), None, 40, block_size=8, check_values=True)


def test_bad_lists_are_reported(device):
    q, k, v = tensors(device, 40)
    cu = offsets([40]).to(device)
    blocks = libmoba.select(q, k, cu, block_size=8)
    libmoba.attend(q, k, v, blocks, cu, block_size=8, check_values=True)
    for bad in (blocks + 5, blocks.flip(-1), torch.full_like(blocks, -2)):
        with pytest.raises(ValueError, match="blocks"):
            libmoba.attend(q, k, v, bad, cu, block_size=8, check_values=True)


BAD = {
    "q is of shape": lambda q, k, v, cu: libmoba.attention(q[0], k, v, cu, None, 50),
    "k is of shape": lambda q, k, v, cu: libmoba.attention(q, k[0], v, cu, None, 50),
    "v is of shape": lambda q, k, v, cu: libmoba.attention(q, k, v[:-1], cu, None, 50),
    "q is of dtype": lambda q, k, v, cu: libmoba.attention(q.int(), k, v, cu, None, 50),
    "k is of dtype": lambda q, k, v, cu: libmoba.attention(q, k.half(), v, cu, None, 50),
    "v is of dtype": lambda q, k, v, cu: libmoba.attention(q, k, v.half(), cu, None, 50),
    "last axis of k": lambda q, k, v, cu: libmoba.attention(q, k[..., :16], v, cu, None, 50),
    "last axis of q": lambda q, k, v, cu: libmoba.attention(q[..., :4], k[..., :4], v, cu, None, 50),
    "last axis of v": lambda q, k, v, cu: libmoba.attention(q, k, v[..., :4], cu, None, 50),
    "number of heads of k": lambda q, k, v, cu: libmoba.attention(q[:, :3], k, v, cu, None, 50),
    "cu_seqlens_q is of dtype": lambda q, k, v, cu: libmoba.attention(q, k, v, cu.float(), None, 50),
    "cu_seqlens_q is of shape": lambda q, k, v, cu: libmoba.attention(q, k, v, cu[None], None, 50),
    "cu_seqlens_k is of shape": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, cu[:-1], 50, 50),
    "max_seqlen_q is 0": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, cu, 0, 50),
    "max_seqlen_k is -1": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, cu, 50, -1, kind="full"),
    "block_size is 0": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, block_size=0),
    "top_k is 0": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, top_k=0),
    "kind is 'mobs'": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, kind="mobs"),
    "window is None": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, kind="window"),
    "window is 0": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, kind="window", window=0),
    "sink is -1": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, kind="window", window=3, sink=-1),
    "softmax_scale is -1": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, softmax_scale=-1.0),
    "softmax_scale is inf": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, softmax_scale=float("inf")),
    "softmax_scale is nan": lambda q, k, v, cu: libmoba.attention(q, k, v, cu, softmax_scale=float("nan")),
    "blocks is of dtype": lambda q, k, v, cu: libmoba.attend(
        q, k, v, libmoba.select(q, k, cu, block_size=8).long(), cu, block_size=8
    ),
    "blocks is of shape": lambda q, k, v, cu: libmoba.attend(
        q, k, v, libmoba.select(q, k, cu, block_size=8)[1:], cu, block_size=8
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_errors_name_the_argument(message, device):
    q, k, v = tensors(device, 50)
    with pytest.raises(ValueError, match=message):
        BAD[message](q, k, v, offsets([20, 30]).to(device))


def test_devices_must_agree(device):
    if device == "cpu":
        pytest.skip("needs a second device")
    q, k, v = tensors(device, 50)
    cu = offsets([50])
    with pytest.raises(ValueError, match="k is on cpu"):
        libmoba.attention(q, k.cpu(), v, cu.to(device), None, 50)
    with pytest.raises(ValueError, match="cu_seqlens_q is on cpu"):
        libmoba.attention(q, k, v, cu, None, 50)
    with pytest.raises(ValueError, match="float64 runs on the CPU"):
        libmoba.attention(q.double(), k.double(), v.double(), cu.to(device), None, 50)


def test_float64_is_refused_by_the_portable_backend():
    q, k, v = tensors("cpu", 20, dtype=torch.float64)
    cu = offsets([20])
    with pytest.raises(ValueError, match="float64"):
        torch.ops.moba.portable_attend(q, k, v, cu, cu, 20, 20, "all", 1, 0, 0, None, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype):
    q, k, v = (x.requires_grad_() for x in tensors("cpu", 700, 4, 2, 64, 64, dtype))
    cu = offsets([300, 400])
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out, lse = libmoba.attention(q, k, v, cu, block_size=32, top_k=4, return_lse=True)
        results.append([out, lse, *torch.autograd.grad(out.sum() + lse.sum(), (q, k, v))])
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_self_check(device):
    q, k, v = tensors(device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        report = libmoba.self_check(
            q.to(dtype), k.to(dtype), v.to(dtype), offsets([120, 80]).to(device), block_size=16, softmax_scale=0.2
        )
        assert report.passed and 0 < report.out_error <= report.tolerance
    with pytest.raises(ValueError, match="block_size"):
        libmoba.self_check(q, k, v, offsets([200]).to(device), block_size=0)
