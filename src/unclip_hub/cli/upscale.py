"""`unclip upscale`: a picture made larger."""

from pathlib import Path
from typing import Any

import click

from unclip_hub.cli import options, plain_errors


@click.command(name="upscale")
@click.argument("image", metavar="PICTURE")
@options.output("upscaled.png")
@click.option(
    "--stage",
    type=click.Choice(["super_res", "super_res_1024"]),
    default="super_res",
    help="Which of the model's upsamplers. [default: super_res]",
)
@options.seed
@options.upsampler_steps
@options.model
def command(
    image: str,
    *,
    output: Path,
    stage: str,
    seed: int,
    model: str | None,
    device: str,
    dtype: str,
    quiet: bool,
    debug: bool,
    **sampling: Any,
) -> None:
    """Make PICTURE larger, of any size, by the upsampler's factor: 4 for the bundled model.

    Example: unclip upscale small.png --output large.png
    """
    options.check_output(output)
    with plain_errors(debug=debug):
        from unclip_hub.images import read_picture
        from unclip_hub.pipelines.upscale import UnCLIPUpscalePipeline

        picture, where = read_picture(image), options.locate(model)
        pipe = options.load(UnCLIPUpscalePipeline, where, device=device, dtype=dtype, quiet=quiet)
        made = pipe(picture, stage=stage, generator=options.generators(seed, 1), **sampling)
        for path in options.write(made.images, output, columns=1, separate=False):
            click.echo(path)
