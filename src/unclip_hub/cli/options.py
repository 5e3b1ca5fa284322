"""What the commands that make pictures share: options, and opening a model, reading and writing pictures for them."""

import math
import os
import re
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import click
from PIL import Image

from unclip_hub import BUNDLED_MODEL


SEED = click.IntRange(0, 2**63 - 1)
STEPS = click.IntRange(min=1)
DTYPES = ["float32", "bfloat16", "float16"]
LATENT = ".safetensors"


def several(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decorators as one, applied as if they stood above each other."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """A callback that refuses NaN and infinity, which click's ranges let through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def guidance(*names: str, help: str) -> Any:
    """An option for a guidance scale."""
    return click.option(*names, type=click.FloatRange(min=0), callback=finite, help=help)


def output(default: str) -> Any:
    """Where to write."""
    return click.option(
        "--output", "-o", type=click.Path(path_type=Path), default=default, help=f"[default: {default}]"
    )


seed = click.option("--seed", type=SEED, default=0, help="Of the first picture; the next has seed + 1. [default: 0]")
negative = click.option("--negative", metavar="TEXT", help="What to guide away from.")
decoder_steps = click.option(
    "--steps", "--decoder-steps", "decoder_num_inference_steps", type=STEPS, help="Steps of the decoder."
)
prior_steps = click.option("--prior-steps", "prior_num_inference_steps", type=STEPS, help="Steps of the prior.")
upsampler_steps = click.option(
    "--upsampler-steps", "super_res_num_inference_steps", type=STEPS, help="Steps of the upsampler."
)
size = click.option(
    "--size", "output_size", type=click.IntRange(min=1), help="Side in px: what a stage of the model makes, as 256."
)
decoder_guidance = guidance("--guidance", "decoder_guidance_scale", help="Guidance scale of the decoder; 1 is none.")
prior_guidance = guidance("--prior-guidance", "prior_guidance_scale", help="Guidance scale of the prior; 1 is none.")
exact = click.option("--exact", is_flag=True, help="Invert the picture exactly, not as well as DDIM can.")
model = several(
    click.option(
        "--model", metavar="FOLDER_OR_REPO", help="A model on disk or on the Hub. [default: the bundled one]"
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="[default: auto]"),
    click.option("--dtype", type=click.Choice(DTYPES), default="float32", help="[default: float32]"),
    click.option("--quiet", "-q", is_flag=True, help="No progress bars."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)


def check_output(path: Path) -> None:
    """Refuse a picture's name that cannot be written, before anything is computed."""
    try:
        Image.new("RGB", (64, 64)).save(BytesIO(), format=_format(path))
    except (KeyError, OSError, ValueError):
        raise click.UsageError(f"cannot write {path}: expected a name in .png, .jpg, .webp or the like") from None
    check_place(path)


def check_place(path: Path) -> None:
    """Refuse a name where no file can be written."""
    if path.is_dir():
        raise click.UsageError(f"cannot write {path}: it is a folder")
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {folder}: {error.strerror}") from None


def locate(model: str | None) -> str:
    """The folder or repository of a model, by default the bundled one's."""
    if model is None and not Path(BUNDLED_MODEL).is_dir():
        raise click.ClickException("this installation has no bundled model: choose one with --model")
    if model is None or Path(model).is_dir() or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        return model or BUNDLED_MODEL
    raise click.ClickException(f"no model {model!r}: expected a folder, or OWNER/NAME on the Hub")


def load(pipeline: Any, model: str, *, device: str, dtype: str, quiet: bool) -> Any:
    """A model opened in a pipeline, a class of ours."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from unclip_hub import keep_freed_memory

    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("PyTorch finds no CUDA device here: use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    if quiet:
        transformers_logging.disable_progress_bar()
        diffusers_logging.disable_progress_bar()
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # what is wrong with a model is told in one line: ours
    try:
        pipe = pipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    finally:
        diffusers_logging.set_verbosity(verbosity)
    pipe.set_progress_bar_config(disable=quiet)
    return pipe


def generators(seed: int, count: int) -> list[Any]:
    """One for each picture, and on the CPU whatever the device: a seed is the same noise alone, in a grid, on GPUs."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed + i) for i in range(count)]


def read(path: str | Path) -> Any:
    """A picture or, from a file that ``unclip invert`` wrote, its latent."""
    from unclip_hub.images import read_picture
    from unclip_hub.pipelines.inversion import BipartiteLatent

    return BipartiteLatent.load(path) if Path(path).suffix == LATENT else read_picture(path)


def write(images: list[Image.Image], path: Path, *, columns: int, separate: bool) -> list[Path]:
    """Write pictures as one grid and, if ``separate``, each on its own; returns the files' names."""
    from unclip_hub.images import grid

    files = {path: images[0] if len(images) == 1 else grid(images, columns)}
    if separate:
        for i, image in enumerate(images, start=1):
            files[path.with_name(f"{path.stem}-{i}{path.suffix}")] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, image in files.items():
        _write_atomically(image, name)
    return list(files)


def _write_atomically(image: Image.Image, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            image.save(file, format=_format(path))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _format(path: Path) -> str:
    return Image.registered_extensions()[path.suffix.lower()]
