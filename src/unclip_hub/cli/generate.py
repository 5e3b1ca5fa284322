"""`unclip generate`: captions to pictures."""

import math
import os
import re
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import click
from PIL import Image

from unclip_hub import BUNDLED_MODEL
from unclip_hub.cli import plain_errors


SEED = click.IntRange(0, 2**63 - 1)
STEPS = click.IntRange(min=1)
DTYPES = ["float32", "bfloat16", "float16"]


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def _guidance(*names: str, help: str) -> Any:
    return click.option(*names, type=click.FloatRange(min=0), callback=_finite, help=help)


@click.command(name="generate")
@click.argument("captions", metavar="CAPTION...", nargs=-1, required=True)
@click.option("--output", "-o", type=click.Path(path_type=Path), default="out.png", help="[default: out.png]")
@click.option("--num-images", "-n", type=click.IntRange(min=1), default=1, help="Pictures per caption. [default: 1]")
@click.option("--separate", is_flag=True, help="Also write each picture on its own: out-1.png, out-2.png, ...")
@click.option("--seed", type=SEED, default=0, help="Of the first picture; the next has seed + 1. [default: 0]")
@click.option("--negative", metavar="TEXT", help="What to guide away from.")
@click.option("--steps", "--decoder-steps", "decoder_num_inference_steps", type=STEPS, help="Steps of the decoder.")
@click.option("--prior-steps", "prior_num_inference_steps", type=STEPS, help="Steps of the prior.")
@click.option("--upsampler-steps", "super_res_num_inference_steps", type=STEPS, help="Steps of the upsampler.")
@_guidance("--guidance", "decoder_guidance_scale", help="Guidance scale of the decoder; 1 is none.")
@_guidance("--prior-guidance", "prior_guidance_scale", help="Guidance scale of the prior; 1 is none.")
@click.option("--model", metavar="FOLDER_OR_REPO", help="A model on disk or on the Hub. [default: the bundled one]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="[default: auto]")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", help="[default: float32]")
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    captions: tuple[str, ...],
    *,
    output: Path,
    num_images: int,
    separate: bool,
    seed: int,
    negative: str | None,
    model: str | None,
    device: str,
    dtype: str,
    quiet: bool,
    debug: bool,
    **sampling: Any,
) -> None:
    """Generate a picture for each CAPTION.

    Several pictures are written as one grid, a row for each caption. Steps and guidance scales that are not given are
    the model's own.

    Example: unclip generate "a red cube on a beach" --output cube.png --seed 7
    """
    _check_output(output)
    with plain_errors(debug=debug):
        pipe = _load(_locate(model), device=device, dtype=dtype, quiet=quiet)
        images = _sample(pipe, list(captions), negative=negative, num_images=num_images, seed=seed, **sampling)
        for path in _write(images, output, columns=num_images, separate=separate):
            click.echo(path)


def _check_output(output: Path) -> None:
    try:
        Image.new("RGB", (64, 64)).save(BytesIO(), format=_format(output))
    except (KeyError, OSError, ValueError):
        raise click.UsageError(f"cannot write {output}: expected a name in .png, .jpg, .webp or the like") from None
    if output.is_dir():
        raise click.UsageError(f"cannot write {output}: it is a folder")
    folder = next(parent for parent in output.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise click.UsageError(f"cannot write {output}: {folder}: {error.strerror}") from None


def _locate(model: str | None) -> str:
    if model is None and not Path(BUNDLED_MODEL).is_dir():
        raise click.ClickException("this installation has no bundled model: choose one with --model")
    if model is None or Path(model).is_dir() or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        return model or BUNDLED_MODEL
    raise click.ClickException(f"no model {model!r}: expected a folder, or OWNER/NAME on the Hub")


def _load(model: str, *, device: str, dtype: str, quiet: bool) -> Any:
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from unclip_hub.pipelines.text_to_image import UnCLIPPipeline

    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("PyTorch finds no CUDA device here: use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if quiet:
        transformers_logging.disable_progress_bar()
        diffusers_logging.disable_progress_bar()
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # what is wrong with a model is told in one line: ours
    try:
        pipe = UnCLIPPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    finally:
        diffusers_logging.set_verbosity(verbosity)
    pipe.set_progress_bar_config(disable=quiet)
    return pipe


def _sample(
    pipe: Any, captions: list[str], *, negative: str | None, num_images: int, seed: int, **sampling: Any
) -> list[Image.Image]:
    import torch

    count = len(captions) * num_images
    # one for each picture, and on the CPU whatever the device: a seed is the same noise alone, in a grid and on a GPU
    generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(count)]
    return pipe(
        captions,
        negative_prompt=None if negative is None else [negative] * len(captions),
        num_images_per_prompt=num_images,
        generator=generators,
        output_type="pil",
        **sampling,
    ).images


def _write(images: list[Image.Image], output: Path, *, columns: int, separate: bool) -> list[Path]:
    from unclip_hub.images import grid

    files = {output: images[0] if len(images) == 1 else grid(images, columns)}
    if separate:
        for i, image in enumerate(images, start=1):
            files[output.with_name(f"{output.stem}-{i}{output.suffix}")] = image
    output.parent.mkdir(parents=True, exist_ok=True)
    for path, image in files.items():
        _write_atomically(image, path)
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
