"""`unclip outpaint`: a picture with more room around it."""

from pathlib import Path
from typing import Any

import click

from unclip_hub.cli import options, plain_errors
from unclip_hub.cli.painting import painting, repaint


MARGIN = click.IntRange(min=0)


@click.command(name="outpaint")
@click.argument("image", metavar="PICTURE")
@click.argument("prompt")
@click.option("--left", type=MARGIN, default=0, help="Pixels of room on the left.")
@click.option("--right", type=MARGIN, default=0, help="Pixels of room on the right.")
@click.option("--top", type=MARGIN, default=0, help="Pixels of room at the top.")
@click.option("--bottom", type=MARGIN, default=0, help="Pixels of room at the bottom.")
@options.output("outpainted.png")
@painting
def command(
    image: str,
    prompt: str,
    *,
    left: int,
    right: int,
    top: int,
    bottom: int,
    output: Path,
    debug: bool,
    **arguments: Any,
) -> None:
    """Make room around PICTURE and paint it as PROMPT says; the picture itself stays as it was, pixel by pixel.

    Room on all sides zooms out. PROMPT describes the whole canvas.

    Example: unclip outpaint beach.png "a beach" --left 64 --right 64 --output wide_beach.png
    """
    options.check_output(output)
    if not any((left, right, top, bottom)):
        raise click.UsageError("expected room on at least one side: --left, --right, --top or --bottom")
    with plain_errors(debug=debug):
        from unclip_hub.images import outpainting_canvas, read_picture, to_tensor

        canvas, mask = outpainting_canvas(
            to_tensor(read_picture(image)), left=left, right=right, top=top, bottom=bottom
        )
        repaint((canvas + 1) / 2, mask, prompt, output=output, **arguments)
