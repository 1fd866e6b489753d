"""The functions of the package: they check, choose and call `torch.ops.moba.*`, where the work is done."""

from __future__ import annotations

import dataclasses
from typing import Literal, Optional, Union, overload

import torch
from torch import Tensor

Kind = Literal["moba", "window", "full"]
Share = Literal["head", "group", "layer"]
ShareScore = Literal["sum_logit", "sum_prob", "max"]
RepresentativeDType = Literal["input", "float32"]


def _batch(
    cu_seqlens_q: Tensor, cu_seqlens_k: Optional[Tensor], max_seqlen_q: Optional[int], max_seqlen_k: Optional[int]
) -> tuple[Tensor, Tensor, int, int]:
    """Fills in what was left out. A missing maximum is read from cu_seqlens, which waits for the device."""

    def longest(cu_seqlens: Tensor) -> int:
        return int(cu_seqlens.diff().max()) if cu_seqlens.numel() > 1 else 0

    if max_seqlen_q is None:
        max_seqlen_q = longest(cu_seqlens_q)
    if cu_seqlens_k is None:
        return cu_seqlens_q, cu_seqlens_q, max_seqlen_q, max_seqlen_q if max_seqlen_k is None else max_seqlen_k
    return cu_seqlens_q, cu_seqlens_k, max_seqlen_q, longest(cu_seqlens_k) if max_seqlen_k is None else max_seqlen_k


def _check_values(name: str, cu_seqlens: Tensor, maximum: int, total: int) -> None:
    offsets = cu_seqlens.tolist()
    for i, offset in enumerate(offsets):
        before = offsets[i - 1] if i else 0
        if not before <= offset <= total:
            raise ValueError(
                f"cu_seqlens_{name}[{i}] is {offset}; it must be between its predecessor, {before}, and the number of "
                f"tokens, {total}. Offsets begin at 0 and do not fall."
            )
        if i and offset - before > maximum:
            raise ValueError(
                f"the length of sequence {i - 1} is {offset - before}; it must be at most max_seqlen_{name}, "
                f"{maximum}. "
                "Raise the maximum."
            )


def _check_list(blocks: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, block_size: int) -> None:
    """Each list strictly ascending, then -1; every block before the row's own."""
    starts_q, lengths_q = cu_seqlens_q[:-1].long(), cu_seqlens_q.diff().long()
    position = torch.arange(blocks.size(0), device=blocks.device)
    sequence = (torch.searchsorted(starts_q, position, right=True) - 1).clamp_min(0)
    position = position - starts_q[sequence] + (cu_seqlens_k.diff().long() - lengths_q)[sequence]
    own = torch.div(position, block_size, rounding_mode="floor").clamp_min(0)[:, None, None]
    before, after = blocks[..., :-1], blocks[..., 1:]
    unordered = ((after != -1) & (after <= before)) | ((after != -1) & (before == -1))
    if bool((blocks < -1).any()) or bool((blocks >= own).logical_and(blocks != -1).any()) or bool(unordered.any()):
        raise ValueError(
            "blocks holds an entry that is not allowed; each list must be strictly ascending, then padded with -1, and "
            "name only blocks before the row's own. Make it with libmoba.select."
        )


def _number(name: str, value: Optional[int], rule: str) -> int:
    if value is None:
        raise ValueError(f"{name} is None; it must be {rule}. Pass it.")
    return value


