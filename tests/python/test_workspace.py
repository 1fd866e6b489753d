"""The limit of scratch memory: what it changes and what it must not change."""

import pytest
import torch
from problems import offsets

import libmoba


@pytest.fixture
def limit():
    before = libmoba.workspace_limit()
    yield before
    libmoba.set_workspace_limit(before)


def test_results_do_not_depend_on_it(limit: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2048, 2, 64, dtype=torch.bfloat16) for _ in range(3))

    def attention() -> torch.Tensor:
        return libmoba.attention(q, k, v, offsets([2048]), max_seqlen_q=2048, kind="moba", block_size=64, top_k=4)

    assert limit == 1536 << 20
    wide = attention()
    libmoba.set_workspace_limit(8 << 20)
    assert libmoba.workspace_limit() == 8 << 20
    assert torch.equal(attention(), wide)


def test_too_small_a_limit_is_named(limit: int) -> None:
    q = torch.randn(4096, 2, 64, dtype=torch.bfloat16)
    libmoba.set_workspace_limit(1000)
    with pytest.raises(torch.OutOfMemoryError, match="workspace_limit is 1000"):
        libmoba.attention(q, q, q, offsets([4096]), max_seqlen_q=4096, kind="moba", block_size=64, top_k=4)


@pytest.mark.parametrize("bytes_", [0, -5])
def test_a_limit_must_be_positive(limit: int, bytes_: int) -> None:
    with pytest.raises(ValueError, match=f"workspace_limit is {bytes_} bytes; it must be positive"):
        libmoba.set_workspace_limit(bytes_)
    assert libmoba.workspace_limit() == limit
