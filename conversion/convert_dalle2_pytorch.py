"""Priors and decoders of lucidrains' DALLE2-pytorch, LAION's among them → ours.

    python conversion/convert_dalle2_pytorch.py FOLDER --output OUT

FOLDER holds a prior, a decoder, or both: checkpoints of its trainers, a tracker's models, bare state dicts, the
``dalle2.pt`` of its command line; with ``prior_config.json`` and ``decoder_config.json`` where the files themselves do
not tell their options. Moving averages are preferred.

The networks are not Karlo's; they become `DALLE2PytorchPrior`, `DALLE2PytorchUNet` and `DALLE2PytorchProjection`, and
`DALLE2PytorchScheduler` samples as DALLE2-pytorch did. With a decoder the result is the folder of a `UnCLIPPipeline`,
but for CLIP (ViT-L/14 for LAION's), which ``convert_clip.py`` makes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import dalle2_pytorch_release as releases
from command import FILE, Source, Target, conversion
from dalle2_pytorch_files import Checkpoint, read_decoder, read_prior
from dalle2_pytorch_prior import convert_prior, prior_config, prior_scheduler_config
from dalle2_pytorch_release import Release
from dalle2_pytorch_unet import (
    COMPONENTS,
    PROJECTIONS,
    convert_decoder,
    count_unets,
    decoder_scheduler_config,
    projection_config,
    sample_timesteps,
    unet_config,
)
from folder import OutputFolder
from ledger import Converted
from torch import Tensor

from unclip_hub.models.dalle2_pytorch_prior import DALLE2PytorchPrior
from unclip_hub.models.dalle2_pytorch_projection import DALLE2PytorchProjection
from unclip_hub.models.dalle2_pytorch_unet import DALLE2PytorchUNet
from unclip_hub.schedulers.dalle2_pytorch import DALLE2PytorchScheduler


PRIORS = (
    "prior_checkpoint.pth", "prior_model.pth", "prior_latest.pth", "prior_aes_finetune.pth", "prior*.pth",
    "ema855M.pth", "prior/latest.pth", "prior/best.pth", "prior/*.pth", "dalle2.pt",
)  # fmt: skip
DECODERS = (
    "decoder_checkpoint.pth", "decoder_model.pth", "decoder_latest.pth", "decoder*.pth",
    "decoder/latest.pth", "decoder/*/latest.pth", "decoder/*.pth", "dalle2.pt",
)  # fmt: skip
SCHEDULERS = ("decoder_scheduler", "super_res_scheduler", "super_res_1024_scheduler")
_STEPS = ("decoder_num_inference_steps", "super_res_num_inference_steps")


@conversion
@click.option("--prior", type=FILE, help="The file with the prior.")
@click.option("--prior-config", type=FILE, help="Its options, as JSON.")
@click.option("--decoder", type=FILE, help="The file with the decoder.")
@click.option("--decoder-config", type=FILE, help="Its options, as JSON.")
@click.option("--image-size", type=int, multiple=True, help="Of each U-Net's pictures, where no options tell.")
@click.option("--version", help="The release of DALLE2-pytorch they were trained with, where no file names it.")
def main(
    source: Source,
    target: Target,
    *,
    prior: Path | None,
    prior_config: Path | None,
    decoder: Path | None,
    decoder_config: Path | None,
    image_size: tuple[int, ...],
    version: str | None,
) -> None:
    """Convert a prior, a decoder or both of DALLE2-pytorch."""
    given = None if version is None else releases.parse(version)
    prior = source.look(*PRIORS, flag="--prior", given=prior)
    decoder = source.look(*DECODERS, flag="--decoder", given=decoder)
    if prior is None and decoder is None:
        source.find(*PRIORS, *DECODERS, flag="--prior or --decoder")
    described = [
        source.look(f"{what}_config.json", f"{what}/*config.json", flag=f"--{what}-config", given=flag)
        for what, flag in (("prior", prior_config), ("decoder", decoder_config))
    ]
    with target.open("DALLE2-pytorch") as folder:
        # tensors are views of the mapped files: opening both costs no memory
        priors = [] if prior is None else [read_prior(prior, config=described[0])]
        decoders = [] if decoder is None else [read_decoder(decoder, config=described[1])]
        named = next((one.release for one in priors + decoders if one.release), None)
        written, defaults = [], {"prior_guidance_scale": 1.0, "decoder_guidance_scale": 1.0}
        for found in priors:
            release = _release(folder, "prior", found, given=given, named=named, told=releases.of_prior(found.state))
            written.append((found, _write_prior(folder, found, release=release, defaults=defaults)))
        for found in decoders:
            told = releases.of_decoder({key: tuple(tensor.shape) for key, tensor in found.state.items()})
            release = _release(folder, "decoder", found, given=given, named=named, told=told)
            written.append(
                (found, _write_decoder(folder, found, release=release, defaults=defaults, sizes=image_size))
            )
            folder.write_index("UnCLIPPipeline", config={"sampling_defaults": defaults})
        _account(folder, written)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """A state dict of `DALLE2`, `DiffusionPrior` or `Decoder` as components."""
    parts = {
        kind: {key.removeprefix(f"{kind}."): t for key, t in state.items() if key.startswith(f"{kind}.")}
        for kind in ("prior", "decoder")
    }
    if not any(parts.values()):
        return convert_prior(state) if "net.learned_query" in state else convert_decoder(state)
    made = Converted({}, what="DALLE2-pytorch's networks")
    for one in (convert_prior(parts["prior"]), convert_decoder(parts["decoder"])):
        made.update(one)
        made.fates.update(one.fates)
    return made


def _write_prior(folder: OutputFolder, found: Checkpoint, *, release: Release, defaults: dict[str, Any]) -> Converted:
    """The prior and its scheduler; its steps join the sampling defaults."""
    state, options = found.state, found.options
    converted = convert_prior(state)
    config = prior_config(state, options, release=release)
    folder.add_model("prior", DALLE2PytorchPrior, config, converted["prior"])
    scheduler = DALLE2PytorchScheduler(**prior_scheduler_config(state, options, release=release))
    folder.add_scheduler("prior_scheduler", scheduler)
    if config["unconditional"] == "none":
        folder.note("this prior's release had no unconditional pass: use a prior_guidance_scale of 1")
    if (1, 9) <= release < (1, 10, 3):
        folder.note("in this prior's release the unconditional pass kept the caption's embedding, here it does not")
    defaults["prior_num_inference_steps"] = _steps(options.get("sample_timesteps"), scheduler)
    return converted


def _write_decoder(
    folder: OutputFolder, found: Checkpoint, *, release: Release, defaults: dict[str, Any], sizes: Sequence[int]
) -> Converted:
    """Every U-Net with its projection and its scheduler; their steps join the sampling defaults."""
    state, name = found.state, found.path.name
    options = {**found.options, "image_sizes": list(sizes)} if sizes else found.options
    converted = convert_decoder(state)
    if not found.options:
        folder.note(f"no options of {name} were found; what its shapes do not tell has DALLE2-pytorch's defaults")
    for i in range(count_unets(state)):
        config, projection = unet_config(state, i, options, release=release), projection_config(state, i)
        if config["sample_size"] is None:
            raise ValueError(f"no options tell the size of {name}'s pictures: --image-size 64 gives it")
        folder.add_model(COMPONENTS[i], DALLE2PytorchUNet, config, converted[COMPONENTS[i]])
        if projection is not None:
            folder.add_model(PROJECTIONS[i], DALLE2PytorchProjection, projection, converted[PROJECTIONS[i]])
        if i and projection is not None:
            folder.note(f"{COMPONENTS[i]} reads the caption, which no pipeline gives an upsampler")
        scheduler = DALLE2PytorchScheduler(**decoder_scheduler_config(state, i, options, release=release))
        folder.add_scheduler(SCHEDULERS[i], scheduler)
        if i < len(_STEPS):
            defaults[_STEPS[i]] = _steps(sample_timesteps(options, i), scheduler)
    return converted


def _release(
    folder: OutputFolder,
    what: str,
    found: Checkpoint,
    *,
    given: Release | None,
    named: Release | None,
    told: Release | None,
) -> Release:
    """The release that decides on one file's numbers; that of the file beside it only where its own keys allow it."""
    what = f"the {what} in {found.path.name}"
    release = releases.decide(what, given=given, written=found.release or (None if told else named), told=told)
    sources = {"as given": given, "as it says": found.release, "as its keys tell": told}
    source = next((words for words, one in sources.items() if one), "as the file beside it says")
    folder.note(f"{what} is taken as of release {releases.shown(release)}, {source}")
    return release


def _steps(chosen: int | None, scheduler: DALLE2PytorchScheduler) -> int:
    return chosen or scheduler.config["num_train_timesteps"]


def _account(folder: OutputFolder, written: Sequence[tuple[Checkpoint, Converted]]) -> None:
    """The fates of every file's keys; one file may have held both networks."""
    for path in dict.fromkeys(found.path for found, _ in written):
        whole = Converted({}, what="DALLE2-pytorch's networks")
        for found, converted in written:
            if found.path == path:
                whole.fates |= {found.prefix + key: fate for key, fate in converted.fates.items()}
        folder.account(path, whole)


if __name__ == "__main__":
    main()