def select(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    *,
    block_size: int = 512,
    top_k: int = 3,
    representatives: Optional[Tensor] = None,
    force_previous: bool = False,
    sink_blocks: int = 0,
    share: Share = "head",
    share_score: ShareScore = "sum_logit",
    representative_dtype: RepresentativeDType = "input",
    softmax_scale: Optional[float] = None,
) -> Tensor:
    """The past blocks that each query row attends: int32 (Tq, H, top_k - 1), ascending, -1 padded; HK or 1 in the place
    of H where the heads `share` their choice.

    The score of a block is q · mean(k), unscaled, in float32; ties go to the lower index; a row's own block is implied
    and never listed. Blocks are counted from the start of each sequence. No gradient flows through the choice.
    `representatives` are block means to use instead of pooling k: (block rows, HK, D), in the dtype of k or float32.
    The other options are as in `attention`; `softmax_scale` is for share_score="sum_prob".
    """
    cu_q, cu_k, max_q, max_k = _batch(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return torch.ops.moba.select(
        q.detach(), k.detach(), cu_q, cu_k, max_q, max_k, block_size, top_k, representatives, force_previous,
        sink_blocks, share, share_score, representative_dtype, _scale(softmax_scale),
    )


@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Optional[Tensor] = ...,
    max_seqlen_q: Optional[int] = ..., max_seqlen_k: Optional[int] = ..., *, block_size: int,
    softmax_scale: Optional[float] = ..., return_lse: Literal[False] = ..., check_values: bool = ...,
) -> Tensor: ...
@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Optional[Tensor] = ...,
    max_seqlen_q: Optional[int] = ..., max_seqlen_k: Optional[int] = ..., *, block_size: int,
    softmax_scale: Optional[float] = ..., return_lse: Literal[True], check_values: bool = ...,
) -> tuple[Tensor, Tensor]: ...
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    *,
    block_size: int,
    softmax_scale: Optional[float] = None,
    return_lse: bool = False,
    check_values: bool = False,
) -> Union[Tensor, tuple[Tensor, Tensor]]:
    """Attention over each row's own block and the past blocks of a list that `select`, or the caller, made.

    `blocks` is int32 (Tq, H or HK or 1, budget). The rest is as in `attention`.
    """
    cu_q, cu_k, max_q, max_k = _batch(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if check_values:
        _check_values("q", cu_q, max_q, q.size(0))
        _check_values("k", cu_k, max_k, k.size(0))
        _check_list(blocks, cu_q, cu_k, block_size)
    out, lse = torch.ops.moba.attend(
        q, k, v, cu_q, cu_k, max_q, max_k, "list", block_size, 0, 0, blocks, _scale(softmax_scale)
    )
    return (out, lse) if return_lse else out


def _check_cache_block_size(block_size: Optional[int]) -> None:
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1, or None to keep no representatives.")


def _scale(softmax_scale: Optional[float]) -> float:
    """The operators take 0 for the default."""
    if softmax_scale is None:
        return 0.0
    if not softmax_scale > 0:
        raise ValueError(
            f"softmax_scale is {softmax_scale}; it must be positive and finite, or None for 1/sqrt(head_dim). "
            "Flip the sign of q for a negative scale."
        )
    return softmax_scale


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Optional[Tensor] = ...,
    max_seqlen_q: Optional[int] = ..., max_seqlen_k: Optional[int] = ..., *, kind: Kind = ..., block_size: int = ...,
    top_k: int = ..., window: Optional[int] = ..., sink: int = ..., softmax_scale: Optional[float] = ...,
    return_lse: Literal[False] = ..., compat_topk1_full: bool = ..., check_values: bool = ...,
    force_previous: bool = ..., sink_blocks: int = ..., share: Share = ..., share_score: ShareScore = ...,
    representative_dtype: RepresentativeDType = ...,
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Optional[Tensor] = ...,
    max_seqlen_q: Optional[int] = ..., max_seqlen_k: Optional[int] = ..., *, kind: Kind = ..., block_size: int = ...,
    top_k: int = ..., window: Optional[int] = ..., sink: int = ..., softmax_scale: Optional[float] = ...,
    return_lse: Literal[True], compat_topk1_full: bool = ..., check_values: bool = ...,
    force_previous: bool = ..., sink_blocks: int = ..., share: Share = ..., share_score: ShareScore = ...,
    representative_dtype: RepresentativeDType = ...,
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    *,
    kind: Kind = "moba",
    block_size: int = 512,
    top_k: int = 3,
    window: Optional[int] = None,
    sink: int = 0,
    softmax_scale: Optional[float] = None,
    return_lse: bool = False,
    compat_topk1_full: bool = False,
    check_values: bool = False,
    force_previous: bool = False,
    sink_blocks: int = 0,
    share: Share = "head",
    share_score: ShareScore = "sum_logit",
    representative_dtype: RepresentativeDType = "input",
) -> Union[Tensor, tuple[Tensor, Tensor]]:
    """Causal attention of packed sequences: q (Tq, H, D), k (Tk, HK, D), v (Tk, HK, Dv) -> out (Tq, H, Dv).

    H is a multiple of HK; query head h reads key head h * HK // H. D and Dv are 8 to 256. float32, bfloat16 and float16
    on CPU and CUDA, float64 on the CPU. Gradients flow to q, k and v through out and lse, none through the choice of
    blocks. Works under torch.compile.

    cu_seqlens_q, cu_seqlens_k: int32 or int64 (sequences + 1), on the device of q: where each sequence begins, and the
        total. cu_seqlens_k defaults to cu_seqlens_q. With fewer queries than keys, queries are the last tokens.
    max_seqlen_q, max_seqlen_k: upper bounds of the lengths. Left out, they are read from cu_seqlens, which waits for
        the device.
    kind: "moba": each row attends its own block and the top_k - 1 past blocks of `block_size` tokens whose mean key has
        the largest product with it (so top_k counts the own block; top_k=1 is own-block attention, unless
        `compat_topk1_full` asks for full attention there, as other MoBA packages give). Where top_k reaches all blocks
        of the longest sequence, CUDA tensors go to the dense kernel of kind "full".
        "window": the last `window` keys, the row's own among them, and the first `sink` keys. "full": all keys.
    force_previous, sink_blocks: blocks that every row of kind "moba" attends: the one before its own, and the first
        `sink_blocks` of its sequence. Each takes one of the top_k; the best of the rest fill what is left.
    share: whether each query "head" chooses, the "group" of heads of a key head together, or all of the "layer".
    share_score: how heads that choose together score a block: by the sum of their products ("sum_logit"), of their
        softmax over all past blocks ("sum_prob"), or by the greatest product ("max").
    representative_dtype: "input" rounds a block's mean key to the dtype of k, as the published code does; "float32"
        keeps it.
    softmax_scale: factor on q·k, default 1/sqrt(D). The choice of blocks does not use it, but for "sum_prob".
    return_lse: also return the log-sum-exp of the scaled scores, differentiable: float32 (H, Tq), float64 for float64.
    check_values: also check the values of cu_seqlens, which waits for the device. Without it values out of range are
        clamped.

    Raises ValueError naming the argument. Rows that see no key are 0, their lse -inf.
    """
    cu_q, cu_k, max_q, max_k = _batch(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if check_values:
        _check_values("q", cu_q, max_q, q.size(0))
        _check_values("k", cu_k, max_k, k.size(0))
    blocks: Optional[Tensor] = None
    selection = "all"
    span = 0
    if kind == "moba":
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1: a row always attends its own block.")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; it must be at least 1.")
        if not 0 <= sink_blocks <= top_k - 1 - force_previous:
            raise ValueError(
                f"sink_blocks is {sink_blocks} and force_previous {force_previous}; together they must be between 0 and "
                f"the {top_k - 1} slots of top_k beside the own block. Raise top_k, or force fewer blocks."
            )
        # No row has more blocks than the longest sequence. All of them are full attention, for which a GPU has kernels of
        # its own.
        most_blocks = max(max_k - 1, 0) // block_size + 1
        dense = q.is_cuda and top_k >= most_blocks
        if not dense and not (compat_topk1_full and top_k == 1):
            selection = "list"
            blocks = select(
                q, k, cu_q, cu_k, max_q, max_k, block_size=block_size, top_k=min(top_k, most_blocks),
                force_previous=force_previous, sink_blocks=sink_blocks, share=share, share_score=share_score,
                representative_dtype=representative_dtype, softmax_scale=softmax_scale,
            )
    elif kind == "window":
        selection = "span"
        span = _number("window", window, "the number of last keys a row sees, at least 1, for kind 'window'")
    elif kind != "full":
        raise ValueError(f"kind is {kind!r}; it must be 'moba', 'window' or 'full'.")
    out, lse = torch.ops.moba.attend(
        q, k, v, cu_q, cu_k, max_q, max_k, selection, block_size, span, sink, blocks, _scale(softmax_scale)
    )
    return (out, lse) if return_lse else out


