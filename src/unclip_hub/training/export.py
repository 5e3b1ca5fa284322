"""The folder that a training leaves: its base model with the trained networks in their places."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from unclip_hub.hub.layout import write_index
from unclip_hub.schedulers.unclip import UnCLIPScheduler
from unclip_hub.training.objective import Objective


def write_model(folder: Path, parts: dict[str, Any], *, base: Path | None) -> Path:
    """Write ``parts`` (networks, tokenizers, schedulers under the names of their components) and the base's others.

    The folder appears whole, in place of an older one. A network's weights are stored as they are, in float32.

    Args:
        base: a model's folder; None for parts that stand alone, such as a CLIP.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    index: dict[str, Any] = {}
    if base is not None:
        index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
        for name in index:
            if (base / name).is_dir() and name not in parts:
                shutil.copytree(base / name, partial / name)
    for name, part in parts.items():
        part.save_pretrained(partial / name)
    components = {name: tuple(value) for name, value in index.items() if isinstance(value, list) and None not in value}
    components |= {
        name: (type(part).__module__.partition(".")[0], type(part).__name__) for name, part in parts.items()
    }
    config = {name: value for name, value in index.items() if name[0] != "_" and not isinstance(value, list)}
    write_index(partial, index.get("_class_name", "UnCLIPPipeline"), components=components, config=config)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def new_scheduler(objective: Objective, network: nn.Module, *, clip_sample_range: float) -> Any:
    """The ancestral sampler for a network that was trained with this objective."""
    learned = getattr(network, "config", {}).get("out_channels") == 6
    options: dict[str, Any] = {
        "prediction_type": objective.prediction_type,
        "variance_type": "learned_range" if learned else "fixed_small_log",
        "clip_sample_range": clip_sample_range,
    }
    if objective.schedule == "cosine":
        return UnCLIPScheduler(**options)
    assert objective.schedule == "linear"
    return DDPMScheduler(beta_schedule="linear", timestep_spacing="trailing", **options)
