"""Pictures of captions that the model never saw, neither what they ask for nor how they are worded, as one sheet.

python examples/contact_sheet.py --output docs/contact_sheet.webp
"""

import re
import textwrap
import unicodedata
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import CPU
from unclip_hub.data.scenes import caption, sample_scene


FAST = ["--count", "2", "--steps", "2"]


@click.command(help=__doc__)
@click.option("--model", default=BUNDLED_MODEL, help="Folder or repository.", show_default=False)
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="Captions.")
@click.option("--steps", type=click.IntRange(1), help="Decoder steps, by default the model's own.")
@click.option("--seed", default=0, show_default=True, help="Of captions and pictures: nothing is picked by hand.")
@click.option("--output", type=click.Path(path_type=Path), default="contact_sheet.webp", show_default=True)
def main(model: str, count: int, steps: int | None, seed: int, output: Path) -> None:
    pipe = UnCLIPPipeline.from_pretrained(model)
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, CPU, split="held_out") for _ in range(count)]
    captions = [caption(scene, rng, wording="held_out") for scene in scenes]
    generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    made = pipe(captions, decoder_num_inference_steps=steps, generator=generators).images
    sheet(captions, made).save(output, quality=90)
    click.echo(output)


def sheet(captions: list[str], pictures: list[Image.Image], *, columns: int = 8, side: int = 192) -> Image.Image:
    """Each caption over its picture, in rows of ``columns``."""
    width, height, font = side + 8, side + 68, ImageFont.load_default(12)
    rows = -(-len(captions) // columns)
    page = Image.new("RGB", (columns * width + 8, rows * height + 8), "white")
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(captions):
        x, y = 8 + i % columns * width, 8 + i // columns * height
        draw.multiline_text((x, y), textwrap.fill(printable(text), 30), fill="black", font=font, spacing=1)
        page.paste(pictures[i].resize((side, side), Image.Resampling.LANCZOS), (x, y + 60))
    return page


def printable(text: str) -> str:
    """Emoji, which the font has not, by their names."""
    return re.sub(r"[^\x00-\xff]\ufe0f?", lambda found: f"[{unicodedata.name(found[0][0]).lower()}]", text)


if __name__ == "__main__":
    main()
