"""Does what is repainted follow the prompt, and does the rest stay? Held-out scenes, and a scorer that never trained.

    python benchmarks/inpainting.py --output docs/inpainting.json --pictures docs

In the render of a held-out scene with one shape, the shape's box is masked, and the prompt asks for another shape in
another colour there. Scored at 256 px, for each number of resamplings, beside pictures made of the prompt alone and
the untouched render. Neither the combinations nor the wordings of the captions occur in training.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import Scope
from unclip_hub.data.scenes import caption, render, sample_scene
from unclip_hub.data.sprites import COLOURS, SHAPES, SIZES, build_bank
from unclip_hub.evaluation.sprite_matching import SpriteMatcher, score
from unclip_hub.images import grid, outpainting_canvas, to_tensor
from unclip_hub.pipelines.inpaint import UnCLIPInpaintPipeline


SCOPE = Scope(layouts=(("one", 1),), variants=2)  # shapes only: nothing has to be downloaded
MARGIN = 6  # pixels of the 256 px canvas around a shape's box


@click.command(help=__doc__)
@click.option("--model", default=BUNDLED_MODEL, show_default=False, help="Folder or repository; the bundled model.")
@click.option("-n", "count", default=50, show_default=True, help="Scenes.")
@click.option("--resampling", default="1,4", show_default=True, help="Numbers of resamplings, by commas.")
@click.option("--jump-length", default=1, show_default=True)
@click.option("--batch", default=25, show_default=True)
@click.option("--seed", default=2026, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the rates as JSON.")
@click.option("--pictures", type=click.Path(path_type=Path), help="A folder for editing_inpaint.png, _outpaint.png.")
def main(model, count, resampling, jump_length, batch, seed, output, pictures) -> None:
    bank = build_bank(SHAPES)
    rng = np.random.default_rng(seed)
    before = [sample_scene(rng, SCOPE, split="held_out") for _ in range(count)]
    after = [other_thing(scene, rng) for scene in before]
    captions = [caption(scene, rng, wording="held_out") for scene in after]
    renders = [render(scene, size=256, bank=bank) for scene in before]
    masks = [mask_of(scene) for scene in before]
    pipe = UnCLIPPipeline.from_pretrained(model)
    inpaint = UnCLIPInpaintPipeline(**pipe.components, sampling_defaults=pipe.config["sampling_defaults"])
    for one in (pipe, inpaint):
        one.set_progress_bar_config(disable=True)

    def generators(rows):
        return [torch.Generator().manual_seed(seed + i) for i in rows]

    batches = [range(at, min(at + batch, count)) for at in range(0, count, batch)]
    made = {
        "the render, untouched": renders,
        "the prompt alone": [
            np.asarray(picture)
            for rows in batches
            for picture in pipe([captions[i] for i in rows], generator=generators(rows), return_dict=False)[0]
        ],
    }
    seconds, exact = {}, True
    for times in map(int, resampling.split(",")):
        started, found = time.perf_counter(), []
        for rows in batches:
            found += inpaint(
                [Image.fromarray(renders[i]) for i in rows],
                [masks[i] for i in rows],
                [captions[i] for i in rows],
                resampling=times,
                jump_length=jump_length,
                generator=generators(rows),
                return_dict=False,
            )[0]
        name = f"resampling {times}"
        seconds[name] = round((time.perf_counter() - started) / count, 3)
        made[name] = [np.asarray(picture) for picture in found]
        kept = [np.asarray(mask) == 0 for mask in masks]
        exact &= all(np.array_equal(a[k], b[k]) for a, b, k in zip(made[name], renders, kept, strict=True))
    matcher = SpriteMatcher(bank, backgrounds=SCOPE.backgrounds)
    rates = {name: score(pictures_of, after, matcher=matcher) for name, pictures_of in made.items()}
    click.echo(
        f"{count} held-out scenes; outside the mask every pixel is the render's: {exact}; {seconds} s a picture"
    )
    for name, row in rates.items():
        shown = {
            k: f"{rate.rate:.2f} [{rate.low:.2f}, {rate.high:.2f}] n={rate.n}" for k, rate in row.items() if rate.n
        }
        click.echo(f"{name}: {shown}")
    if output:
        table = {name: {k: rate._asdict() for k, rate in row.items() if rate.n} for name, row in rates.items()}
        facts = {"scenes": count, "seed": seed, "jump_length": jump_length, "outside_is_bit_exact": exact}
        output.write_text(json.dumps({**facts, "seconds_per_picture": seconds, "rates": table}, indent=1) + "\n")
    if pictures:
        best = list(made.values())[-1]
        rows = [
            [Image.fromarray(renders[i]), masks[i].convert("RGB"), Image.fromarray(best[i])]
            for i in range(min(6, count))
        ]
        sheet(rows).save(pictures / "editing_inpaint.png")
        sheet(outpainted(inpaint, before[:3], bank, seed)).save(pictures / "editing_outpaint.png")


def other_thing(scene, rng):
    """The scene with another shape in another colour, where and as large as the first was."""
    thing = scene.things[0]
    noun = rng.choice([shape for shape in SHAPES if shape != thing.noun])
    colour = rng.choice([c for c in COLOURS if c not in (thing.colour, *scene.background.split())])
    return replace(scene, things=(replace(thing, noun=str(noun), colour=str(colour)),))


def mask_of(scene) -> Image.Image:
    """White on the box of the scene's shape, at 256 px."""
    ((_, size, x, y),) = scene.slots
    half = SIZES[size] // 2 + MARGIN
    mask = np.zeros((256, 256), dtype=np.uint8)
    mask[max(0, y - half) : y + half, max(0, x - half) : x + half] = 255
    return Image.fromarray(mask)


def outpainted(inpaint, scenes, bank, seed) -> list[list[Image.Image]]:
    """Each scene's render, with 64 px of room on all sides, and with 128 on the right; the prompt: its background."""
    rows = []
    for i, scene in enumerate(scenes):
        picture = Image.fromarray(render(scene, size=256, bank=bank))
        row = [picture]
        for room in ({"left": 64, "right": 64, "top": 64, "bottom": 64}, {"right": 128}):
            canvas, mask = outpainting_canvas(to_tensor(picture), **room)
            generator = torch.Generator().manual_seed(seed + i)
            row += inpaint((canvas + 1) / 2, mask, scene.background, resampling=4, generator=generator).images
        rows.append(row)
    return rows


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows side by side in two columns, every picture at half its size and on white."""
    height = max(image.height for row in rows for image in row) // 2
    strips = []
    for row in rows:
        strip = Image.new("RGB", (sum(image.width // 2 + 4 for image in row) + 12, height + 4), "white")
        left = 0
        for image in row:
            half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
            strip.paste(half, (left, 0))
            left += half.width + 4
        strips.append(strip)
    return grid(strips, columns=2)


if __name__ == "__main__":
    main()
