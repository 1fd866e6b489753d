"""Keys, values and block representatives of one attention layer and one sequence, for decoding."""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from ._ops import Kind, RepresentativeDType, Share, ShareScore, _check_cache_block_size, _number, _scale


class KvCache:
    """Room for `capacity` tokens. Representatives of closed blocks are kept, so that a step costs top_k blocks.

    Results equal those of a one-shot `attention` over the whole sequence, however its tokens arrived. No gradients.

        cache = libmoba.KvCache(32768, kv_heads=4, head_dim=64, block_size=512)
        cache.append(k, v)                      # (n, HK, D), (n, HK, Dv); any n
        out = cache.attend(q, top_k=3)          # the last n = q.size(0) tokens held: (n, H, Dv)
        cache.truncate(1000)                    # forget the tokens from 1000 on

    `block_size=None` keeps no representatives: such a cache serves kinds "full" and "window" only.

    On a Hopper GPU, in bfloat16 or float16 with head dim 64 or 128, block size 16 and more and at most `capacity`, the
    native kernels attend kind "moba": one row in a launch or two. Elsewhere on a GPU a step is many small launches (0.7
    ms on an H200). `PagedKvCache` takes many sequences in one step.
    """

    def __init__(
        self,
        capacity: int,
        *,
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
        self._cache = torch.classes.moba.KvCache(
            capacity,
            kv_heads,
            head_dim,
            head_dim if value_dim is None else value_dim,
            block_size or 0,
            dtype,
            torch.device(device),
            representative_dtype,
        )

    def append(self, k: Tensor, v: Tensor) -> None:
        """Adds tokens. ValueError when the capacity is exceeded; nothing is written then."""
        self._cache.append(k, v)

    def attend(
        self,
        q: Tensor,
        *,
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
    ) -> tuple[Tensor, Tensor]:
        """Attention of the last n tokens held, whose keys were appended: q (n, H, D) -> out (n, H, Dv), lse (H, n).

        `kind` defaults to "moba" for a cache with a block size, else "full". Options are as in `attention`;
        `representative_dtype` is that of the cache.
        """
        if kind is None:
            kind = "full" if self._block_size is None else "moba"
        last = _number("window", window, "the number of last keys a row sees") if kind == "window" else 0
        return self._cache.attend(
            q, kind, self._block_size or 1, top_k, last, sink, _scale(softmax_scale), compat_topk1_full,
            force_previous, sink_blocks, share, share_score, self._representative_dtype,
        )

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on."""
        self._cache.truncate(length)

    def __len__(self) -> int:
        return self._cache.length()

    @property
    def capacity(self) -> int:
        return self._cache.capacity()
