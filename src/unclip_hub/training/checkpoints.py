"""Checkpoints of a training: folders that appear whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn


KEPT = 2  # the newest checkpoints


def check_room(output: Path, modules: nn.Module) -> None:
    """Make ``output`` and see that checkpoints can be written there.

    Raises:
        OSError: the folder cannot be written, or its disk has no room for one more checkpoint than are kept.
    """
    output.mkdir(parents=True, exist_ok=True)
    probe = output / ".writable"
    probe.write_bytes(b"")
    probe.unlink()
    # weights, their average and two moments of AdamW
    one = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in modules.parameters())
    kept, free = len(_complete(output)), shutil.disk_usage(output).free
    needed = one * max(1, KEPT + 1 - kept)
    if free < needed:
        raise OSError(
            f"{output}: {KEPT} checkpoints and one being written need {needed / 1e9:.2f} GB, its disk has "
            f"{free / 1e9:.2f} GB free"
        )


def newest(output: Path) -> Path | None:
    """The last complete checkpoint."""
    complete = _complete(output)
    return complete[-1] if complete else None


def save(accelerator: Accelerator, output: Path, *, step: int, position: dict[str, Any] | None = None) -> None:
    """Write the checkpoint of a step; older ones but the last are removed once it is complete.

    ``position`` is where this process stands in its data, if that does not follow from the step.
    """
    final = output / "checkpoints" / f"step-{step:08d}"
    partial = final.with_suffix(".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if position is not None:
        (partial / _position_file(accelerator)).write_text(json.dumps(position))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in _complete(output)[:-KEPT]:
            shutil.rmtree(old)


def restore(accelerator: Accelerator, output: Path) -> tuple[int, dict[str, Any] | None]:
    """Load the newest checkpoint; its step, or 0 if there is none, and where this process stood in its data.

    Raises:
        ValueError: the checkpoint is of a different network.
    """
    path = newest(output)
    if path is None:
        return 0, None
    try:
        accelerator.load_state(str(path))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} is of a different network; choose another output folder or remove it. {error}"
        ) from error
    position = path / _position_file(accelerator)
    return int(path.name.removeprefix("step-")), json.loads(position.read_text()) if position.exists() else None


def replace_file(path: Path, value: object) -> None:
    """``torch.save`` that leaves the old file or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def _position_file(accelerator: Accelerator) -> str:
    return f"data-{accelerator.process_index}.json"


def _complete(output: Path) -> list[Path]:
    return sorted(path for path in (output / "checkpoints").glob("step-*") if path.suffix != ".partial")
