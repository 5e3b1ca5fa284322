"""Before hours are spent: the network can learn one batch, and its loss depends on what it is conditioned on."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.training.loop import Task, moved


@dataclass(frozen=True)
class Proof:
    """Losses on one batch: before, after overfitting it, and then with true and with mismatched conditions, if any."""

    steps: int
    before: float
    after: float
    matched: float | None
    mismatched: float | None

    def __str__(self) -> str:
        learned = f"one batch, {self.steps} steps: loss {self.before:.4g} -> {self.after:.4g}"
        if self.matched is None:
            return f"{learned}; nothing conditions this network"
        return f"{learned}; with the conditions of other pictures {self.mismatched:.4g} instead of {self.matched:.4g}"


def prove(task: Task, batch: Any, *, lr: float, steps: int = 200, at_most: float = 0.7, draws: int = 8) -> Proof:
    """Overfit one batch with one draw of noise, then look whether its conditions matter; the weights are put back.

    A batch with one field has no conditions, as an autoencoder's: then only the first half is checked.

    Args:
        lr: the learning rate of the run.
        at_most: what share of the first loss may be left. A network that is trained already has less to gain: 1.
        draws: noises over which the two losses with other noise are averaged.

    Raises:
        ValueError: the loss did not fall so far, or is as low with mismatched conditions (by less than 1 %).
    """
    modules = task.modules
    device = next(modules.parameters()).device
    batch, conditioned = moved(batch, device), len(fields(batch)) > 1
    kept = {name: value.detach().clone() for name, value in modules.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in modules.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    modules.train()
    try:
        before = _loss(task, batch, seed=0)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 20)
            optimizer.zero_grad(set_to_none=True)
            task.loss(batch, torch.Generator(device).manual_seed(0))[0].backward()
            torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimizer.step()
        after = _loss(task, batch, seed=0)
        matched = _mean_loss(task, batch, draws=draws) if conditioned else None
        wrong = _mean_loss(task, mismatched(batch), draws=draws) if conditioned else None
    finally:
        modules.load_state_dict(kept)
        optimizer.zero_grad(set_to_none=True)
    proof = Proof(steps, before, after, matched, wrong)
    if not after <= at_most * before:
        raise ValueError(
            f"{proof}. A network that learns leaves at most {at_most:g} of the loss: try another learning rate than "
            f"{lr:g}, and look at the pictures and captions of a batch"
        )
    if matched is not None and wrong is not None and not wrong > 1.01 * matched:
        raise ValueError(
            f"{proof}. The loss does not depend on the condition: are the captions those of the pictures, and do they "
            "differ within a batch?"
        )
    return proof


def mismatched(batch: Any) -> Any:
    """A batch in which every picture (its first field) has the condition of another one (all other fields)."""
    first, *others = fields(batch)
    b = len(getattr(batch, first.name))

    def of_another(value: Any) -> Any:
        if isinstance(value, Conditioning):
            return value.roll(1)
        return value.roll(len(value) // b, dims=0) if isinstance(value, Tensor) else value

    return replace(batch, **{field.name: of_another(getattr(batch, field.name)) for field in others})


def _mean_loss(task: Task, batch: Any, *, draws: int) -> float:
    return sum(_loss(task, batch, seed=seed) for seed in range(1, draws + 1)) / draws


@torch.no_grad()
def _loss(task: Task, batch: Any, *, seed: int) -> float:
    device = next(task.modules.parameters()).device
    return task.loss(batch, torch.Generator(device).manual_seed(seed))[0].item()
