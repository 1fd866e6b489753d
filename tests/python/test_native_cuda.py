"""What only the native kernels of a Hopper GPU promise; their numbers are tested on the case table (test_cases.py)."""

import re
import warnings

import pytest
import torch
from problems import offsets
from torch import Tensor

import libmoba


def is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


pytestmark = pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU")

LENGTHS = [1000, 0, 3096, 1]


class Step:
    """Choice, forward and backward by the operators, over tensors of its own."""

    def __init__(self, block_size: int = 128, top_k: int = 4) -> None:
        torch.manual_seed(0)
        total = sum(LENGTHS)

        def normal(heads: int) -> Tensor:
            return torch.randn(total, heads, 128, device="cuda", dtype=torch.bfloat16)

        self.q, self.k, self.v, self.dout = normal(8), normal(2), normal(2), normal(8)
        self.cu = offsets(LENGTHS).cuda()
        self.block_size, self.top_k = block_size, top_k

    def __call__(self) -> tuple[Tensor, ...]:
        batch = (self.cu, self.cu, max(LENGTHS), max(LENGTHS))
        blocks = torch.ops.moba.select(self.q, self.k, *batch, self.block_size, self.top_k, None)
        selection = ("list", self.block_size, 0, 0, blocks, 0.0)
        out, lse = torch.ops.moba.attend(self.q, self.k, self.v, *batch, *selection)
        gradients = torch.ops.moba.attend_backward(
            self.dout, None, self.q, self.k, self.v, out, lse, *batch, *selection
        )
        return blocks, out, lse, *gradients


