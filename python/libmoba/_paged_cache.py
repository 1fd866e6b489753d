"""Keys, values and block representatives of one attention layer and many sequences, in pages of a common pool."""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence, Union

import torch
from torch import Tensor

from ._ops import Kind, RepresentativeDType, Share, ShareScore, _check_cache_block_size, _number, _scale


class Reads(NamedTuple):
    """What one call read. A key/value head's keys are read once for all query heads that it serves."""

    blocks_read: int
    """Distinct blocks, summed over key/value heads and sequences; own blocks counted."""
    blocks_chosen: int
    """The sum over query rows and heads: what reading without sharing takes."""
    keys_read: int
    keys_chosen: int
    key_bytes: int
    representative_bytes: int

    @property
    def shared_ratio(self) -> float:
        """Distinct blocks read / (k * group): 1 keeps none of what sharing could save, 1 / group all of it."""
        return self.blocks_read / self.blocks_chosen if self.blocks_chosen else 1.0


class PagedKvCache:
    """Up to `sequences` sequences of up to `capacity` tokens each, in `pages` pages of `page_size` tokens.

    `page_size` divides `block_size`. Sequences take pages as they grow and give them back when they are cut; those with
    a common beginning share its pages, and a shared page is copied when one of them writes to it. Results equal those
    of a `KvCache` for each sequence, bit for bit. No gradients.

        cache = libmoba.PagedKvCache(pages=4096, page_size=64, sequences=16, capacity=65536,
                                     kv_heads=4, head_dim=64, block_size=512)
        cache.append(k, v, sequences=[0], counts=[1000])          # a prompt
        cache.fork(0, 1)                                          # sequence 1 begins as sequence 0 does
        cache.append(k, v, sequences=[0, 1])                      # one token each: k is (2, HK, D)
        out, lse = cache.attend(q, sequences=[0, 1], top_k=3)     # one row each: q is (2, H, D)
        cache.truncate(1, 900)                                    # forget tokens of a sequence from 900 on
        cache.truncate(0, 0)                                      # end a sequence

    `block_size=None` keeps no representatives: such a cache serves kinds "full" and "window" only.

    On a Hopper GPU: bfloat16 or float16, head dim 64 or 128, block size 16 and more, top_k up to 64, kind "moba" and,
    for one row of a sequence, "full". One row each of many sequences is a decode step of two launches, whose results
    are near those of a `KvCache`, and the same in every run. Nothing waits for the GPU. A step can be captured, since it
    reads lengths and page tables on the device; what takes pages stays outside:

        with torch.cuda.graph(graph):
            cache.write(k, v, sequences=batch)
            out, lse = cache.attend(q, sequences=batch, top_k=8)
        for each token: fill k, v, q in place; cache.grow(sequences=batch); graph.replay()

    ValueError for wrong arguments, torch.OutOfMemoryError where the pool has too few free pages; nothing is changed
    then.
    """

    def __init__(
        self,
        *,
        pages: int,
        page_size: int,
        sequences: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        value_dim: Optional[int] = None,
        block_size: Optional[int] = None,
        dtype: torch.dtype = torch.float32,
        device: Union[torch.device, str] = "cpu",
        representative_dtype: RepresentativeDType = "input",
    ) -> None:
        _check_cache_block_size(block_size)
        self._block_size = block_size
        self._representative_dtype = representative_dtype
        self._cache = torch.classes.moba.PagedKvCache(
            pages,
            page_size,
            sequences,
            capacity,
            kv_heads,
            head_dim,
            head_dim if value_dim is None else value_dim,
            block_size or 0,
            dtype,
            torch.device(device),
            representative_dtype,
        )

    def append(self, k: Tensor, v: Tensor, *, sequences: Sequence[int], counts: Optional[Sequence[int]] = None) -> None:
        """Adds tokens to several sequences: k (sum of counts, HK, D), v (sum of counts, HK, Dv), in their order.

        `counts` defaults to one token each.
        """
        self._cache.append(list(sequences), _counts(sequences, counts), k, v)

    def grow(self, *, sequences: Sequence[int], counts: Optional[Sequence[int]] = None) -> None:
        """The first half of `append`: takes pages for tokens whose keys and values come with `write`."""
        self._cache.grow(list(sequences), _counts(sequences, counts))

    def write(self, k: Tensor, v: Tensor, *, sequences: Sequence[int], counts: Optional[Sequence[int]] = None) -> None:
        """The second half of `append`: the tokens of the `grow` before, with the same sequences and counts.

        To be called once after each `grow`; `append` is both.
        """
        self._cache.write(list(sequences), _counts(sequences, counts), k, v)

    def attend(
        self,
        q: Tensor,
        *,
        sequences: Sequence[int],
        counts: Optional[Sequence[int]] = None,
        kind: Optional[Kind] = None,
        top_k: int = 3,
        window: Optional[int] = None,
        sink: int = 0,
        softmax_scale: Optional[float] = None,
        compat_topk1_full: bool = False,
        force_previous: bool = False,
        sink_blocks: int = 0,
        share: Share = "head",
        share_score: ShareScore = "sum_logit",
        return_reads: bool = False,
    ) -> Union[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Reads]]:
        """Attention of the last tokens of several sequences, whose keys were appended: q (sum of counts, H, D) -> out
        (sum of counts, H, Dv), lse (H, sum of counts), and what was read where `return_reads` asks for it (on the CPU).

        `counts` defaults to one row each, a decode step of a batch. `kind` defaults to "moba" for a cache with a block
        size, else "full". Options are as in `attention`; `representative_dtype` is that of the cache.
        """
        if kind is None:
            kind = "full" if self._block_size is None else "moba"
        last = _number("window", window, "the number of last keys a row sees") if kind == "window" else 0
        out, lse, reads = self._cache.attend(
            list(sequences),
            _counts(sequences, counts),
            q,
            kind,
            self._block_size or 1,
            top_k,
            last,
            sink,
            _scale(softmax_scale),
            compat_topk1_full,
            force_previous,
            sink_blocks,
            share,
            share_score,
            self._representative_dtype,
            return_reads,
        )
        return (out, lse, Reads(*reads)) if return_reads else (out, lse)

    def fork(self, source: int, target: int, length: Optional[int] = None) -> None:
        """Makes `target`, an empty sequence, begin with the first `length` tokens of `source` (default: all)."""
        self._cache.fork(source, target, self.length(source) if length is None else length)

    def truncate(self, sequence: int, length: int) -> None:
        """Forgets a sequence's tokens from `length` on."""
        self._cache.truncate(sequence, length)

    def length(self, sequence: int) -> int:
        """How many tokens a sequence holds."""
        return self._cache.length(sequence)

    @property
    def sequences(self) -> int:
        return self._cache.sequences()

    @property
    def capacity(self) -> int:
        """The most tokens of one sequence: whole pages."""
        return self._cache.capacity()

    @property
    def pages(self) -> int:
        return self._cache.pages()

    @property
    def free_pages(self) -> int:
        return self._cache.free_pages()


def _counts(sequences: Sequence[int], counts: Optional[Sequence[int]]) -> list[int]:
    return [1] * len(sequences) if counts is None else list(counts)
