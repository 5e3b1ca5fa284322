"""What `unclip inpaint` and `unclip outpaint` share."""

from pathlib import Path
from typing import Any

import click

from unclip_hub.cli import options


WEIGHTED = click.option("--weighted", is_flag=True, help='Read "(red:1.4)" in the prompt as red, 1.4 times as strong.')
IMAGE_WEIGHT = click.option(
    "--image-weight",
    type=click.FloatRange(0, 1),
    callback=options.finite,
    default=0.0,
    help="From 0, the prompt's image embedding, to 1, the picture's own. [default: 0]",
)

painting = options.several(
    click.option("--num-images", "-n", type=click.IntRange(min=1), default=1, help="[default: 1]"),
    click.option("--separate", is_flag=True, help="Also write each picture on its own: NAME-1.png, NAME-2.png, ..."),
    click.option("--resampling", type=click.IntRange(min=1), help="How often each step is run, to settle."),
    IMAGE_WEIGHT,
    WEIGHTED,
    options.seed,
    options.negative,
    options.decoder_steps,
    options.prior_steps,
    options.upsampler_steps,
    options.decoder_guidance,
    options.prior_guidance,
    options.model,
)


def prompted(pipe: Any, prompt: str, *, weighted: bool) -> dict[str, Any]:
    """The prompt as a pipeline takes it."""
    return {"prompt_embeds": pipe.encode_text(prompt, weighted=True)} if weighted else {"prompt": prompt}


def repaint(
    image: Any,
    mask: Any,
    prompt: str,
    *,
    output: Path,
    num_images: int,
    separate: bool,
    weighted: bool,
    seed: int,
    negative: str | None,
    model: str | None,
    device: str,
    dtype: str,
    quiet: bool,
    resampling: int | None,
    **sampling: Any,
) -> None:
    """Repaint, write, and say where."""
    from unclip_hub.pipelines.inpaint import UnCLIPInpaintPipeline

    pipe = options.load(UnCLIPInpaintPipeline, options.locate(model), device=device, dtype=dtype, quiet=quiet)
    if resampling is not None:
        sampling["resampling"] = resampling
    made = pipe(
        image,
        mask,
        **prompted(pipe, prompt, weighted=weighted),
        negative_prompt=negative,
        num_images_per_prompt=num_images,
        generator=options.generators(seed, num_images),
        **sampling,
    )
    for path in options.write(made.images, output, columns=num_images, separate=separate):
        click.echo(path)
