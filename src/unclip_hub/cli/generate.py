"""`unclip generate`: captions to pictures."""

from pathlib import Path
from typing import Any

import click

from unclip_hub.cli import options, plain_errors


@click.command(name="generate")
@click.argument("captions", metavar="CAPTION...", nargs=-1, required=True)
@options.output("out.png")
@click.option("--num-images", "-n", type=click.IntRange(min=1), default=1, help="Pictures per caption. [default: 1]")
@click.option("--separate", is_flag=True, help="Also write each picture on its own: out-1.png, out-2.png, ...")
@options.seed
@options.negative
@click.option("--weighted", is_flag=True, help='Read "a (red:1.4) star" as a star that is more red.')
@click.option("--prior-samples", "num_prior_samples", type=click.IntRange(min=1), help="Best of so many embeddings.")
@click.option("--candidates", "num_candidates", type=click.IntRange(min=1), help="Draw so many, keep CLIP's best.")
@options.decoder_steps
@options.prior_steps
@options.upsampler_steps
@options.size
@options.decoder_guidance
@options.prior_guidance
@options.model
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
    options.check_output(output)
    with plain_errors(debug=debug):
        where = options.locate(model)
        from unclip_hub.pipelines.text_to_image import UnCLIPPipeline

        pipe = options.load(UnCLIPPipeline, where, device=device, dtype=dtype, quiet=quiet)
        made = pipe(
            list(captions),
            negative_prompt=None if negative is None else [negative] * len(captions),
            num_images_per_prompt=num_images,
            generator=options.generators(seed, len(captions) * (sampling["num_candidates"] or num_images)),
            **sampling,
        )
        for path in options.write(made.images, output, columns=num_images, separate=separate):
            click.echo(path)
