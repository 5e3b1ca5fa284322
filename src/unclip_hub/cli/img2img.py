"""`unclip img2img`: a picture as a prompt would have it."""

from pathlib import Path
from typing import Any

import click

from unclip_hub.cli import options, plain_errors
from unclip_hub.cli.painting import IMAGE_WEIGHT, WEIGHTED, prompted


@click.command(name="img2img")
@click.argument("image", metavar="PICTURE")
@click.argument("prompt")
@options.output("img2img.png")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    callback=options.finite,
    default=0.7,
    help="Near 0 keeps the picture, 1 ignores it. [default: 0.7]",
)
@click.option("--num-images", "-n", type=click.IntRange(min=1), default=1, help="[default: 1]")
@click.option("--separate", is_flag=True, help="Also write each picture on its own: img2img-1.png, ...")
@IMAGE_WEIGHT
@WEIGHTED
@options.seed
@options.negative
@options.decoder_steps
@options.prior_steps
@options.upsampler_steps
@options.size
@options.decoder_guidance
@options.prior_guidance
@options.model
def command(
    image: str,
    prompt: str,
    *,
    output: Path,
    strength: float,
    num_images: int,
    separate: bool,
    weighted: bool,
    seed: int,
    negative: str | None,
    model: str | None,
    device: str,
    dtype: str,
    quiet: bool,
    debug: bool,
    **sampling: Any,
) -> None:
    """Redraw PICTURE, the square in its middle, as PROMPT says.

    Example: unclip img2img sketch.png "a house in the snow" --strength 0.6 --output house.png
    """
    options.check_output(output)
    with plain_errors(debug=debug):
        from unclip_hub.images import read_picture
        from unclip_hub.pipelines.image_to_image import UnCLIPImageToImagePipeline

        picture, where = read_picture(image), options.locate(model)
        pipe = options.load(UnCLIPImageToImagePipeline, where, device=device, dtype=dtype, quiet=quiet)
        made = pipe(
            picture,
            **prompted(pipe, prompt, weighted=weighted),
            strength=strength,
            negative_prompt=negative,
            num_images_per_prompt=num_images,
            generator=options.generators(seed, num_images),
            **sampling,
        )
        for path in options.write(made.images, output, columns=num_images, separate=separate):
            click.echo(path)