def test_more_elements_than_32_bits_count_cuda() -> None:
    """A short sequence that lies wholly beyond element 2^31 of each tensor is the same as it is alone."""
    lengths, last, heads, dim = [1_048_576, 70_000, 999], 999, 16, 128
    total = sum(lengths)
    assert (total - last) * heads * dim > 2**31
    bytes_needed = 14 * total * heads * dim * 2
    if torch.cuda.get_device_properties(0).total_memory < bytes_needed:
        pytest.skip(f"needs a GPU with {bytes_needed >> 30} GiB of memory")
    torch.manual_seed(2)
    q, k, v, dout = (torch.randn(total, heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(4))

    def step(first: int, lengths: list[int]) -> list[Tensor]:
        leaves = [x[first:].detach().requires_grad_() for x in (q, k, v)]
        out = libmoba.attention(
            *leaves, offsets(lengths).cuda(), max_seqlen_q=max(lengths), kind="moba", block_size=128, top_k=3
        )
        return [out.detach(), *torch.autograd.grad(out, leaves, dout[first:])]

    for whole, alone in zip(step(0, lengths), step(total - last, [last])):
        # The sums over a block's rows may be cut at other places, where a block has many.
        torch.testing.assert_close(whole[-last:], alone, rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("block_size", [128, 100, 512])
def test_same_bits_every_time_and_in_a_graph_cuda(block_size: int) -> None:
    step = Step(block_size)
    first = step()
    for a, b in zip(step(), first):
        assert torch.equal(a, b)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.fill_(-7)
    graph.replay()
    for a, b in zip(captured, first):
        assert torch.equal(a, b)


def test_never_waits_for_the_device_cuda() -> None:
    step = Step()
    step()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_is_not_native_says_so_cuda(capfd: pytest.CaptureFixture[str]) -> None:
    q = torch.randn(64, 2, 80, device="cuda", dtype=torch.bfloat16)
    libmoba.attention(q, q, q, offsets([64]).cuda(), max_seqlen_q=64, kind="moba", block_size=16, top_k=2)
    # An operator's warning is torch's C++ one, on stderr.
    assert re.search("portable CUDA backend.*head_dim 80", capfd.readouterr().err)


@pytest.mark.parametrize("lengths", [[256], [256, 0, 100]])
def test_all_blocks_are_left_to_the_dense_kernel_cuda(lengths: list[int]) -> None:
    q, k, v = (torch.randn(sum(lengths), 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    cu = offsets(lengths).cuda()
    options = {"max_seqlen_q": max(lengths), "block_size": 64, "return_lse": True}
    full = libmoba.attention(q, k, v, cu, kind="full", **options)
    for a, b in zip(libmoba.attention(q, k, v, cu, top_k=4, **options), full):
        assert torch.equal(a, b)
    fewer, _ = libmoba.attention(q, k, v, cu, top_k=3, **options)
    assert not torch.equal(fewer, full[0])


def test_strided_and_unaligned_inputs_cuda() -> None:
    torch.manual_seed(1)
    fused = torch.randn(300, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
    shifted = torch.randn(300 * 4 * 64 + 1, device="cuda", dtype=torch.bfloat16)[1:].view(300, 4, 64)
    cu = offsets([300]).cuda()
    for q, k, v in ((fused[:, 0], fused[:, 1], fused[:, 2]), (shifted, fused[:, 1], fused[:, 2])):
        options = {"max_seqlen_q": 300, "kind": "moba", "block_size": 32, "top_k": 3}
        out = libmoba.attention(q, k, v, cu, **options)
        same = libmoba.attention(q.contiguous().clone(), k.contiguous(), v.contiguous(), cu, **options)
        assert torch.equal(out, same)


def paged_caches(dtype: torch.dtype, lengths: list[int]) -> tuple[libmoba.PagedKvCache, libmoba.PagedKvCache]:
    """The same tokens on the CPU and on the GPU, in pages that alternate."""
    torch.manual_seed(1)
    sizes = dict(page_size=16, sequences=len(lengths), capacity=1024, kv_heads=2, head_dim=128, block_size=64)
    cpu = libmoba.PagedKvCache(pages=64 * len(lengths), dtype=dtype, **sizes)
    gpu = libmoba.PagedKvCache(pages=64 * len(lengths), dtype=dtype, device="cuda", **sizes)
    left = list(lengths)
    while any(left):
        counts = [min(n, 100) for n in left]
        left = [n - c for n, c in zip(left, counts)]
        k, v = (torch.randn(sum(counts), 2, 128).to(dtype) for _ in range(2))
        cpu.append(k, v, sequences=range(len(lengths)), counts=counts)
        gpu.append(k.cuda(), v.cuda(), sequences=range(len(lengths)), counts=counts)
    return cpu, gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", ["head", "group", "layer"])
def test_decode_over_pages_cuda(dtype: torch.dtype, share: str) -> None:
    cpu, gpu = paged_caches(dtype, [1000, 1, 63, 64, 65, 500])
    gpu.truncate(1, 0)
    cpu.truncate(1, 0)
    cpu.fork(0, 1, 333)
    gpu.fork(0, 1, 333)
    q = torch.randn(6, 8, 128).to(dtype)
    sequences = [5, 1, 0, 2, 4, 3]
    for kind in ("moba", "full"):
        out, lse = gpu.attend(q.cuda(), sequences=sequences, kind=kind, top_k=4, share=share)
        expected, expected_lse = cpu.attend(q, sequences=sequences, kind=kind, top_k=4, share=share)
        torch.testing.assert_close(out.cpu(), expected, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(lse.cpu(), expected_lse, atol=1e-3, rtol=1e-3)
        again, _ = gpu.attend(q.cuda(), sequences=sequences, kind=kind, top_k=4, share=share)
        assert torch.equal(out, again)


def test_prompts_over_pages_cuda() -> None:
    cpu, gpu = paged_caches(torch.bfloat16, [700, 130])
    q = torch.randn(301, 8, 128).bfloat16()
    parts = dict(sequences=[1, 0], counts=[1, 300])
    out, lse = gpu.attend(q.cuda(), top_k=4, **parts)
    expected, expected_lse = cpu.attend(q, top_k=4, **parts)
    torch.testing.assert_close(out.cpu(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse.cpu(), expected_lse, atol=1e-3, rtol=1e-3)


def test_decode_step_in_a_graph_cuda() -> None:
    cpu, gpu = paged_caches(torch.bfloat16, [130, 62])
    k, v = (torch.zeros(2, 2, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.zeros(2, 8, 128, device="cuda", dtype=torch.bfloat16)
    gpu.attend(q, sequences=[0, 1], top_k=4)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu.write(k, v, sequences=[0, 1])
        out, _ = gpu.attend(q, sequences=[0, 1], top_k=4)
        with pytest.raises(Exception, match="grow"):
            gpu.grow(sequences=[0, 1])
    for _ in range(70):
        new = [torch.randn(2, heads, 128).bfloat16() for heads in (2, 2, 8)]
        for mine, theirs in zip((k, v, q), new):
            mine.copy_(theirs)
        gpu.grow(sequences=[0, 1])
        graph.replay()
        cpu.append(new[0], new[1], sequences=[0, 1])
    expected, _ = cpu.attend(new[2], sequences=[0, 1], top_k=4)
    torch.testing.assert_close(out.cpu(), expected, atol=2e-2, rtol=2e-2)
    assert gpu.length(0) == 200


def test_decode_never_waits_for_the_device_cuda() -> None:
    _, gpu = paged_caches(torch.bfloat16, [130, 62])
    k, v = (torch.randn(2, 2, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(2, 8, 128, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        gpu.append(k, v, sequences=[0, 1])
        gpu.attend(q, sequences=[0, 1], top_k=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "options", [{}, dict(share="group"), dict(share="layer"), dict(force_previous=True, sink_blocks=1)]
)
def test_a_cache_of_one_sequence_decodes_as_pages_do_cuda(options: dict[str, object]) -> None:
    torch.manual_seed(3)
    sizes = dict(kv_heads=2, head_dim=128, block_size=64, dtype=torch.bfloat16, device="cuda")
    one = libmoba.KvCache(200, **sizes)  # ends inside of a block
    pages = libmoba.PagedKvCache(pages=4, page_size=64, sequences=1, capacity=256, **sizes)
    q, k, v = (torch.randn(200, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2))

    def compare(lengths: list[int]) -> None:
        for begin, end in zip(lengths, lengths[1:]):
            one.append(k[begin:end], v[begin:end])
            pages.append(k[begin:end], v[begin:end], sequences=[0], counts=[end - begin])
            out, lse = one.attend(q[end - 1 : end], top_k=3, **options)
            expected, expected_lse = pages.attend(q[end - 1 : end], sequences=[0], top_k=3, **options)
            assert torch.equal(out, expected) and torch.equal(lse, expected_lse)

    compare([0, 1, 63, 64, 65, 128, 129, 199, 200])
    one.truncate(130)
    pages.truncate(0, 130)
    compare([130, 131, 192, 193, 200])


def test_a_cache_of_one_sequence_never_waits_for_the_device_cuda() -> None:
    cache = libmoba.KvCache(400, kv_heads=2, head_dim=128, block_size=64, dtype=torch.bfloat16, device="cuda")
    q, k, v = (torch.randn(330, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2))
    cache.append(k, v)
    cache.attend(q, top_k=3)
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        cache.append(k[:1], v[:1])
        cache.attend(q[:1], top_k=3)
        cache.attend(q[:20], top_k=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dtype=torch.float32), "float"),
        (dict(head_dim=96), "head_dim 96"),
        (dict(block_size=8, page_size=8), "block_size 8"),
        (dict(representative_dtype="float32"), "float32"),
    ],
)
def test_pages_on_the_gpu_name_what_they_lack_cuda(change: dict[str, object], message: str) -> None:
    sizes = dict(pages=4, page_size=16, sequences=1, capacity=64, kv_heads=1, head_dim=128, block_size=64)
    with pytest.raises(Exception, match=message):
        libmoba.PagedKvCache(**{**sizes, "dtype": torch.bfloat16, "device": "cuda", **change})
