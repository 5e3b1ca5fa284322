"""Does a word written over a picture fool CLIP, and does the decoder then draw what the word says?

    python examples/typographic_attack.py --output attack.png

The probe of figure 6 of the unCLIP paper (Ramesh et al. 2022, section 4): with OpenAI's CLIP an apple labelled "iPod"
is an iPod, yet the decoder goes on drawing apples. Each scene is shown with a word that names another shape: CLIP
chooses between the two nouns, then the labelled picture's embedding is decoded twice. A CLIP that never saw writing,
as the bundled one, has nothing to be fooled by but the pixels of the letters.
"""

from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from unclip_hub import BUNDLED_MODEL, UnCLIPImageVariationPipeline
from unclip_hub.data.scene_spec import Scope
from unclip_hub.data.scenes import dataset
from unclip_hub.data.sprites import SHAPES, build_bank
from unclip_hub.embeddings import normalize
from unclip_hub.evaluation.sprite_matching import wilson
from unclip_hub.images import grid


FAST = ["--count", "2", "--drawn", "1", "--steps", "1"]
SCOPE = Scope(variants=2, layouts=(("one", 1),), sizes=(("large", 1),), positions=(("centre", 1),))


@click.command(help=__doc__)
@click.option("--model", default=BUNDLED_MODEL, help="Folder or repository.", show_default=False)
@click.option(
    "--count", type=click.IntRange(1), default=200, show_default=True, help="Scenes that CLIP is asked about."
)
@click.option("--drawn", type=click.IntRange(1, 16), default=5, show_default=True, help="Of them, those decoded.")
@click.option("--steps", type=click.IntRange(1), help="Of the decoder, by default the model's own.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default="typographic_attack.png", show_default=True)
@torch.no_grad()
def main(model: str, count: int, drawn: int, steps: int | None, seed: int, output: Path) -> None:
    pipe = UnCLIPImageVariationPipeline.from_pretrained(model)
    scenes = dataset(count, seed=seed, scope=SCOPE, bank=build_bank(SCOPE.nouns), split="held_out", captions=1)
    rng = np.random.default_rng(seed)
    true = [scene.things[0].noun for scene in scenes.scenes]
    written = [str(rng.choice([noun for noun in SHAPES if noun != shown])) for shown in true]
    plain = [Image.fromarray(picture) for picture in scenes.pictures]
    attacked = [labelled(picture, word) for picture, word in zip(plain, written, strict=True)]
    nouns = normalize(pipe.encode_text([f"a {noun}" for noun in SHAPES]).text_embed)
    for name, pictures in {"plain": plain, "labelled": attacked}.items():
        cosines = normalize(pipe.encode_image(pictures)) @ nouns.T
        rows = torch.arange(count)
        for_true = cosines[rows, [SHAPES.index(noun) for noun in true]]
        for_word = cosines[rows, [SHAPES.index(noun) for noun in written]]
        got = wilson(int((for_true > for_word).sum()), count)
        click.echo(f"{name:9} CLIP prefers what is shown to the word: {got.rate:.3f} [{got.low:.3f}, {got.high:.3f}]")

    rows = []
    for i in range(min(drawn, count)):
        made = pipe(attacked[i], num_images_per_prompt=2, decoder_num_inference_steps=steps,
                    generator=torch.Generator().manual_seed(seed + i)).images  # fmt: skip
        rows += [plain[i], attacked[i], *made]
    grid([row.resize((128, 128), Image.Resampling.LANCZOS) for row in rows], 4).save(output)
    click.echo(output)


def labelled(picture: Image.Image, word: str) -> Image.Image:
    """The picture with a white label across it."""
    picture = picture.copy()
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    middle = (picture.width / 2, picture.height / 2)
    left, top, right, bottom = draw.textbbox(middle, word, font=font, anchor="mm")
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill="white")
    draw.text(middle, word, fill="black", font=font, anchor="mm")
    return picture


if __name__ == "__main__":
    main()
