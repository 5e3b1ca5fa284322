"""The training loop. It never asks which network it trains: a task is a loss, a batch a function of the step."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


Batch = Any


@runtime_checkable
class Task(Protocol):
    """A loss over modules: ``loss(batch, generator)`` returns the scalar to minimise and numbers worth logging."""

    modules: nn.ModuleDict  # everything that is trained

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]: ...


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train on and with which loss is the caller's.

    The learning rate rises over ``warmup`` steps, stays, and falls linearly to ``final_lr_ratio`` of itself from
    ``decay_from`` (a fraction of ``steps``) on. ``precision`` is ``"bf16"`` (autocast) or ``"no"`` (float32).
    """

    steps: int
    lr: float
    warmup: int = 100
    decay_from: float = 0.5
    final_lr_ratio: float = 0.03
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    ema: float = 0.999
    precision: str = "bf16"
    seed: int = 0
    log_every: int = 50
    checkpoint_minutes: float = 3.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"precision must be 'no' or 'bf16', got {self.precision!r}")

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        start = self.decay_from * self.steps
        fall = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return self.lr * rise * (1 - (1 - self.final_lr_ratio) * fall)


def train(
    task: Task,
    batches: Callable[[int], Batch],
    config: TrainConfig,
    *,
    output: Path,
    sample_fn: Callable[[nn.ModuleDict, int], None] | None = None,
) -> Path:
    """Train to ``config.steps`` and leave averaged weights in ``output/ema.pt``; the same call again resumes.

    A step depends on its number alone (``batches(step)``, and noise from a generator seeded with it), so that a
    resumed run continues the interrupted one exactly. ``output`` receives ``checkpoint.pt`` every few minutes,
    replaced atomically, and ``stats.jsonl``.

    Args:
        sample_fn: called with the averaged modules and the step at every checkpoint, to draw samples or to score them.

    Raises:
        ValueError: ``output`` holds a checkpoint of a different network.
        FloatingPointError: the loss stopped being finite; the last checkpoint is kept and named.
    """
    output.mkdir(parents=True, exist_ok=True)
    task.modules.train()
    device = next(task.modules.parameters()).device
    optimizer = torch.optim.AdamW(
        _decay_groups(task.modules, config.weight_decay), lr=config.lr, betas=config.betas, fused=True
    )
    average = [p.detach().clone() for p in task.modules.parameters()]
    start = _resume(output, task.modules, optimizer, average)
    started = saved = time.monotonic()
    running: dict[str, float] = {}

    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, stats = task.loss(batches(step), generator)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {step}; the last good checkpoint is {output / 'checkpoint.pt'}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(task.modules.parameters(), config.clip_norm).item()
        optimizer.step()
        decay = min(config.ema, (step + 1) / (step + 10))  # a short average while the weights still move fast
        for mean, parameter in zip(average, task.modules.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        for name, value in {"loss": loss.item(), "grad_norm": norm, **stats}.items():
            running[name] = running.get(name, 0.0) + value / config.log_every

        done = step + 1
        if done % config.log_every == 0:
            _log(output, step=done, lr=config.lr_at(step), seconds=time.monotonic() - started, **running)
            running = {}
        if done == config.steps or time.monotonic() - saved > 60 * config.checkpoint_minutes:
            _save(output, task.modules, optimizer, average, step=done)
            if sample_fn is not None:
                with _averaged(task.modules, average):
                    sample_fn(task.modules, done)
            saved = time.monotonic()

    with _averaged(task.modules, average):
        _atomic(output / "ema.pt", task.modules.state_dict())
    return output / "ema.pt"


def _decay_groups(modules: nn.ModuleDict, weight_decay: float) -> list[dict[str, Any]]:
    """Weight matrices and kernels decay; biases, gains and embeddings of one row do not."""
    parameters = [p for p in modules.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


class _averaged:
    """Inside the block the modules hold the averaged weights and are in eval mode."""

    def __init__(self, modules: nn.ModuleDict, average: list[Tensor]) -> None:
        self.modules, self.average = modules, average

    def __enter__(self) -> None:
        self.kept = [p.detach().clone() for p in self.modules.parameters()]
        self._load(self.average)
        self.modules.eval()

    def __exit__(self, *_: object) -> None:
        self._load(self.kept)
        self.modules.train()

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.modules.parameters(), values, strict=True):
            parameter.copy_(value)


def _resume(output: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> int:
    path = output / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        modules.load_state_dict(state["modules"])
    except RuntimeError as error:
        raise ValueError(
            f"{path} is of a different network; choose another output folder or remove it. {error}"
        ) from error
    optimizer.load_state_dict(state["optimizer"])
    for mine, theirs in zip(average, state["average"], strict=True):
        mine.copy_(theirs)
    stats = output / "stats.jsonl"
    if stats.exists():
        lines = [line for line in stats.read_text().splitlines() if json.loads(line)["step"] <= state["step"]]
        stats.write_text("".join(line + "\n" for line in lines))
    return state["step"]


def _save(
    output: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, average: list[Tensor], *, step: int
) -> None:
    state = {"step": step, "modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    _atomic(output / "checkpoint.pt", state)


def _atomic(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def _log(output: Path, **numbers: float | int) -> None:
    line = {name: float(f"{value:.6g}") for name, value in numbers.items()}
    with open(output / "stats.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    print("  ".join(f"{name} {value:g}" for name, value in line.items()), flush=True)
