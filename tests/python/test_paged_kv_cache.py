"""PagedKvCache: sequences that share pages say what each says alone."""

import pytest
import torch

import libmoba


def make(dtype=torch.float32, **changes):
    sizes = dict(pages=40, page_size=8, sequences=4, capacity=150, kv_heads=2, head_dim=32, block_size=16, dtype=dtype)
    return libmoba.PagedKvCache(**{**sizes, **changes})


def tokens(count, dtype=torch.float32):
    return tuple(torch.randn(count, heads, 32).to(dtype) for heads in (4, 2, 2))


def alone(q, k, v, rows, dtype=torch.float32, **options):
    cache = libmoba.KvCache(len(k), kv_heads=2, head_dim=32, block_size=16, dtype=dtype)
    cache.append(k, v)
    return cache.attend(q[-rows:], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [dict(top_k=3), dict(kind="full"), dict(kind="window", window=20, sink=3),
                                     dict(top_k=3, share="group"), dict(top_k=3, sink_blocks=1, share="layer")])
def test_a_batch_is_its_sequences(dtype, options):
    q, k, v = tokens(220, dtype)
    cache = make(dtype)
    cache.append(k[:131], v[:131], sequences=[2, 0], counts=[100, 31])
    cache.fork(2, 1, 90)
    cache.append(k[131:134], v[131:134], sequences=[1, 0, 2])
    held = {2: [*range(100), 133], 0: [*range(100, 131), 132], 1: [*range(90), 131]}
    assert [cache.length(s) for s in range(4)] == [32, 91, 101, 0]
    rows = {1: 1, 0: 7, 2: 1}
    out, lse = cache.attend(torch.cat([q[held[s]][-n:] for s, n in rows.items()]), sequences=list(rows),
                            counts=list(rows.values()), **options)
    first = 0
    for s, n in rows.items():
        expected, expected_lse = alone(q[held[s]], k[held[s]], v[held[s]], n, dtype, **options)
        assert torch.equal(out[first:first + n], expected)
        assert torch.equal(lse[:, first:first + n], expected_lse)
        first += n


def test_pages_are_shared_and_given_back():
    q, k, v = tokens(100)
    cache = make()
    cache.append(k[:80], v[:80], sequences=[0], counts=[80])
    assert (cache.pages, cache.free_pages, cache.sequences, cache.capacity) == (40, 30, 4, 152)
    for target in (1, 2, 3):
        cache.fork(0, target)
    assert cache.free_pages == 30
    cache.append(k[80:84], v[80:84], sequences=[0, 1, 2, 3])
    assert cache.free_pages == 26
    cache.truncate(0, 0)
    assert cache.free_pages == 27
    for sequence in (1, 2, 3):
        cache.truncate(sequence, 0)
    assert cache.free_pages == 40


def test_reads_are_counted():
    q, k, v = tokens(150)
    cache = make()
    cache.append(k, v, sequences=[3], counts=[150])
    out, lse, own = cache.attend(q[-1:], sequences=[3], top_k=3, return_reads=True)
    _, _, shared = cache.attend(q[-1:], sequences=[3], top_k=3, share="group", return_reads=True)
    assert own.blocks_chosen == shared.blocks_chosen == 4 * 3
    assert shared.blocks_read == 2 * 3 and shared.shared_ratio == 0.5
    assert 6 <= own.blocks_read <= 12
    assert own.key_bytes == own.keys_read * 2 * 32 * 4
    _, _, full = cache.attend(q[-1:], sequences=[3], kind="full", return_reads=True)
    assert full.keys_read == 2 * 150 and full.keys_chosen == 4 * 150


def test_errors():
    q, k, v = tokens(150)
    cache = make(pages=10)
    with pytest.raises(torch.OutOfMemoryError, match="10 free pages of 10; this call needs 19"):
        cache.append(k, v, sequences=[0], counts=[150])
    assert cache.length(0) == 0 and cache.free_pages == 10
    with pytest.raises(ValueError, match="sequence is 4"):
        cache.length(4)
    with pytest.raises(ValueError, match="length of counts"):
        cache.append(k[:3], v[:3], sequences=[0], counts=[1, 2])
    with pytest.raises(ValueError, match="sum of the counts"):
        cache.append(k[:3], v[:3], sequences=[0, 1])
    with pytest.raises(ValueError, match="multiple of the page size, 8"):
        make(block_size=12)
    with pytest.raises(ValueError, match="page_size is 0"):
        make(page_size=0)
    with pytest.raises(ValueError, match="pages is -1"):
        make(pages=-1)
    with pytest.raises((ValueError, RuntimeError), match="device is cuda"):
        make(device="cuda")
