"""Kandinsky's priors → our prior: 2.1's original files, and the folders that diffusers' pipelines open (2.1, 2.2).

    python conversion/convert_kandinsky_prior.py FOLDER --output OUT

A prior is no pipeline: OUT holds the components that the original has, and an index that names them.
`UnCLIPPipeline.from_pretrained(DECODER, prior=PriorTransformer.from_pretrained(OUT, subfolder="prior"),
prior_scheduler=UnCLIPScheduler.from_pretrained(OUT, subfolder="prior_scheduler"))` puts it in the place of another
model's, where both are of one CLIP.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import transformers
import yaml
from command import FILE, Source, Target, conversion
from containers import read_state
from convert_karlo import PRIOR_CLAMP, add_encoders, convert_prior, prior_config, read_statistics
from folder import OutputFolder
from ledger import Converted
from torch import Tensor

from unclip_hub.hub.weights import AGAIN, BrokenFile, read_json
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.schedulers.unclip import UnCLIPScheduler


PUBLISHED = {"width": 2048, "heads": 32}
# of the original's options for sampling, those that would need another scheduler
_DIFFUSION = {
    "steps": 1000,
    "learn_sigma": False,
    "sigma_small": True,
    "noise_schedule": "cosine",
    "predict_xstart": True,
}
_ENCODERS = {
    "text_encoder": transformers.CLIPTextModelWithProjection,
    "image_encoder": transformers.CLIPVisionModelWithProjection,
}


@conversion
@click.option("--prior", type=FILE, help="prior_fp16.ckpt")
@click.option("--statistics", type=FILE, help="ViT-L-14_stats.th")
@click.option("--config", type=FILE, help="The prior's YAML, where its size is not the published one.")
@click.option("--clip", type=FILE, help="OpenAI's ViT-L-14.pt, to be converted with the prior.")
@click.option("--tokenizer", metavar="FOLDER_OR_REPO", help="A tokenizer of CLIP, or the bpe_simple_vocab file.")
def main(source: Source, target: Target, **flags: Any) -> None:
    """Convert a Kandinsky prior.

    FOLDER holds 2.1's prior_fp16.ckpt and ViT-L-14_stats.th, or the folders prior, scheduler, text_encoder,
    image_encoder, tokenizer and image_processor of diffusers.
    """
    with target.open("Kandinsky's prior") as folder:
        if source.folder is not None and (source.folder / "prior" / "config.json").is_file():
            named = [f"--{name}" for name, value in flags.items() if value is not None]
            if named:
                raise ValueError(f"{', '.join(named)} cannot be given with a folder of diffusers', {source.folder}")
            _add_from_diffusers(folder, source.folder)
        else:
            _add_original(folder, source, **flags)
        folder.write_index("UnCLIPPipeline")


def convert(state: Mapping[str, Tensor], *, heads: int = PUBLISHED["heads"]) -> Converted:
    """The component ``prior``: from the original, still without the statistics, or from diffusers.

    Args:
        heads: of the original's attention, which its tensors do not tell.

    Raises:
        ValueError: it is none, or one that learned vectors for padding, for which our prior has no parameters.
    """
    converted = Converted(state, what="Kandinsky's prior")
    if not converted.has("proj_in.weight"):
        if converted.has("model.padding_embedding"):
            raise ValueError(
                "a prior with model.padding_embedding (xf_padding) cannot be converted: ours masks padding"
            )
        return convert_prior(state, heads=heads, what=converted.what)
    if not any(converted.left("time_embedding")):
        raise ValueError("this prior has no timestep, as ECLIPSE's: convert_eclipse.py converts it")
    for key in converted.left():
        converted.move(key, "prior", key)
    return converted.finish()


def read_heads(config: Path | None, *, width: int) -> int:
    """How many heads the original's attention has.

    Raises:
        ValueError: no YAML tells it of a prior of another than the published width, or the YAML asks for what our
            prior or its scheduler does not do.
    """
    if config is None:
        if width != PUBLISHED["width"]:
            raise ValueError(
                f"the tensors of a prior {width} wide (published: {PUBLISHED['width']}) do not tell its heads: "
                "give its YAML with --config"
            )
        return PUBLISHED["heads"]
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
        hparams, diffusion = found["model"]["hparams"], found.get("diffusion") or {}
        heads = int(hparams["xf_heads"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise BrokenFile(f"{config.name} gives no model.hparams.xf_heads: {error}", remedy=AGAIN) from None
    if heads < 1 or width % heads:
        raise ValueError(f"{config.name}: xf_heads must divide the prior's width {width}, got {heads}")
    for key, only in _DIFFUSION.items():
        if diffusion.get(key, only) != only:
            raise ValueError(f"diffusion.{key} must be {only!r} for a Kandinsky prior, got {diffusion[key]!r}")
    return heads


def _add_original(
    folder: OutputFolder,
    source: Source,
    *,
    prior: Path | None,
    statistics: Path | None,
    config: Path | None,
    clip: Path | None,
    tokenizer: str | None,
) -> None:
    file = source.find("prior_fp16.ckpt", "prior*.ckpt", flag="--prior", given=prior)
    state = read_state(file)
    width = state["model.prd_emb"].shape[-1] if "model.prd_emb" in state else PUBLISHED["width"]
    heads = read_heads(source.look("config.yaml", "*.yaml", flag="--config", given=config), width=width)
    converted = convert(state, heads=heads)
    stats = source.find("ViT-L-14_stats.th", "*.th", flag="--statistics", given=statistics)
    for key, vector in zip(("clip_mean", "clip_std"), read_statistics(stats), strict=True):
        converted.compute("prior", key, vector, how=f"from {stats.name}")
    folder.add_model("prior", PriorTransformer, prior_config(state, heads=heads), converted["prior"])
    folder.account(file, converted)
    folder.add_scheduler("prior_scheduler", _scheduler())
    del state, converted
    encoders = source.look("ViT-L-14.pt", flag="--clip", given=clip)
    if encoders is not None:
        add_encoders(folder, source, encoders, tokenizer=tokenizer)


def _add_from_diffusers(folder: OutputFolder, source: Path) -> None:
    file = _weights(source / "prior", "diffusion_pytorch_model")
    converted = convert(read_state(file))
    config = {k: v for k, v in read_json(source / "prior" / "config.json").items() if not k.startswith("_")}
    folder.add_model("prior", PriorTransformer, config, converted["prior"])
    folder.account(file, converted)
    del converted
    described = source / "scheduler" / "scheduler_config.json"
    folder.add_scheduler("prior_scheduler", _scheduler(read_json(described) if described.is_file() else None))
    for name, cls in _ENCODERS.items():
        if (source / name).is_dir():
            file = _weights(source / name, "model", "pytorch_model")
            encoder = Converted(read_state(file), what=f"CLIP's {name}")
            for key in encoder.left(r".*\.position_ids$"):
                encoder.drop(key, "counts from 0")
            for key in encoder.left():
                encoder.move(key, name, key)
            folder.add_model(name, cls, read_json(source / name / "config.json"), encoder.finish()[name])
            folder.account(file, encoder)
            del encoder
    if (source / "tokenizer").is_dir():
        folder.add_tokenizer("tokenizer", transformers.CLIPTokenizer.from_pretrained(source / "tokenizer"))
    if (source / "image_processor").is_dir():
        processor = transformers.CLIPImageProcessorPil.from_pretrained(source / "image_processor")
        folder.add_processor("feature_extractor", processor)


def _weights(folder: Path, *stems: str) -> Path:
    """The whole weights in a component's folder of diffusers' or transformers', safetensors where there are any."""
    kinds = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
    names = [stem + kind for kind in kinds for stem in stems]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise BrokenFile(f"{folder.name} must hold one of {', '.join(names)}", remedy=AGAIN)
    return found


def _scheduler(config: Mapping[str, Any] | None = None) -> UnCLIPScheduler:
    if config is None:
        return UnCLIPScheduler(prediction_type="sample", clip_sample_range=PRIOR_CLAMP)
    name = config.get("_class_name")
    if name != "UnCLIPScheduler":
        raise ValueError(f"the scheduler of a Kandinsky prior must be UnCLIPScheduler, got {name}")
    made: Any = UnCLIPScheduler.from_config(dict(config))
    return made


if __name__ == "__main__":
    main()
