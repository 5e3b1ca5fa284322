"""`unclip train`: each network on one's own pictures."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unclip_hub import BUNDLED_MODEL
from unclip_hub.cli import plain_errors


if TYPE_CHECKING:
    from unclip_hub.training.runs import Frozen, Run

NETWORKS = ["clip", "prior", "decoder", "upsampler", "dvae"]
STAND_ALONE = ("clip", "dvae")  # what completes no other model
TOKENIZER_OF = 20_000  # captions


@click.command(name="train")
@click.argument("network", type=click.Choice(NETWORKS))
@click.option(
    "--data", required=True, metavar="DATA", help="Pictures with captions; its forms: unclip data check --help."
)
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), required=True, help="Of the run.")
@click.option("--config", metavar="NAME_OR_YAML", help="Shipped settings (tiny, karlo, paper, ...) or a YAML file.")
@click.option("--kind", metavar="KIND", help="Of a prior: diffusion, autoregressive, one_step, flow or gaussian.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting: --set train.lr=1e-4")
@click.option("--base", metavar="FOLDER_OR_REPO", help="The model that is completed. [default: the bundled model]")
@click.option("--embeddings", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Of `unclip embed`.")
@click.option("--exclude", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Leave these keys out.")
@click.option("--dry-run", is_flag=True, help="Say how large it is and what memory it takes, and stop.")
@click.option("--proof-steps", type=click.IntRange(min=0), default=200, help="Of the check before it. [default: 200]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    network: str,
    *,
    data: str,
    output: Path,
    config: str | None,
    kind: str | None,
    changes: tuple[str, ...],
    base: str | None,
    embeddings: Path | None,
    exclude: Path | None,
    dry_run: bool,
    proof_steps: int,
    debug: bool,
) -> None:
    """Train NETWORK and leave a model that every command opens, with a report.

    Interrupted at any moment, the same command continues. Before the run a check must pass: the network learns one
    batch, and its loss depends on the captions or pictures that condition it.

    \b
    OUTPUT/model         the base model with the trained network in its place
    OUTPUT/lora          instead, with --set lora_rank=8: an adapter for load_lora_weights
    OUTPUT/report.md     curves, samples, numbers
    OUTPUT/checkpoints   what continues from

    Example: unclip train prior --data photos --output runs/prior --set train.steps=5000
    """
    with plain_errors(debug=debug):
        from unclip_hub.training.settings import read_settings

        if kind is not None:
            if network != "prior":
                raise ValueError(f"--kind is a prior's, {network} has only one")
            changes = (f"kind={kind}", *changes)
        settings = read_settings(network, config=config, changes=changes)
        if dry_run:
            gaussian = network == "prior" and settings.kind == "gaussian"
            click.echo(_size_of_a_fit(settings, base=base) if gaussian else _size(network, settings))
            return
        from unclip_hub.hub.locate import locate
        from unclip_hub.training.conduct import conduct

        folder = locate(base or BUNDLED_MODEL)
        run = _prepared(network, settings, data, folder=folder, embeddings=embeddings, exclude=exclude, output=output)
        typed = [network, "--data", data, "--output", str(output)]
        named = {"--config": config, "--base": base, "--embeddings": embeddings, "--exclude": exclude}
        typed += [text for name, value in named.items() if value is not None for text in (name, str(value))]
        typed += [text for change in changes for text in ("--set", change)]
        bundled = "none" if network in STAND_ALONE else "the bundled model"
        facts = {"command": f"unclip train {shlex.join(typed)}", "data": data, "base": base or bundled}
        completed = None if network in STAND_ALONE else folder
        conduct(run, settings, output=output, base=completed, facts=facts, proof_steps=proof_steps)
        click.echo(output / "report.md")


def _prepared(
    network: str,
    settings: Any,
    data: str,
    *,
    folder: Path,
    embeddings: Path | None,
    exclude: Path | None,
    output: Path,
) -> "Run":
    from unclip_hub.data.embeddings import Embeddings
    from unclip_hub.data.sources import open_data
    from unclip_hub.models.decoder import UNet2DConditionModel
    from unclip_hub.models.dvae import DVAE
    from unclip_hub.models.text_proj import UnCLIPTextProjModel
    from unclip_hub.models.upsampler import UNet2DModel
    from unclip_hub.training import prior_runs, runs

    source = open_data(data, exclude=exclude)
    if isinstance(source, Embeddings) and network != "prior":
        raise ValueError(
            f"{data} holds embeddings, and {network} is trained on pictures: give those, and --embeddings"
        )
    if network == "clip":
        return runs.clip(settings, source, tokenizer=_tokenizer(source, settings, output=output))
    from_base = getattr(settings, "start", "scratch") != "scratch"  # a Gaussian prior has nothing to start from

    def component(cls: Any, name: str) -> Any:
        return cls.from_pretrained(folder, subfolder=name) if from_base and (folder / name).is_dir() else None

    if network == "upsampler":
        name = "super_res_first" if settings.size <= 256 or settings.start == "first" else "super_res_1024"
        redraw = _redraw(folder, size=settings.size // 4) if settings.degradation == "redrawn" else None
        return runs.upsampler(settings, source, base=component(UNet2DModel, name), redraw=redraw)
    if network == "dvae":
        return runs.dvae(settings, source, base=component(DVAE, "dvae"))
    frozen = _frozen(folder)
    if network == "prior":
        trained = prior_runs.CLASSES[settings.kind]
        if from_base:
            _same_class(folder, "prior", trained)
        return prior_runs.prior(settings, source, frozen=frozen, base=component(trained, "prior"))
    parts = component(UNet2DConditionModel, "decoder"), component(UnCLIPTextProjModel, "text_proj")
    own = None if None in parts else parts
    cached = None if embeddings is None else Embeddings(embeddings)
    return runs.decoder(settings, source, frozen=frozen, base=own, embeddings=cached)


def _same_class(folder: Path, name: str, trained: type) -> None:
    """Refuse a base whose component is another kind: read as this one, it would be a network without its weights."""
    from unclip_hub.hub.weights import read_json

    there = read_json(folder / "model_index.json").get(name, (None, trained.__name__))[1]
    if there != trained.__name__:
        raise ValueError(f"start is 'base', but the base model's {name} is a {there}, expected a {trained.__name__}")


def _frozen(folder: Path) -> "Frozen":
    """CLIP of the base model, as the pipelines see pictures and captions."""
    import torch

    from unclip_hub.pipelines.encoders import CLIPEncoders
    from unclip_hub.training.runs import Frozen, this_process

    encoders: CLIPEncoders = CLIPEncoders.from_pretrained(folder).to(this_process().device)

    @torch.no_grad()
    def encode_text(captions: list[str]) -> Any:
        return encoders.encode_text(captions)

    @torch.no_grad()
    def encode_image(pixels: torch.Tensor) -> torch.Tensor:
        return encoders.encode_image(pixels / 2 + 0.5)

    assert encoders.image_encoder is not None
    size: Any = encoders.image_encoder.config.image_size
    return Frozen(encode_text, encode_image, size)


def _redraw(folder: Path, *, size: int) -> Any:
    """The degradation by the decoder of the base model."""
    from functools import partial

    from unclip_hub.pipelines.image_to_image import UnCLIPImageToImagePipeline
    from unclip_hub.training.degradations import redrawn
    from unclip_hub.training.runs import this_process

    unused = dict.fromkeys(("prior", "prior_scheduler", "super_res_first", "super_res_last", "super_res_1024"))
    pipe = UnCLIPImageToImagePipeline.from_pretrained(folder, **unused)
    side = pipe.decoder.config["sample_size"]
    if side != size:
        raise ValueError(f"the base model's decoder draws {side} px, expected a quarter of the upsampler's, {size}")
    pipe.set_progress_bar_config(disable=True)
    return partial(redrawn, pipe=pipe.to(this_process().device))


def _tokenizer(source: Any, settings: Any, *, output: Path) -> Any:
    """Learned from the captions that come first; kept in ``output``, as learning it again could number tokens anew."""
    from itertools import islice

    from transformers import CLIPTokenizer

    from unclip_hub.data.captioned import BrokenSample
    from unclip_hub.data.sources import in_order
    from unclip_hub.training.presets import context_length
    from unclip_hub.training.tokenizer import train_tokenizer

    kept = output / "tokenizer"
    if not kept.exists():
        samples = (sample for sample, _ in islice(in_order(source), TOKENIZER_OF))
        captions = (text for sample in samples if not isinstance(sample, BrokenSample) for text in sample.captions)
        length = context_length(settings.preset)
        learned = train_tokenizer(captions, context_length=length, vocab_size=settings.vocabulary)
        partial = output / "tokenizer.partial"
        learned.save_pretrained(partial)
        partial.rename(kept)
    return CLIPTokenizer.from_pretrained(kept)


def _size(network: str, settings: Any) -> str:
    """What a training would take, counted without weights."""
    import torch
    from torch import nn

    from unclip_hub.training import presets
    from unclip_hub.training.memory import dry_run, memory_estimate
    from unclip_hub.training.prior_runs import FRESH

    with torch.device("meta"):
        if network == "clip":
            parts = {"text_encoder": presets.new_text_encoder(settings.preset)}
            parts |= {"image_encoder": presets.new_image_encoder(settings.preset)}
        elif network == "prior":
            parts = {"prior": FRESH[settings.kind](settings.preset)}
        elif network == "decoder":
            decoder, text_proj = presets.new_decoder(settings.preset)
            parts = {"decoder": decoder, "text_proj": text_proj}
        elif network == "dvae":
            parts = {"dvae": presets.new_dvae(settings.preset)}
        else:
            parts = {"upsampler": presets.new_upsampler(settings.preset, size=settings.size)}
        modules = nn.ModuleDict(parts)
        edge = settings.crop if network == "upsampler" else settings.size if network == "dvae" else None
        forward = dry_run(modules, batch_size=settings.batch, crop=edge)
        memory = memory_estimate(
            modules, forward=forward, precision="no" if settings.train.precision == "no" else "bf16"
        )
    parameters = sum(p.numel() for p in modules.parameters())
    views = settings.train.steps * settings.batch * settings.train.accumulate
    return f"{parameters / 1e6:.1f} million parameters, {views:,} views a process\nmemory, one process: {memory}"


def _size_of_a_fit(settings: Any, *, base: str | None) -> str:
    """What fitting a Gaussian prior would take; its widths are those of the base's CLIP."""
    import torch
    from transformers import AutoConfig

    from unclip_hub.hub.locate import locate
    from unclip_hub.models.gaussian_prior import GaussianPrior

    folder = locate(base or BUNDLED_MODEL)
    text: Any = AutoConfig.from_pretrained(folder / "text_encoder")
    with torch.device("meta"):
        states = text.hidden_size if settings.text_states else None
        prior = GaussianPrior(text.projection_dim, text_states_dim=states)
    parameters = sum(p.numel() for p in prior.parameters())
    sums = 8 * (prior.mean.in_features + prior.embedding_dim) ** 2
    return (
        f"{parameters / 1e6:.1f} million parameters, one pass over the data\n"
        f"memory, one process: weights {4 * parameters / 1e9:.2f} GB  sums {sums / 1e9:.2f} GB"
    )
