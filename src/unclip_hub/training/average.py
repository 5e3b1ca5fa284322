"""The running average of a network's weights, which is what a training exports."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of the parameters that are trained.

    The average is shorter at first, (step + 1) / (step + 10), while the weights still move fast.
    """

    def __init__(self, modules: nn.Module, *, decay: float) -> None:
        self.modules, self.decay = modules, decay
        self.values = [p.detach().clone() for p in self._parameters()]

    def update(self, step: int) -> None:
        """Take in the weights after ``step``, counted from 0."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for mean, parameter in zip(self.values, self._parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the modules hold the averaged weights and are in eval mode."""
        kept = [p.detach().clone() for p in self._parameters()]
        self._load(self.values)
        self.modules.eval()
        try:
            yield
        finally:
            self._load(kept)
            self.modules.train()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        for mine, theirs in zip(self.values, state["values"], strict=True):
            mine.copy_(theirs)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.modules.parameters() if p.requires_grad]

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters(), values, strict=True):
            parameter.copy_(value)