def full_attn_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Full causal attention of packed sequences: the control. Shapes as in `attention`."""
    return attention(q, k, v, cu_seqlens, None, max_seqlen, kind="full")


def moba_attn_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, moba_chunk_size: int, moba_topk: int
) -> Tensor:
    """MoBA by the signature of MoonshotAI/MoBA. `moba_topk` counts a row's own block.

    Unlike there, k and v may have fewer heads than q, and moba_topk=1 is own-block attention; see
    `attention(compat_topk1_full=True)` for their full attention there.
    """
    return attention(
        q, k, v, cu_seqlens, None, max_seqlen, kind="moba", block_size=moba_chunk_size, top_k=moba_topk
    )


@dataclasses.dataclass(frozen=True)
class SelfCheckReport:
    """Relative errors, max |a - b| / max |b|, of MoBA with all blocks against full attention."""

    out_error: float
    lse_error: float
    dq_error: float
    dk_error: float
    dv_error: float
    tolerance: float
    passed: bool


def self_check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    *,
    block_size: int = 512,
    softmax_scale: Optional[float] = None,
    seed: int = 0,
) -> SelfCheckReport:
    """MoBA with every block chosen against full attention on your own tensors, forward and backward.

    The two must agree. The gradient of the output is pseudo-random from `seed`. Waits for the device.
    """
    cu_q, cu_k, max_q, max_k = _batch(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    with torch.no_grad():
        values = torch.ops.moba.self_check(
            q, k, v, cu_q, cu_k, max_q, max_k, block_size, _scale(softmax_scale), seed
        ).tolist()
    return SelfCheckReport(*values[:6], passed=bool(values[6]))


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What a choice of blocks is worth.

    blocks: int32 (Tq, H or HK or 1, budget), as `select` gives them; None for kinds without a list.
    scores: of the listed blocks, float32 (float64 for float64), NaN in free places; None where blocks is.
    mass: (H, Tq): of each row's softmax over all its keys, the share on the keys it attends; 1 for rows without keys.
    """

    blocks: Optional[Tensor]
    scores: Optional[Tensor]
    mass: Tensor


def diagnose(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    *,
    kind: Kind = "moba",
    block_size: int = 512,
    top_k: int = 3,
    window: Optional[int] = None,
    sink: int = 0,
    softmax_scale: Optional[float] = None,
    compat_topk1_full: bool = False,
    force_previous: bool = False,
    sink_blocks: int = 0,
    share: Share = "head",
    share_score: ShareScore = "sum_logit",
    representative_dtype: RepresentativeDType = "input",
) -> Diagnosis:
    """The choice that `attention` would make, its scores, and the share of the true attention it catches.

    Costs a full attention and waits for the device. No gradients. Options are as in `attention`.
    """
    cu_q, cu_k, max_q, max_k = _batch(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    last = _number("window", window, "the number of last keys a row sees") if kind == "window" else 0
    with torch.no_grad():
        blocks, scores, mass = torch.ops.moba.diagnose(
            q, k, cu_q, cu_k, max_q, max_k, kind, block_size, top_k, force_previous, sink_blocks, share, share_score,
            representative_dtype, last, sink, _scale(softmax_scale), compat_topk1_full,
        )
    has_list = kind == "moba" and not (compat_topk1_full and top_k == 1)
    return Diagnosis(blocks if has_list else None, scores if has_list else None, mass)
