"""`unclip edit`: a picture changed in words."""

from pathlib import Path
from typing import Any

import click

from unclip_hub.cli import options, plain_errors


@click.command(name="edit")
@click.argument("image", metavar="PICTURE")
@click.option("--from", "source_caption", metavar="TEXT", default="a photo", help="[default: a photo]")
@click.option("--to", "target_caption", metavar="TEXT", help="What the picture should become.")
@click.option("--add", metavar="TEXT", multiple=True, help="Instead of --to: what there should be more of.")
@click.option("--subtract", metavar="TEXT", multiple=True, help="What there should be less of.")
@click.option("--theta", type=click.FloatRange(0, 1), callback=options.finite, help="How far. [default: a row]")
@options.output("edited.png")
@options.exact
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
    source_caption: str,
    target_caption: str | None,
    add: tuple[str, ...],
    subtract: tuple[str, ...],
    theta: float | None,
    output: Path,
    exact: bool,
    seed: int,
    negative: str | None,
    model: str | None,
    device: str,
    dtype: str,
    quiet: bool,
    debug: bool,
    **sampling: Any,
) -> None:
    """Change PICTURE as one caption differs from another, its words otherwise the same.

    Without --theta a row of pictures is written, from the picture itself to a change of 0.7. PICTURE may also be a
    file that `unclip invert` wrote.

    Example: unclip edit car.jpg --from "a car in winter" --to "a car in autumn" --theta 0.4
    """
    options.check_output(output)
    if (target_caption is None) == (not add and not subtract):
        raise click.UsageError("expected either --to, or --add and --subtract")
    with plain_errors(debug=debug):
        given, where = options.read(image), options.locate(model)
        from unclip_hub.pipelines.inversion import BipartiteLatent
        from unclip_hub.pipelines.text_diff import UnCLIPTextDiffPipeline

        inverted = isinstance(given, BipartiteLatent)
        thetas = [0.0, 0.25, 0.4, 0.55, 0.7] if theta is None else [theta]
        pipe = options.load(UnCLIPTextDiffPipeline, where, device=device, dtype=dtype, quiet=quiet)
        made = pipe(
            None if inverted else given,
            target_caption,
            source_caption,
            thetas,
            add=add,
            subtract=subtract,
            latent=given if inverted else None,
            exact=exact,
            negative_prompt=negative,
            generator=options.generators(seed, 1)[0],
            **sampling,
        )
        for path in options.write(made.images, output, columns=len(thetas), separate=False):
            click.echo(path)
