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
