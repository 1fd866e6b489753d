"""KvCache: whatever way the tokens come, the results are those of one call over the whole sequence."""

import pytest
import torch
from problems import offsets

import libmoba


def close(device, dtype):
    return dict(rtol=2e-5, atol=2e-5) if dtype == torch.float32 else dict(rtol=2e-2, atol=2e-2)


# On a Hopper GPU the last of these has native kernels.
@pytest.mark.parametrize("dtype,dim", [(torch.float32, 32), (torch.bfloat16, 32), (torch.bfloat16, 64)])
@pytest.mark.parametrize(
    "chunks", [[150], [1] * 150, [7] * 21 + [3], [16, 16, 100, 18], [64, 1, 1, 64, 20], [0, 150, 0]]
)
def test_any_chunking_is_one_shot(chunks, dtype, dim, device):
    q, k, v = (torch.randn(150, h, dim).to(device, dtype) for h in (4, 2, 2))
    cu = offsets([150]).to(device)
    whole, whole_lse = libmoba.attention(q, k, v, cu, block_size=16, top_k=3, return_lse=True)
    cache = libmoba.KvCache(200, kv_heads=2, head_dim=dim, block_size=16, dtype=dtype, device=device)
    begin = 0
    for count in chunks:
        rows = slice(begin, begin + count)
        cache.append(k[rows], v[rows])
        out, lse = cache.attend(q[rows], top_k=3)
        torch.testing.assert_close(out, whole[rows], **close(device, dtype))
        torch.testing.assert_close(lse, whole_lse[:, rows], **close(device, dtype))
        begin += count
    assert len(cache) == 150 and cache.capacity == 200


@pytest.mark.parametrize("rows", [20, 1])
@pytest.mark.parametrize("dtype,dim", [(torch.float32, 32), (torch.bfloat16, 64)])
def test_truncate_forgets(rows, dtype, dim, device):
    q, k, v = (torch.randn(100, h, dim).to(device, dtype) for h in (4, 2, 2))
    cache = libmoba.KvCache(100, kv_heads=2, head_dim=dim, block_size=16, dtype=dtype, device=device)
    cache.append(k, v)
    expected, _ = cache.attend(q[-rows:], top_k=3)
    for length in (99, 81, 80, 79, 64, 0):
        cache.truncate(length)
        cache.append(torch.randn_like(k[length:]), torch.randn_like(v[length:]))
        cache.truncate(length)
        cache.append(k[length:], v[length:])
        again, _ = cache.attend(q[-rows:], top_k=3)
        assert torch.equal(again, expected)


def test_other_kinds_over_the_same_cache(device):
    q, k, v = (torch.randn(90, h, 32).to(device) for h in (4, 2, 2))
    cu = offsets([90]).to(device)
    cache = libmoba.KvCache(90, kv_heads=2, head_dim=32, block_size=16, device=device)
    plain = libmoba.KvCache(90, kv_heads=2, head_dim=32, device=device)
    for some in (cache, plain):
        some.append(k, v)
        for options in (dict(kind="full"), dict(kind="window", window=20, sink=3)):
            out, _ = some.attend(q[-5:], **options)
            torch.testing.assert_close(out, libmoba.attention(q, k, v, cu, **options)[-5:], **close(device, q.dtype))
    with pytest.raises(ValueError, match="block_size"):
        plain.attend(q[-5:], kind="moba")


def test_errors(device):
    k = torch.randn(10, 2, 32).to(device)
    cache = libmoba.KvCache(16, kv_heads=2, head_dim=32, block_size=4, device=device)
    cache.append(k, k)
    with pytest.raises(ValueError, match="room left in the cache, 6"):
        cache.append(k, k)
    assert len(cache) == 10
    with pytest.raises(ValueError, match="rows of q is 11"):
        cache.attend(torch.randn(11, 4, 32).to(device))
    with pytest.raises(ValueError, match="length is 11"):
        cache.truncate(11)
    with pytest.raises(ValueError, match="k is of dtype"):
        cache.append(k.half(), k.half())
    with pytest.raises(ValueError, match="block_size is -1"):
        libmoba.KvCache(16, kv_heads=2, head_dim=32, block_size=-1)
    with pytest.raises(ValueError, match="capacity is -5"):
        libmoba.KvCache(-5, kv_heads=2, head_dim=32)
