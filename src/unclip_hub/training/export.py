"""The folder that a training leaves: its base model with the trained networks in their places."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from unclip_hub.hub.layout import write_index
from unclip_hub.schedulers.unclip import UnCLIPScheduler
from unclip_hub.training.objective import Objective


def write_model(
    folder: Path, parts: dict[str, Any], *, base: Path | None, sampling_defaults: Mapping[str, Any] | None = None
) -> Path:
    """Write ``parts`` (networks, tokenizers, schedulers under the names of their components) and the base's others.

    The folder appears whole, in place of an older one. A network's weights are stored as they are, in float32. A part
    that is None is left out, also if the base has it.

    Args:
        base: a model's folder; None for parts that stand alone, such as a CLIP.
        sampling_defaults: what replaces the base's, setting by setting.
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
    written = {name: part for name, part in parts.items() if part is not None}
    for name, part in written.items():
        part.save_pretrained(partial / name)
    kept = {name: value for name, value in index.items() if name not in parts}
    components = {name: tuple(value) for name, value in kept.items() if isinstance(value, list) and None not in value}
    components |= {
        name: (type(part).__module__.partition(".")[0], type(part).__name__) for name, part in written.items()
    }
    config = {name: value for name, value in index.items() if name[0] != "_" and not isinstance(value, list)}
    if sampling_defaults:
        config["sampling_defaults"] = {**(config.get("sampling_defaults") or {}), **sampling_defaults}
    write_index(partial, index.get("_class_name", "UnCLIPPipeline"), components=components, config=config)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def new_scheduler(objective: Objective, network: nn.Module, *, clip_sample_range: float) -> Any:
    """The sampler for a network that was trained with this objective: the ancestral one, along a flow Euler's.

    Euler's is DDIM's, of diffusers itself: its configuration holds the noise schedule as numbers, which every other
    scheduler made ``from_config`` takes over, or, as ``UnCLIPScheduler``, refuses.
    """
    options: dict[str, Any] = {
        "prediction_type": objective.prediction_type,
        "clip_sample_range": clip_sample_range,
    }
    if objective.schedule == "flow":
        abar = objective.alphas_cumprod
        betas = 1 - abar / torch.nn.functional.pad(abar[:-1], (1, 0), value=1.0)
        schedule = {"beta_schedule": "flow", "trained_betas": betas.tolist()}
        return DDIMScheduler(timestep_spacing="trailing", **schedule, **options)
    learned = getattr(network, "config", {}).get("out_channels") == 6
    options["variance_type"] = "learned_range" if learned else "fixed_small_log"
    if objective.schedule == "cosine":
        return UnCLIPScheduler(**options)
    assert objective.schedule == "linear"
    return DDPMScheduler(beta_schedule="linear", timestep_spacing="trailing", **options)
