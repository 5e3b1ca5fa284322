"""`unclip inpaint`: a part of a picture repainted."""

from pathlib import Path
from typing import Any

import click

from unclip_hub.cli import options, plain_errors
from unclip_hub.cli.painting import painting, repaint


@click.command(name="inpaint")
@click.argument("image", metavar="PICTURE")
@click.argument("mask", metavar="MASK")
@click.argument("prompt")
@options.output("inpainted.png")
@painting
def command(image: str, mask: str, prompt: str, *, output: Path, debug: bool, **arguments: Any) -> None:
    """Repaint PICTURE where MASK, a picture of its size, is white, as PROMPT says.

    PROMPT describes the whole picture. Where MASK is black every pixel stays as it was; in between the two are
    blended. The picture may have any size; a format without loss (.png) keeps the pixels so on disk.

    Example: unclip inpaint room.png sofa.png "a red sofa in a room" --output new_room.png
    """
    options.check_output(output)
    with plain_errors(debug=debug):
        from unclip_hub.images import read_picture

        repaint(read_picture(image), read_picture(mask), prompt, output=output, **arguments)
