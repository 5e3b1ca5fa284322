"""The training loop. It never asks which network it trains: a task is a loss, a batch a function of its number."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from unclip_hub.data.workers import made_ahead
from unclip_hub.training.average import Average
from unclip_hub.training.checkpoints import check_room, newest, replace_file, restore, save
from unclip_hub.training.tracking import TRACKERS, chosen_tracker, start_tracking


Batch = Any
PRECISIONS = ("auto", "no", "bf16", "fp16")
_BF16 = ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16")  # what a CPU calls its instructions for it
MAX_SKIPPED = 10  # steps in a row


@runtime_checkable
class Task(Protocol):
    """A loss over modules: ``loss(batch, generator)`` returns the scalar to minimise and numbers worth logging.

    Every parameter that requires a gradient takes part in every loss: with several processes the others wait for it.
    """

    modules: nn.ModuleDict  # what is saved; of it is trained what requires a gradient

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]: ...


@runtime_checkable
class Stream(Protocol):
    """Batches that come one after the other, from a place that can be saved: those of this process alone."""

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Batches = Callable[[int], Batch] | Stream


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train on and with which loss is the caller's.

    The learning rate rises over ``warmup`` steps, stays, and falls linearly to ``final_lr_ratio`` of itself from
    ``decay_from`` (a fraction of ``steps``) on.

    Args:
        accumulate: micro-batches per step and process.
        clip_norm: the gradient's norm is cut to this.
        ema: decay of the averaged weights, which are what is exported; 0 exports the last ones.
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` (autocast; fp16 on a GPU only). ``"auto"`` is bf16, but
            float32 on a CPU without instructions for it, which would take twice as long.
        compile: ``torch.compile`` every network that is trained: minutes at the start, then faster steps. Samples are
            drawn without it, as they have other shapes.
        workers: processes that make numbered batches ahead; a ``Stream`` has its own.
        tracker: ``"trackio"``, ``"tensorboard"``, ``"wandb"``, ``"none"``, or ``"auto"``: trackio where it is
            installed. ``stats.jsonl`` is written always.
        checkpoint_minutes: time between checkpoints.
        diverged: the run stops once the loss, averaged over ``log_every`` steps, is this many times its lowest.
    """

    steps: int
    lr: float
    warmup: int = 100
    decay_from: float = 0.5
    final_lr_ratio: float = 0.03
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    accumulate: int = 1
    ema: float = 0.999
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    workers: int = 0
    tracker: str = "none"
    log_every: int = 50
    checkpoint_minutes: float = 3.0
    diverged: float = 20.0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.tracker not in TRACKERS:
            raise ValueError(f"tracker must be one of {TRACKERS}, got {self.tracker!r}")

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        start = self.decay_from * self.steps
        fall = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return self.lr * rise * (1 - (1 - self.final_lr_ratio) * fall)


def train(
    task: Task,
    batches: Batches,
    config: TrainConfig,
    *,
    output: Path,
    prepare: Callable[[Any, torch.Generator], Batch] | None = None,
    sample_fn: Callable[[nn.ModuleDict, int], None] | None = None,
) -> Path:
    """Train to ``config.steps`` and leave averaged weights in ``output/ema.pt``; the same call again resumes.

    Micro-batch number n is ``batches(n)``, and its noise is that of a generator seeded with n: a resumed run continues
    the interrupted one exactly, and w processes (torchrun's or ``accelerate launch``'s; each takes every w-th number)
    make the gradients that one process makes with w times ``accumulate``. Data that can only be read in a stream comes
    as a ``Stream``, whose position is saved. ``output`` receives a checkpoint every few minutes, whole or not at all,
    and ``stats.jsonl``.

    Args:
        prepare: makes the task's batch of what ``batches`` gave, on the device and in the process that trains.
        sample_fn: called with the averaged modules and the step at every checkpoint, to draw samples or to score them.

    Raises:
        ValueError: ``output`` holds a checkpoint of a different network.
        OSError: ``output`` cannot be written, or has no room for two checkpoints; before the first step.
        FloatingPointError: the loss stopped being finite or diverged; the last checkpoint is kept and named.
    """
    try:
        return _Run(task, batches, config, output=output, prepare=prepare, sample_fn=sample_fn).run()
    finally:
        AcceleratorState._reset_state()  # process-wide: the next training may be of another precision


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch, a tensor or a dataclass of them, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: moved(getattr(batch, f.name), device) for f in fields(batch)})
    return batch


