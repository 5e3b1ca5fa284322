"""Karlo v1.0.alpha as Kakao Brain published it (.ckpt, .yaml, ViT-L-14_stats.th, ViT-L-14.pt) → our folder.

    python conversion/convert_karlo.py FOLDER --output OUT

Key tables: github.com/kakaobrain/karlo, karlo/models/. Its prior and U-Nets are those of guided-diffusion, its CLIP is
OpenAI's; its files hold no optimizer and no second, averaged set of weights.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml
from adm_unet import decoder_config, move_unet, unet_shape, upsampler_config
from clip_tokenizer import add_tokenizer
from clip_towers import openai_options, vision_config
from command import FILE, Source, Target, conversion
from containers import read_container, read_state
from convert_clip import add_clip, image_processor, plain
from convert_clip import convert as convert_clip
from folder import OutputFolder
from ledger import Converted
from text_transformer import count_blocks, move_blocks
from torch import Tensor

from unclip_hub import PriorTransformer, UnCLIPScheduler, UnCLIPTextProjModel, UNet2DConditionModel, UNet2DModel
from unclip_hub.hub.weights import AGAIN, BrokenFile, read_json


# of the published configs/*.yaml, what no tensor tells; used where no YAML lies with the checkpoints
PUBLISHED = {"prior": {"xf_heads": 32}, "decoder": {"num_head_channels": 64, "image_size": 64}, "super_res": {}}
PRIOR_CLAMP = 10.0  # of x_0, in karlo/sampler/template.py; the published diffusers folder has 5.0
_MARKS = {
    "prior": "model.prd_emb",
    "decoder": "model.cf_param",
    "super_res": "model_first_steps.out.2.weight",
}
_DIFFUSION = {
    "prior": {"predict_xstart": True, "learn_sigma": False, "sigma_small": True},
    "decoder": {"predict_xstart": False, "learn_sigma": True},
    "super_res": {"predict_xstart": False, "learn_sigma": False, "sigma_small": True},
}
_DIFFUSION = {kind: only | {"steps": 1000, "noise_schedule": "squaredcos_cap_v2"} for kind, only in _DIFFUSION.items()}
# what a training framework may leave beside the state dict; it is not looked at
_TRAINERS = ("pytorch_lightning.*", "lightning.*", "lightning_fabric.*", "omegaconf.*", "torch.optim.*", "numpy.*")
_SUPER_RES = {"super_res_first": "model_first_steps.", "super_res_last": "model_last_step."}
_PRIOR = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "clip_img_proj": "proj_in",
    "text_emb_proj": "embedding_proj",
    "text_enc_proj": "encoder_hidden_states_proj",
    "final_ln": "norm_out",
    "out_proj": "proj_to_clip_embeddings",
}
_TEXT_PROJ = {
    "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
    "text_feat_proj": "embedding_proj",
    "text_seq_proj.0": "encoder_hidden_states_proj",
    "text_seq_proj.1": "text_encoder_hidden_states_norm",
    "clip_tok_proj": "clip_extra_context_tokens_proj",
}


def convert(state: Mapping[str, Tensor], hparams: Mapping[str, Any] | None = None) -> Converted:
    """The components in one of Karlo's three checkpoints: prior; decoder and text_proj; or both upsamplers.

    Args:
        hparams: of the checkpoint's YAML, ``model.hparams``; the published ones where None.

    Raises:
        ValueError: the state is none of the three, or not as ``hparams`` say.
    """
    kind = kind_of(state)
    hparams = PUBLISHED[kind] if hparams is None else hparams
    check_hparams(state, hparams, kind=kind)
    if kind == "prior":
        return convert_prior(state, heads=hparams["xf_heads"])
    converted = Converted(state, what=f"Karlo's {kind}")
    if kind == "decoder":
        shape = unet_shape(state, prefix="model.", what="Karlo's decoder")
        for source, target in _TEXT_PROJ.items():
            for part in ("weight", "bias"):
                converted.move(f"model.{source}.{part}", "text_proj", f"{target}.{part}")
        converted.move("model.cf_param", "text_proj", "learned_classifier_free_guidance_embeddings")
        move_unet(converted, "decoder", shape=shape, prefix="model.", head_dim=hparams["num_head_channels"])
    else:
        for component, prefix in _SUPER_RES.items():
            shape = unet_shape(state, prefix=prefix, what="Karlo's upsampler")
            move_unet(converted, component, shape=shape, prefix=prefix)
    return converted.finish()


def convert_prior(state: Mapping[str, Tensor], *, heads: int, what: str = "Karlo's prior") -> Converted:
    """``prior``, without the statistics, which are in a file of their own; Kandinsky 2.1's has the same keys.

    Raises:
        ValueError: the state is no such prior.
    """
    converted = Converted(state, what=what)
    width, _ = _find(state, "model.clip_img_proj.weight", what=what).shape
    move = partial(converted.move, component="prior")
    move("model.positional_embedding", target="positional_embedding")
    move("model.prd_emb", target="prd_embedding")
    for kind in ("weight", "bias"):
        for source, target in _PRIOR.items():
            move(f"model.{source}.{kind}", target=f"{target}.{kind}")
    move_blocks(converted, "prior", prefix="model.", head_dim=width // heads)
    return converted.finish()


def prior_config(state: Mapping[str, Tensor], *, heads: int) -> dict[str, Any]:
    """The configuration of `unclip_hub.PriorTransformer` for a prior in Karlo's keys."""
    width, embedding_dim = state["model.clip_img_proj.weight"].shape
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "num_layers": count_blocks(state, name="model.transformer.resblocks"),
        "embedding_dim": embedding_dim,
        "num_embeddings": state["model.positional_embedding"].shape[1] - 4,
    }


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the embeddings that a prior was trained on: (1, d) each.

    Raises:
        BrokenFile: the file holds no two vectors.
    """
    found = read_container(path)
    if not isinstance(found, list | tuple | Tensor) or len(found) != 2:
        raise BrokenFile(f"{path.name} must hold mean and standard deviation", remedy=AGAIN)
    vectors = [one.flatten()[None].float() for one in found if isinstance(one, Tensor)]
    if len(vectors) != 2 or vectors[0].shape != vectors[1].shape or not bool((vectors[1] > 0).all()):
        raise BrokenFile(f"{path.name} must hold a mean and a positive standard deviation", remedy=AGAIN)
    return vectors[0], vectors[1]


def kind_of(state: Mapping[str, Tensor]) -> str:
    """Which of the three checkpoints this is.

    Raises:
        ValueError: none of them.
    """
    for kind, mark in _MARKS.items():
        if mark in state:
            return kind
    shown = ", ".join(list(state)[:3])
    raise ValueError(f"this is none of Karlo's checkpoints: it has none of {', '.join(_MARKS.values())}, but {shown}")


def read_hparams(path: Path, *, kind: str) -> dict[str, Any]:
    """``model.hparams`` of one of Karlo's YAML files.

    Raises:
        ValueError: the file is no such, or of a diffusion that is not Karlo's.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        hparams, diffusion = dict(config["model"]["hparams"]), dict(config["diffusion"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        what = f"{path.name} is not one of Karlo's YAML files ({type(error).__name__}: {error})"
        raise BrokenFile(what, remedy="take it from configs/ of Karlo's code") from None
    for key, only in _DIFFUSION[kind].items():
        if diffusion.get(key, only) != only:
            raise ValueError(
                f"{path.name}: diffusion.{key} must be {only!r} for Karlo's {kind}, got {diffusion[key]!r}"
            )
    absent = [key for key in PUBLISHED[kind] if key not in hparams]
    if absent:
        raise ValueError(f"{path.name}: model.hparams must give {', '.join(absent)}")
    return hparams


