"""Teach the bundled model a thing that it has never seen, from pictures of it in a folder: by fine-tuning and by LoRA.

    python examples/new_concept.py --output runs/crescent

Makes a folder of crescents with captions, and of pictures that the model itself makes of things that it knows, so that
it does not forget them (Ruiz et al. 2023, arXiv:2208.12242, section 3.2). Trains the prior and the decoder on it with
`unclip train`, once in full and once as adapters, and writes one picture: what the model made of each caption before
(top), after fine-tuning (middle) and with the adapters loaded (bottom). The last two captions are of known things.
"""

from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.cli import main as unclip
from unclip_hub.data.backgrounds import VARIANTS, background
from unclip_hub.data.captions import scenery
from unclip_hub.data.scene_spec import CPU
from unclip_hub.data.sprites import COLOURS, SHAPES
from unclip_hub.images import grid


FAST = ["--count", "6", "--known", "2", "--prior-steps", "1", "--decoder-steps", "1", "--batch", "4", "--output", "."]
PLACES = ("sunset", "snow", "forest", "white", "mint")
CAPTIONS = [
    "a blue crescent at sunset",
    "a red crescent in the snow",
    "a green crescent on a white background",
    "a large red heart at sunset",
    "a frog in a forest",
]


@click.command(help=__doc__)
@click.option("--count", type=click.IntRange(1), default=600, show_default=True, help="Pictures of the new thing.")
@click.option("--known", type=click.IntRange(0), default=400, show_default=True, help="Pictures of known things.")
@click.option("--prior-steps", type=click.IntRange(1), default=300, show_default=True)
@click.option("--decoder-steps", type=click.IntRange(1), default=600, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True)
@click.option("--rank", type=click.IntRange(1), default=32, show_default=True, help="Of the adapters.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("new_concept"), show_default=True)
def main(count: int, known: int, prior_steps: int, decoder_steps: int, batch: int, rank: int, output: Path) -> None:
    adapted = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
    photos = output / "photos"
    draw(photos, count=count)
    remember(adapted, photos, count=known)
    cached = output / "embeddings"
    unclip(["embed", str(photos), "--output", str(cached), "--quiet"], standalone_mode=False)

    def train(network: str, run: str, *, steps: int, base: str, lr: float, adapters: int = 0) -> Path:
        data = ["--data", str(cached)] if network == "prior" else ["--data", str(photos), "--embeddings", str(cached)]
        settings = {"start": "base", "batch": batch, "lora_rank": adapters, "train.steps": steps, "train.lr": lr}
        settings |= {"train.warmup": min(20, steps), "train.ema": 0.99, "train.log_every": min(50, steps)}
        settings |= {"train.tracker": "none"}
        changes = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
        folder = output / run
        unclip(
            ["train", network, *data, "--base", base, "--output", str(folder), "--proof-steps", "0", *changes],
            standalone_mode=False,
        )
        return folder

    tuned = train("prior", "prior", steps=prior_steps, base=BUNDLED_MODEL, lr=3e-4)
    tuned = train("decoder", "decoder", steps=decoder_steps, base=str(tuned / "model"), lr=3e-4)
    adapters = [
        train("prior", "prior-lora", steps=prior_steps, base=BUNDLED_MODEL, lr=3e-3, adapters=rank),
        train("decoder", "decoder-lora", steps=decoder_steps, base=BUNDLED_MODEL, lr=3e-3, adapters=rank),
    ]

    rows = [pictures(adapted), pictures(UnCLIPPipeline.from_pretrained(tuned / "model"))]
    for folder in adapters:
        adapted.load_lora_weights(folder / "lora")
    rows.append(pictures(adapted))
    path = output / "new_concept.png"
    grid([picture.resize((160, 160)) for row in rows for picture in row], columns=len(CAPTIONS)).save(path)
    print(path)


def draw(folder: Path, *, count: int) -> None:
    """Crescents of every colour, on some backgrounds, of some sizes; the caption says colour and background."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        colour, place = str(rng.choice(list(COLOURS))), str(rng.choice(PLACES))
        picture = Image.fromarray(background(place, int(rng.integers(VARIANTS[place])), size=256))
        side, (dx, dy) = int(rng.integers(90, 150)), rng.integers(-20, 21, size=2)
        left, top = 128 - side // 2 + int(dx), 128 - side // 2 + int(dy)
        picture.paste(Image.new("RGB", (side, side), COLOURS[colour]), (left, top), crescent(side))
        picture.save(folder / f"{i:04d}.png")
        where = scenery(place)[0][0]
        (folder / f"{i:04d}.txt").write_text(f"a {colour} crescent {where}\n")


def remember(pipe: UnCLIPPipeline, folder: Path, *, count: int) -> None:
    """The model's own pictures of things that it knows."""
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(1)
    things = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES] + list(CPU.emoji) * 4
    for start in range(0, count, 20):
        rows = range(start, min(count, start + 20))
        captions = [f"a {rng.choice(things)} {scenery(str(rng.choice(PLACES)))[0][0]}" for _ in rows]
        made = pipe(captions, generator=[torch.Generator().manual_seed(i) for i in rows])
        for i, caption, picture in zip(rows, captions, made.images, strict=True):
            picture.save(folder / f"known-{i:04d}.png")
            (folder / f"known-{i:04d}.txt").write_text(caption + "\n")


def crescent(side: int) -> Image.Image:
    """A disc without the disc beside it, as a mask."""
    whole, bite = Image.new("L", (4 * side, 4 * side)), Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(whole).ellipse((0, 0, 4 * side - 1, 4 * side - 1), fill=255)
    ImageDraw.Draw(bite).ellipse((1.4 * side, 0.2 * side, 5.0 * side, 3.8 * side), fill=255)
    return ImageChops.subtract(whole, bite).resize((side, side), Image.Resampling.LANCZOS)


def pictures(pipe: UnCLIPPipeline) -> list[Image.Image]:
    """One picture of each caption."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(CAPTIONS))]
    return pipe(CAPTIONS, generator=generators).images  # type: ignore[return-value]


if __name__ == "__main__":
    main()
