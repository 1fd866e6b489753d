"""The operators as torch's tracers see them."""

import shutil

import pytest
import torch
from problems import offsets

import libmoba

ops = torch.ops.moba


def arguments(dtype=torch.float32, device="cpu", requires_grad=True):
    q, k, v = (torch.randn(60, h, 16).to(device, dtype).requires_grad_(requires_grad) for h in (4, 2, 2))
    cu = offsets([25, 35]).to(device)
    return q, k, v, cu, cu, 35, 35


def selections(q, k, cu):
    blocks = libmoba.select(q, k, cu, None, 35, block_size=8, top_k=3)
    return {"list": (8, 0, 0, blocks), "span": (1, 9, 2, None), "all": (1, 0, 0, None)}


@pytest.mark.parametrize("kind", ["list", "span", "all"])
@pytest.mark.parametrize("prefix", ["", "portable_"])
def test_opcheck_attend(prefix, kind, device):
    inputs = arguments(device=device)
    selection = selections(inputs[0], inputs[1], inputs[3])[kind]
    torch.library.opcheck(getattr(ops, prefix + "attend"), (*inputs, kind, *selection, 0.3))


@pytest.mark.parametrize("prefix", ["", "portable_"])
def test_opcheck_attend_backward(prefix, device):
    inputs = arguments(device=device, requires_grad=False)
    selection = selections(inputs[0], inputs[1], inputs[3])["list"]
    out, lse = ops.attend(*inputs, "list", *selection, 0.3)
    for dlse in (None, torch.randn_like(lse)):
        torch.library.opcheck(
            getattr(ops, prefix + "attend_backward"),
            (torch.randn_like(out), dlse, *inputs[:3], out, lse, *inputs[3:], "list", *selection, 0.3),
        )


@pytest.mark.parametrize("prefix", ["", "portable_"])
def test_opcheck_select(prefix, device):
    q, k, _, *batch = arguments(device=device, requires_grad=False)
    torch.library.opcheck(getattr(ops, prefix + "select"), (q, k, *batch, 8, 3))


@pytest.mark.parametrize("share", ["head", "group", "layer"])
@pytest.mark.parametrize("prefix", ["", "portable_"])
def test_opcheck_select_with_every_option(prefix, share, device):
    q, k, _, *batch = arguments(device=device, requires_grad=False)
    torch.library.opcheck(
        getattr(ops, prefix + "select"),
        (q, k, *batch, 8, 5, None, True, 1, share, "sum_prob", "float32", 0.3),
    )


@pytest.mark.parametrize("kind", ["moba", "window", "full"])
def test_opcheck_diagnose(kind, device):
    q, k, _, *batch = arguments(device=device, requires_grad=False)
    torch.library.opcheck(
        ops.diagnose,
        (q, k, *batch, kind, 8, 4, True, 1, "group", "max", "input", 9, 2, 0.0, False),
        test_utils=("test_schema", "test_autograd_registration"),
    )


def test_opcheck_self_check(device):
    torch.library.opcheck(
        ops.self_check,
        (*arguments(device=device, requires_grad=False), 8, 0.0, 0),
        test_utils=("test_schema", "test_autograd_registration"),
    )


def run_compiled(backend: str, device: str) -> None:
    """One graph for all lengths, equal to the eager call, forward and backward."""

    def layer(x, weight, cu, longest):
        q, k, v = (x @ weight).view(x.size(0), 8, 16).split([4, 2, 2], 1)
        out, lse = libmoba.attention(
            q, k, v, cu, None, longest, block_size=8, top_k=4, return_lse=True, force_previous=True, share="group",
            share_score="sum_prob",
        )
        return out.flatten(1).sum(1) + lse.sum(0)

    # In float64 no near-tie of the choice can fall otherwise because a compiler reordered a sum before it.
    dtype, close = (torch.float64, 1e-9) if device == "cpu" else (torch.float32, 1e-3)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    weight = (torch.randn(32, 128) / 6).to(device, dtype).requires_grad_()
    for number, lengths in enumerate(([30, 50], [41, 60, 77], [100])):
        x = torch.randn(sum(lengths), 32).to(device, dtype).requires_grad_()
        cu = offsets(lengths).to(device)
        results = []
        for function in (layer, compiled):
            out = function(x, weight, cu, max(lengths))
            results.append((out, *torch.autograd.grad(out.square().sum(), (x, weight))))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=close, atol=close)
        if number == 0:
            torch._dynamo.config.error_on_recompile = True
    torch._dynamo.config.error_on_recompile = False


def test_compile_aot_eager(device):
    run_compiled("aot_eager", device)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compile_inductor(device):
    run_compiled("inductor", device)
