"""Group offloading to disk with a folder per component."""

from pathlib import Path
from typing import Any

import torch
from diffusers.hooks.group_offloading import apply_group_offloading
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


def offload_groups_to_disk(pipe: Any, folder: Path, *, exclude: list[str], **options: Any) -> None:
    """Offload every network of a pipeline into ``folder/<component>``, but for those to ``exclude``.

    diffusers names the files after the layers alone: in one folder two networks with layers of the same name would
    read each other's weights, and those of an earlier run.

    Args:
        options: those of diffusers' ``apply_group_offloading``.

    Raises:
        ValueError: the folder holds files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"offload_to_disk_path must be an empty or a new folder, got {folder} with files in it")
    for name, component in pipe.components.items():
        if not isinstance(component, nn.Module):
            continue
        if name in exclude:
            component.to(torch.device(options["onload_device"]))
            continue
        place: dict[str, Any] = {"offload_to_disk_path": str(folder / name)}
        if isinstance(component, ModelMixin):
            component.enable_group_offload(**options, **place)
        else:  # transformers' encoders
            apply_group_offloading(component, **options, **place)
