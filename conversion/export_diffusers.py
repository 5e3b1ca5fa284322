"""Our folder → one that diffusers up to 0.37, the last release with a working unCLIP, opens.

    python conversion/export_diffusers.py FOLDER --output OUT

Weights are copied as they are; what goes is what those releases do not know: components, settings of our networks that
are at their defaults, and the checkpoint's own numbers of steps. diffusers' scheduler computes with float32 tables, so
its pictures differ by about 5e-4 from ours.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import click
from command import Source, Target, conversion
from folder import OutputFolder

from unclip_hub.hub.inspect import CONFIG_FILE, PICKLES, Checkpoint, Component, inspect


_BOTH = (
    "text_encoder", "tokenizer", "text_proj", "decoder", "decoder_scheduler",
    "super_res_first", "super_res_last", "super_res_scheduler",
)  # fmt: skip
PIPELINES = {
    "UnCLIPPipeline": (*_BOTH, "prior", "prior_scheduler"),
    "UnCLIPImageVariationPipeline": (*_BOTH, "image_encoder", "feature_extractor"),
}
_CLASSES = ("PriorTransformer", "UNet2DConditionModel", "UNet2DModel", "UnCLIPScheduler", "UnCLIPTextProjModel")
# keys of our networks, at what leaves diffusers' network
_OURS = {"patch_size": 1, "coordinates": False, "residual": False, "self_conditioning": False}
_SCHEDULER = (
    "_class_name", "_diffusers_version", "num_train_timesteps", "variance_type", "clip_sample", "clip_sample_range",
    "prediction_type", "beta_schedule",
)  # fmt: skip


def exported_config(component: Component) -> dict[str, Any]:
    """A component's configuration as diffusers 0.37 knows it.

    Raises:
        ValueError: the component is none of its classes, or of another network or diffusion.
    """
    library, name = component.ours
    config = dict(component.config or {})
    if library == "transformers":
        return config
    if name not in _CLASSES:
        raise ValueError(f"{component.name} is {library}'s {name}, which diffusers 0.37 does not have")
    for key, default in _OURS.items():
        if config.pop(key, default) != default:
            raise ValueError(f"{component.name} has a {key}, diffusers' {name} has none")
    if name == "UnCLIPScheduler":
        if config.get("prediction_type", "epsilon") not in ("epsilon", "sample"):
            kind = config["prediction_type"]
            raise ValueError(f"{component.name} predicts {kind!r}, diffusers' UnCLIPScheduler 'epsilon' or 'sample'")
        config = {key: config[key] for key in _SCHEDULER if key in config}
    return config


def copy_component(component: Component, source: Path, folder: OutputFolder, *, name: str | None = None) -> None:
    """Copy one component's files, its configuration rewritten.

    Raises:
        ValueError: see `exported_config`; or its weights are pickles.
    """
    config, name = exported_config(component), name or component.name
    pickles = [file.name for file in component.files if file.suffix in PICKLES]
    if pickles:
        raise ValueError(f"{component.name} holds a pickle, {pickles[0]}: save it anew with save_pretrained")
    target = folder.path / name
    folder.components[name] = component.ours
    shutil.copytree(source / component.name, target)
    if component.kind in ("model", "scheduler"):
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (target / CONFIG_FILE[component.kind]).write_text(text, encoding="utf-8")


@conversion
@click.option("--pipeline", type=click.Choice(list(PIPELINES)), help="By default text to image, if there is a prior.")
def main(source: Source, target: Target, *, pipeline: str | None) -> None:
    """Write FOLDER, a checkpoint of ours, as diffusers up to 0.37 reads it."""
    if source.folder is None or target.dtype is not None:
        raise ValueError("give the FOLDER to export; its weights are copied as they are, without --dtype")
    checkpoint = inspect(source.folder)
    errors = [f"{problem.where}: {problem.what}" for problem in checkpoint.problems if problem.level == "error"]
    if errors:
        raise ValueError(f"{source.folder} cannot be read: {'; '.join(errors)}")
    pipeline = pipeline or ("UnCLIPPipeline" if "prior" in checkpoint.components else "UnCLIPImageVariationPipeline")
    with target.open("unclip_hub") as folder:
        export(checkpoint, folder, pipeline=pipeline)


def export(checkpoint: Checkpoint, folder: OutputFolder, *, pipeline: str) -> None:
    """Copy what the pipeline of diffusers needs.

    Raises:
        ValueError: the checkpoint lacks a component that it cannot do without.
    """
    needed, found = PIPELINES[pipeline], checkpoint.components
    absent = [name for name in needed if name not in found and name not in ("super_res_last", "tokenizer")]
    if absent:
        raise ValueError(f"diffusers' {pipeline} needs {', '.join(absent)}, which this checkpoint does not have")
    for name in needed:
        if name in found:
            copy_component(found[name], checkpoint.folder, folder)
    if "super_res_last" not in found:
        copy_component(found["super_res_first"], checkpoint.folder, folder, name="super_res_last")
        folder.note("super_res_last is a copy of super_res_first, which here takes the last step, too")
    if "tokenizer" not in found:
        folder.note("no tokenizer: pass tokenizer= to from_pretrained")
    left = sorted(set(found) - set(needed))
    if left:
        folder.note(f"left out, as diffusers' {pipeline} has no place for them: {', '.join(left)}")
    folder.write_index(pipeline)


if __name__ == "__main__":
    main()
