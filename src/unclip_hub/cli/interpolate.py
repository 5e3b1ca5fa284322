"""`unclip interpolate`: the way between pictures and captions."""

from pathlib import Path
from typing import Any

import click
from PIL import Image

from unclip_hub.cli import options, plain_errors


@click.command(name="interpolate")
@click.argument("sources", metavar="PICTURE_OR_CAPTION...", nargs=-1, required=True)
@options.output("between.png")
@click.option("--frames", "num_frames", type=click.IntRange(min=1), help="Pictures on the way. [default: 8]")
@click.option("--weight", "weights", type=click.FloatRange(min=0), multiple=True, help="One per source: their mean.")
@click.option("--noise", type=click.Choice(["inverted", "fixed"]), help="[default: inverted, if all are pictures]")
@options.exact
@click.option("--columns", type=click.IntRange(min=1), help="Of the sheet. [default: all in one row]")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=2.0, help="One way. [default: 2]")
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
    sources: tuple[str, ...],
    *,
    output: Path,
    num_frames: int | None,
    weights: tuple[float, ...],
    noise: str | None,
    exact: bool,
    columns: int | None,
    seconds: float,
    seed: int,
    negative: str | None,
    model: str | None,
    device: str,
    dtype: str,
    quiet: bool,
    debug: bool,
    **sampling: Any,
) -> None:
    """Make the pictures on the way from one PICTURE or CAPTION to the next; what is no file is a caption.

    They are written as a sheet or, to a name in .gif or .webp, as an animation. With a --weight for each source a
    single picture is made of their mean.

    Example: unclip interpolate cat.jpg dog.jpg --frames 12 --output between.gif
    """
    options.check_output(output)
    if len(sources) < 2:
        raise click.UsageError(f"expected at least 2 pictures or captions, got {len(sources)}")
    if weights and len(weights) != len(sources):
        raise click.UsageError(f"expected {len(sources)} times --weight, one per source, got {len(weights)}")
    with plain_errors(debug=debug):
        given, where = [_source(source) for source in sources], options.locate(model)
        from unclip_hub.pipelines.frames import save_frames
        from unclip_hub.pipelines.interpolation import UnCLIPInterpolationPipeline

        pipe = options.load(UnCLIPInterpolationPipeline, where, device=device, dtype=dtype, quiet=quiet)
        made = pipe(
            given,
            num_frames,
            weights=list(weights) or None,
            noise=noise,
            exact=exact,
            negative_prompt=negative,
            generator=options.generators(seed, 1)[0],
            **sampling,
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        save_frames(made.images, output, columns=columns, seconds=seconds)
        click.echo(output)


def _source(text: str) -> Any:
    """A picture if there is such a file, else a caption; the name of a picture that is not there is a mistake."""
    path = Path(text)
    pictured = path.suffix.lower() in Image.registered_extensions() and " " not in path.suffix
    return options.read(text) if path.is_file() or pictured else text
