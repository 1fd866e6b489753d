"""Block-sparse attention for long context: MoBA (arXiv 2502.13189) and its controls, on CPU and CUDA, with gradients.

    import libmoba
    out = libmoba.attention(q, k, v, cu_seqlens, max_seqlen_q=4096, kind="moba", block_size=512, top_k=3)

Sequences are packed: q is (tokens, heads, head_dim), k and v (tokens, kv_heads, head_dim), and cu_seqlens says where
each begins. See `attention`.
"""

from . import _library

_library_path = _library.load()

from ._cache import KvCache  # noqa: E402  (the operators must be loaded first)
from ._paged_cache import PagedKvCache, Reads  # noqa: E402
from ._ops import (  # noqa: E402
    Diagnosis,
    SelfCheckReport,
    attend,
    attention,
    diagnose,
    full_attn_varlen,
    moba_attn_varlen,
    select,
    self_check,
)
from ._workspace import set_workspace_limit, workspace_limit  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "KvCache",
    "PagedKvCache",
    "Reads",
    "SelfCheckReport",
    "attend",
    "attention",
    "diagnose",
    "full_attn_varlen",
    "moba_attn_varlen",
    "select",
    "self_check",
    "set_workspace_limit",
    "workspace_limit",
]