def check_hparams(state: Mapping[str, Tensor], hparams: Mapping[str, Any], *, kind: str) -> None:
    """Compare a YAML with the tensors that it is about.

    Raises:
        ValueError: it is about others.
    """
    found: dict[str, Any] = {}
    if kind == "prior":
        width, clip_dim = _find(state, "model.clip_img_proj.weight", what="Karlo's prior").shape
        length = _find(state, "model.positional_embedding", what="Karlo's prior").shape[1] - 4
        found = {
            "xf_width": width,
            "clip_dim": clip_dim,
            "text_ctx": length,
            "xf_layers": count_blocks(state, name="model.transformer.resblocks"),
        }
        if hparams["xf_heads"] < 1 or width % hparams["xf_heads"]:
            raise ValueError(f"xf_heads must divide the prior's width {width}, got {hparams['xf_heads']}")
    else:
        prefix = "model." if kind == "decoder" else _SUPER_RES["super_res_first"]
        shape = unet_shape(state, prefix=prefix, what=f"Karlo's {kind}")
        width, multiples = shape.block_out_channels[0], _multiples(hparams)
        found = {"num_channels": width, "channels": width}
        found |= {"num_res_blocks": shape.layers_per_block, "depth": shape.layers_per_block}
        if multiples and [width * multiple for multiple in multiples] != list(shape.block_out_channels):
            what = f"{multiples} times {width} channels, the weights have {shape.block_out_channels}"
            raise ValueError(f"the YAML of the {kind} is of another model: it says {what}")
    if kind == "decoder":
        rows, clip_dim = _find(state, "model.clip_tok_proj.weight", what="Karlo's decoder").shape
        context = len(_find(state, "model.text_seq_proj.0.weight", what="Karlo's decoder"))
        found |= {"clip_dim": clip_dim, "xf_width": context, "clip_emb_mult": rows // context}
        if hparams["num_head_channels"] < 1:
            raise ValueError("num_head_channels must be the width of a head, a number of heads is not supported")
    for key, value in found.items():
        if hparams.get(key, value) != value:
            what = f"{key} is {hparams[key]}, the weights have {value}"
            raise ValueError(f"the YAML of the {kind} is of another model: {what}")


@conversion
@click.option("--prior", type=FILE, help="The prior's .ckpt.")
@click.option("--decoder", type=FILE, help="The decoder's .ckpt.")
@click.option("--super-res", type=FILE, help="The .ckpt of both upsamplers.")
@click.option("--statistics", type=FILE, help="ViT-L-14_stats.th.")
@click.option("--clip", type=FILE, help="OpenAI's ViT-L-14.pt.")
@click.option("--prior-config", type=FILE, help="The prior's .yaml; by default Karlo's published one.")
@click.option("--decoder-config", type=FILE, help="The decoder's .yaml.")
@click.option("--super-res-config", type=FILE, help="The upsamplers' .yaml.")
@click.option("--super-res-size", type=int, help="Picture size of the upsamplers, which no file of Karlo's holds.")
@click.option("--tokenizer", metavar="FOLDER_OR_REPO", help="A tokenizer of CLIP, or the bpe_simple_vocab file.")
def main(source: Source, target: Target, *, super_res_size: int | None, tokenizer: str | None, **files: Any) -> None:
    """Convert Karlo's original files, in FOLDER under their own names, into a folder that UnCLIPPipeline opens."""
    patterns = {
        "prior": ("prior-ckpt-step=*.ckpt", "prior.ckpt"),
        "decoder": ("decoder-ckpt-step=*.ckpt", "decoder.ckpt"),
        "super_res": ("improved-sr-ckpt-step=*.ckpt", "improved_sr.ckpt"),
        "statistics": ("ViT-L-14_stats.th", "*_stats.th"),
        "clip": ("ViT-L-14.pt", "ViT-*.pt"),
    }
    flags = {name: f"--{name.replace('_', '-')}" for name in patterns}
    paths = {name: source.find(*patterns[name], flag=flags[name], given=files[name]) for name in patterns}
    yamls = {"prior": "prior*.yaml", "decoder": "decoder*.yaml", "super_res": "improved_sr*.yaml"}
    with target.open("karlo") as folder:
        hparams = {}
        for kind, pattern in yamls.items():
            path = source.look(pattern, flag=f"{flags[kind]}-config", given=files[f"{kind}_config"])
            hparams[kind] = PUBLISHED[kind] if path is None else read_hparams(path, kind=kind)
            if path is None and PUBLISHED[kind]:
                folder.note(f"no YAML of the {kind}: Karlo's published {PUBLISHED[kind]} is used")
        add_encoders(folder, source, paths["clip"], tokenizer=tokenizer)
        add_prior(folder, paths["prior"], statistics=paths["statistics"], hparams=hparams["prior"])
        add_decoder(folder, paths["decoder"], hparams=hparams["decoder"])
        small = hparams["decoder"]["image_size"]
        size = super_res_size or _recorded_size(source) or 4 * small
        add_super_res(folder, paths["super_res"], hparams=hparams["super_res"], sample_size=size)
        folder.write_index("UnCLIPPipeline")


def add_encoders(folder: OutputFolder, source: Source, path: Path, *, tokenizer: str | None) -> None:
    """Both encoders of CLIP, the tokenizer, and what prepares pictures."""
    state = plain(read_state(path))
    options = openai_options(state)
    converted = convert_clip(state)
    folder.account(path, converted)
    text = add_clip(folder, state, options=options, converted=converted)
    folder.add_processor("feature_extractor", image_processor(vision_config(state, options)["image_size"]))
    add_tokenizer(folder, source, given=tokenizer, text_config=text)


def add_prior(folder: OutputFolder, path: Path, *, statistics: Path, hparams: Mapping[str, Any]) -> None:
    """The prior with its statistics, and its scheduler."""
    state = read_part(path, kind="prior")
    converted = convert(state, hparams)
    for key, vector in zip(("clip_mean", "clip_std"), read_statistics(statistics), strict=True):
        converted.compute("prior", key, vector, how=f"from {statistics.name}")
    config = prior_config(state, heads=hparams["xf_heads"])
    folder.add_model("prior", PriorTransformer, config, converted["prior"])
    folder.account(path, converted)
    folder.add_scheduler("prior_scheduler", UnCLIPScheduler(prediction_type="sample", clip_sample_range=PRIOR_CLAMP))


def add_decoder(folder: OutputFolder, path: Path, *, hparams: Mapping[str, Any]) -> None:
    """The decoder, what prepares its conditioning, and its scheduler."""
    state = read_part(path, kind="decoder")
    converted = convert(state, hparams)
    shape = unet_shape(state, prefix="model.", what="Karlo's decoder")
    rows, clip_dim = state["model.clip_tok_proj.weight"].shape
    text_proj = {
        "clip_extra_context_tokens": rows // (shape.cross_attention_dim or rows),
        "clip_embeddings_dim": clip_dim,
        "time_embed_dim": len(state["model.time_embed.2.weight"]),
        "cross_attention_dim": shape.cross_attention_dim,
    }
    config = decoder_config(shape, sample_size=hparams["image_size"], head_dim=hparams["num_head_channels"])
    folder.add_model("text_proj", UnCLIPTextProjModel, text_proj, converted["text_proj"])
    folder.add_model("decoder", UNet2DConditionModel, config, converted["decoder"])
    folder.account(path, converted)
    folder.add_scheduler("decoder_scheduler", UnCLIPScheduler(variance_type="learned_range"))


def add_super_res(folder: OutputFolder, path: Path, *, hparams: Mapping[str, Any], sample_size: int) -> None:
    """Both networks of the upsampler, and their scheduler."""
    state = read_part(path, kind="super_res")
    converted = convert(state, hparams)
    folder.account(path, converted)
    for component, prefix in _SUPER_RES.items():
        shape = unet_shape(state, prefix=prefix, what="Karlo's upsampler")
        config = upsampler_config(shape, sample_size=sample_size)
        folder.add_model(component, UNet2DModel, config, converted.pop(component))
    folder.add_scheduler("super_res_scheduler", UnCLIPScheduler())


def read_part(path: Path, *, kind: str) -> dict[str, Tensor]:
    """The state of one of the three checkpoints.

    Raises:
        ValueError: the file holds another one, or none.
    """
    state = read_state(path, stubs=_TRAINERS)
    try:
        found = kind_of(state)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if found != kind:
        raise ValueError(f"{path.name} holds Karlo's {found}, expected the {kind}: files were swapped or renamed")
    return state


def _recorded_size(source: Source) -> int | None:
    """``sr_size`` of a meta.json beside the checkpoints: Karlo's own code has 256 px in it, and no file says so."""
    path = None if source.folder is None else source.folder / "meta.json"
    return read_json(path).get("sr_size") if path is not None and path.is_file() else None


def _multiples(hparams: Mapping[str, Any]) -> list[int]:
    given = hparams.get("channel_mult") or hparams.get("channels_multiple") or ()
    return [int(multiple) for multiple in (given.split(",") if isinstance(given, str) else given)]


def _find(state: Mapping[str, Tensor], key: str, *, what: str) -> Tensor:
    if key not in state:
        raise ValueError(f"this is not {what}: it has no {key}")
    return state[key]


if __name__ == "__main__":
    main()
