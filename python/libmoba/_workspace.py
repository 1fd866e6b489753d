"""The scratch memory that attention may take beside its tensors."""

import torch


def workspace_limit() -> int:
    """The most scratch, in bytes, that one call may hold at a time, on the CPU or a GPU. Work is cut to fit.

    The native CUDA backward may take 4 bytes for each element of q beside it, as dense flash attention does.
    """
    return torch.ops.moba.workspace_limit()


def set_workspace_limit(limit: int) -> None:
    """Sets it for this process, from the next call on; 1.5 GiB until then.

    More is faster where the partial results of a call, top_k x tokens x heads x (2 head_dim + 4) bytes, do not fit: the
    native CUDA kernels then run once for each slice of the heads. ValueError where `limit` is not positive;
    torch.OutOfMemoryError in a later call that cannot be cut so small.
    """
    torch.ops.moba.set_workspace_limit(limit)