class _Run:
    """The state of one training: what a checkpoint holds, and where the loss stands."""

    def __init__(
        self,
        task: Task,
        batches: Batches,
        config: TrainConfig,
        *,
        output: Path,
        prepare: Callable[[Any, torch.Generator], Batch] | None,
        sample_fn: Callable[[nn.ModuleDict, int], None] | None,
    ) -> None:
        self.task, self.batches, self.config, self.output = task, batches, config, output
        self.prepare, self.sample_fn = prepare, sample_fn
        tracker = chosen_tracker(config.tracker)
        self.accelerator = Accelerator(
            mixed_precision=_precision(config.precision),
            log_with=tracker,
            project_dir=str(output),
            cpu=not torch.accelerator.is_available(),  # or it would not see that torchrun started several
        )
        if self.accelerator.is_main_process:
            check_room(output, task.modules)
        self.accelerator.wait_for_everyone()
        task.modules.train().to(self.accelerator.device)
        if config.compile:
            for network in task.modules.children():
                if any(p.requires_grad for p in network.parameters()):
                    network.compile()  # in place: the names of its weights stay
        optimizer = torch.optim.AdamW(
            _decay_groups(task.modules, config.weight_decay), lr=config.lr, betas=config.betas, fused=True
        )
        self.model, self.optimizer = self.accelerator.prepare(_Loss(task), optimizer)
        if config.ema and self.accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("averaged weights are not kept under FSDP, whose processes hold parts: set ema to 0")
        self.average = Average(task.modules, decay=config.ema)
        self.accelerator.register_for_checkpointing(self.average)
        self.step, position = restore(self.accelerator, output)
        if position is not None and isinstance(batches, Stream):
            batches.load_state_dict(position)
        if self.accelerator.is_main_process:
            _drop_later(output / "stats.jsonl", self.step)
        if config.tracker == "auto" and tracker is None and self.accelerator.is_main_process:
            print(f"curves: {output / 'stats.jsonl'}; to watch them while it trains: pip install trackio", flush=True)
        if tracker is not None:
            start_tracking(self.accelerator, asdict(config), output=output, resumed=self.step > 0)
        self.window: dict[str, list[float]] = defaultdict(list)
        self.lowest, self.skipped = math.inf, 0

    def run(self) -> Path:
        config, started, saved = self.config, time.monotonic(), time.monotonic()
        batches = self._micro_batches()
        while self.step < config.steps:
            self._update(batches)
            self.step += 1
            if self.step % config.log_every == 0:
                self._log(seconds=time.monotonic() - started)
            due = self.step == config.steps or time.monotonic() - saved > 60 * config.checkpoint_minutes
            if broadcast_object_list([due])[0]:  # the main process's clock decides
                self._checkpoint()
                saved = time.monotonic()
        path = self.output / "ema.pt"
        with self.average.applied():
            state = self.accelerator.get_state_dict(self.model)
            if self.accelerator.is_main_process:
                replace_file(path, {name.partition(".")[2]: value for name, value in state.items()})
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return path

    def _update(self, batches: Iterator[tuple[int, Batch]]) -> None:
        """One step of the optimizer."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step)
        for i in range(config.accumulate):
            number, batch = next(batches)
            generator = torch.Generator(accelerator.device).manual_seed(config.seed * 1_000_003 + number)
            batch = moved(batch, accelerator.device)
            if self.prepare is not None:
                batch = self.prepare(batch, generator)
            with nullcontext() if i + 1 == config.accumulate else accelerator.no_sync(self.model):
                loss, stats = self.model(batch, generator)
                accelerator.backward(loss / config.accumulate)
            for name, value in {"loss": loss.item(), **stats}.items():
                self.window[name].append(value)
        norm = accelerator.clip_grad_norm_(self.task.modules.parameters(), config.clip_norm)
        norm = float(norm)  # type: ignore[arg-type]  None is DeepSpeed's
        self.window["grad_norm"].append(norm)
        finite = math.isfinite(norm)
        if finite or config.precision == "fp16":  # fp16's scaler skips by itself, and learns from it
            self.optimizer.step()
            self.average.update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped = 0 if finite else self.skipped + 1
        self.window["skipped"].append(float(not finite))
        if self.skipped > MAX_SKIPPED:
            self._stop(f"the gradient was not finite in {self.skipped} steps in a row (loss {loss.item():g})")

    def _log(self, *, seconds: float) -> None:
        means = {name: sum(values) / len(values) for name, values in self.window.items()}
        self.window.clear()
        if self.accelerator.is_main_process:
            numbers = {"step": self.step, "lr": self.config.lr_at(self.step), "seconds": seconds, **means}
            rounded = {name: float(f"{value:.6g}") for name, value in numbers.items()}
            with open(self.output / "stats.jsonl", "a") as file:
                file.write(json.dumps(rounded) + "\n")
            print("  ".join(f"{name} {value:g}" for name, value in rounded.items()), flush=True)
        self.accelerator.log(means | {"lr": self.config.lr_at(self.step)}, step=self.step)
        loss = broadcast_object_list([means["loss"]])[0]
        if loss > self.config.diverged * self.lowest > 0:
            self._stop(f"the loss rose from {self.lowest:g} to {loss:g}")
        self.lowest = min(self.lowest, loss) if math.isfinite(loss) else self.lowest

    def _checkpoint(self) -> None:
        position = self.batches.state_dict() if isinstance(self.batches, Stream) else None
        save(self.accelerator, self.output, step=self.step, position=position)
        if self.sample_fn is not None and self.accelerator.is_main_process:
            with self.average.applied(), torch.compiler.set_stance("force_eager"):
                self.sample_fn(self.task.modules, self.step)
        self.accelerator.wait_for_everyone()

    def _stop(self, why: str) -> NoReturn:
        last = newest(self.output)
        good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise FloatingPointError(f"training stopped at step {self.step}: {why}; {good}")

    def _micro_batches(self) -> Iterator[tuple[int, Batch]]:
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        first, last = self.step * self.config.accumulate, self.config.steps * self.config.accumulate
        numbers = range(first * processes + rank, last * processes, processes)
        if isinstance(self.batches, Stream):
            return ((n, next(self.batches)) for n in numbers)
        if self.config.workers == 0:
            return ((n, self.batches(n)) for n in numbers)
        return made_ahead(self.batches, numbers, workers=self.config.workers)


def _precision(asked: str) -> str:
    if asked != "auto":
        return asked
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch's older releases do not tell
    return "bf16" if torch.accelerator.is_available() or any(capabilities.get(name) for name in _BF16) else "no"


class _Loss(nn.Module):
    """A task as one module, so that its gradients are averaged over processes."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.networks = task.modules
        self.task_loss = task.loss

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.task_loss(batch, generator)


def _decay_groups(modules: nn.ModuleDict, weight_decay: float) -> list[dict[str, Any]]:
    """Weight matrices and kernels decay; biases, gains and embeddings of one row do not."""
    parameters = [p for p in modules.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _drop_later(stats: Path, step: int) -> None:
    """Forget the numbers of steps that will be run again."""
    if stats.exists():
        lines = [line for line in stats.read_text().splitlines() if json.loads(line)["step"] <= step]
        stats.write_text("".join(line + "\n" for line in lines))
