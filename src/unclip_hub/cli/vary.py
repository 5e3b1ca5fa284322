"""`unclip vary`: variations of a picture."""

from pathlib import Path
from typing import Any

import click

from unclip_hub.cli import options, plain_errors


@click.command(name="vary")
@click.argument("image", metavar="PICTURE")
@options.output("variations.png")
@click.option("--num-images", "-n", type=click.IntRange(min=1), default=4, help="[default: 4]")
@click.option("--eta", type=click.FloatRange(0, 1), callback=options.finite, help="How far from the picture.")
@click.option("--separate", is_flag=True, help="Also write each picture on its own: variations-1.png, ...")
@options.seed
@options.negative
@options.decoder_steps
@options.upsampler_steps
@options.size
@options.decoder_guidance
@options.model
def command(
    image: str,
    *,
    output: Path,
    num_images: int,
    eta: float | None,
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
    """Make variations of PICTURE: what CLIP sees of it stays, everything else may change.

    With --eta the variations start from the picture's own noise: 0 gives it back, as well as the decoder can draw it,
    1 goes furthest. PICTURE may also be a file that `unclip invert` wrote.

    Example: unclip vary cat.jpg --eta 0.6 --output cats.png
    """
    options.check_output(output)
    with plain_errors(debug=debug):
        given, where = options.read(image), options.locate(model)
        from unclip_hub.pipelines.image_variation import UnCLIPImageVariationPipeline
        from unclip_hub.pipelines.inversion import BipartiteLatent

        inverted = isinstance(given, BipartiteLatent)
        pipe = options.load(UnCLIPImageVariationPipeline, where, device=device, dtype=dtype, quiet=quiet)
        made = pipe(
            None if inverted else given,
            latent=given if inverted else None,
            eta=eta,
            negative_prompt=negative,
            num_images_per_prompt=num_images,
            generator=options.generators(seed, num_images * (len(given) if inverted else 1)),
            **sampling,
        )
        for path in options.write(made.images, output, columns=num_images, separate=separate):
            click.echo(path)
