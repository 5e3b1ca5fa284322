"""What processes that train together know of each other."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """The rows of all processes in their order; each process's gradient is the sum of what all made of its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, those of the first one first; gradients find their way back."""
    return _Gather.apply(rows) if _distributed() else rows  # type: ignore[return-value]


def rank() -> int:
    """Which of the processes this one is, from 0."""
    return dist.get_rank() if _distributed() else 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
