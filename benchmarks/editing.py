"""What pictures become when they are inverted, varied, interpolated and edited in words, on scenes never trained on.

    python benchmarks/editing.py --output docs/editing.json --pictures docs

The decoder's 64 px pictures are measured. Whether an edit did what it says is read by the sprite matcher, which
learned nothing; intervals are Wilson's, 95 %.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from unclip_hub import BUNDLED_MODEL, UnCLIPImageVariationPipeline, UnCLIPPipeline
from unclip_hub.data.captions import scenery
from unclip_hub.data.scene_spec import Scene, Scope
from unclip_hub.data.scenes import dataset, swap
from unclip_hub.data.sprites import SpriteBank, build_bank
from unclip_hub.embeddings import normalize
from unclip_hub.evaluation.sprite_matching import SpriteMatcher, judge, wilson
from unclip_hub.images import grid
from unclip_hub.pipelines.interpolation import UnCLIPInterpolationPipeline
from unclip_hub.pipelines.inversion import BipartiteLatent, invert, reconstruct
from unclip_hub.pipelines.text_diff import UnCLIPTextDiffPipeline


ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
THETAS = (0.0, 0.25, 0.4, 0.55, 0.7)
ATTRIBUTES = {"background": "background", "object": "noun", "colour": "colour"}  # the judge's name: the scene's
ALONE = Scope(variants=2, layouts=(("one", 1),))


@click.command(help=__doc__)
@click.option("--model", default=BUNDLED_MODEL, show_default=False, help="Folder or repository; the bundled model.")
@click.option("-n", "count", default=50, show_default=True, help="Scenes of each measurement.")
@click.option("--batch", default=10, show_default=True)
@click.option("--seed", default=2026, show_default=True)
@click.option("--steps", default=12, show_default=True, help="Of the decoder, unless the table says otherwise.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers as JSON.")
@click.option("--pictures", type=click.Path(path_type=Path), help="Write a sheet of each kind to this folder.")
def main(
    model: str, count: int, batch: int, seed: int, steps: int, output: Path | None, pictures: Path | None
) -> None:
    started = time.perf_counter()
    pipe = UnCLIPPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    scope = Scope(variants=2)
    bank = build_bank(scope.nouns)
    facts: dict[str, Any] = {"scenes": count, "seed": seed, "steps": steps}
    if pictures:
        sheets(pipe, bank, pictures, seed=seed, steps=steps)
    drawn = dataset(count, seed=seed, scope=scope, bank=bank, split="held_out", captions=1)
    shown = [Image.fromarray(picture) for picture in drawn.pictures]
    small = UnCLIPPipeline(**pipe.components | {"super_res_first": None})
    small.set_progress_bar_config(disable=True)
    facts["reconstruction"], latents = reconstruction(small, shown, batch=batch, steps=steps)
    report(output, facts)
    facts["variation"] = variation(small, latents, seed=seed)
    report(output, facts)
    facts["interpolation"] = interpolation(small, latents)
    report(output, facts)
    facts["text differences"] = text_differences(small, bank, count=count, batch=batch, seed=seed, steps=steps)
    facts["minutes"] = round((time.perf_counter() - started) / 60, 1)
    report(output, facts)


def reconstruction(
    pipe: UnCLIPPipeline, shown: list[Image.Image], *, batch: int, steps: int
) -> tuple[dict[str, Any], list[BipartiteLatent]]:
    """The error of every way to invert, and the latents of the first."""
    ways: dict[str, dict[str, Any]] = {
        f"DDIM, {steps} steps": {"num_inference_steps": steps},
        "DDIM, 25 steps": {"num_inference_steps": 25},
        f"exact, {steps} steps": {"num_inference_steps": steps, "exact": True},
    }
    rows, kept = {}, []
    for name, options in ways.items():
        latents = [invert(pipe, shown[at : at + batch], **options) for at in range(0, len(shown), batch)]
        kept = kept or latents
        errors = np.array([error for latent in latents for error in latent.errors])
        spread = torch.cat([latent.states[0] for latent in latents]).std().item()
        rows[name] = {"rmse": float(errors.mean()), "worst": float(errors.max()), "std of x_T": round(spread, 3)}
    return rows, kept


@torch.no_grad()
def variation(pipe: UnCLIPPipeline, latents: list[BipartiteLatent], *, seed: int) -> dict[str, Any]:
    """How far from the reconstruction in pixels and in CLIP, by eta; a step counts if it goes further."""
    vary = UnCLIPImageVariationPipeline(**pipe.components)
    vary.set_progress_bar_config(disable=True)
    pixels, angles = [], []
    for at, latent in enumerate(latents):
        made = []
        for eta in ETAS:
            generators = [torch.Generator().manual_seed(seed + 1000 * at + i) for i in range(len(latent))]
            made.append(vary(latent=latent, eta=eta, generator=generators, output_type="pt").small_images)
        pixels.append(torch.stack([((2 * (one - made[0])) ** 2).mean((1, 2, 3)).sqrt() for one in made]))
        embeds = [normalize(pipe.encode_image(list(one))) for one in made]
        angles.append(torch.stack([1 - (embed * embeds[0]).sum(-1) for embed in embeds]))
    far, away = torch.cat(pixels, 1), torch.cat(angles, 1)  # (eta, n)
    rows = {
        str(eta): {"pixel rmse": round(far[i].mean().item(), 4), "1 - CLIP cosine": round(away[i].mean().item(), 4)}
        for i, eta in enumerate(ETAS)
    }
    grows = {name: ((x[1:] > x[:-1]).sum().item(), x[1:].numel()) for name, x in {"pixels": far, "CLIP": away}.items()}
    return {"by eta": rows, "steps of eta that go further": {name: rate(*counts) for name, counts in grows.items()}}


def interpolation(pipe: UnCLIPPipeline, latents: list[BipartiteLatent]) -> dict[str, Any]:
    """The greatest difference between the ends of a way and the reconstructions, in [-1, 1]."""
    between = UnCLIPInterpolationPipeline(**pipe.components)
    between.set_progress_bar_config(disable=True)
    worst = 0.0
    for latent in latents:
        again = reconstruct(pipe, latent)
        for i in range(0, len(latent) - 1, 2):
            frames = between(latent=latent[i : i + 2], num_frames=2, output_type="pt").small_images * 2 - 1
            worst = max(worst, (frames - again[i : i + 2]).abs().max().item())
    return {"pairs": sum(len(latent) // 2 for latent in latents), "greatest difference at the ends": worst}


def text_differences(
    pipe: UnCLIPPipeline, bank: SpriteBank, *, count: int, batch: int, seed: int, steps: int
) -> dict[str, Any]:
    """Of edits of one attribute: how often it became the one asked for, and the two others stayed."""
    edit = UnCLIPTextDiffPipeline(**pipe.components)
    edit.set_progress_bar_config(disable=True)
    matcher = SpriteMatcher(bank, backgrounds=ALONE.backgrounds)
    drawn = dataset(count, seed=seed + 1, scope=ALONE, bank=bank, split="held_out", captions=1)
    shown = [Image.fromarray(picture) for picture in drawn.pictures]
    latents = [invert(pipe, shown[at : at + batch], num_inference_steps=steps) for at in range(0, len(shown), batch)]
    table: dict[str, Any] = {}
    for attribute in ATTRIBUTES:
        rows = np.zeros((len(THETAS), 3), dtype=int)
        for number, latent in enumerate(latents):
            scenes = drawn.scenes[number * batch : (number + 1) * batch]
            edits = [changed(scene, attribute, seed=seed + number * batch + i) for i, scene in enumerate(scenes)]
            wanted, source, target = zip(*edits, strict=True)
            made = edit(latent=latent, target_caption=list(target), source_caption=list(source), theta=THETAS)
            for i, picture in enumerate(made.images):  # pyright: ignore[reportArgumentType]
                verdict = judge(matcher.see(np.asarray(picture)), wanted[i // len(THETAS)])
                flipped = bool(verdict[attribute])
                kept = all(verdict[other] for other in ATTRIBUTES if other != attribute)
                rows[i % len(THETAS)] += (flipped, kept, flipped and kept)
        table[attribute] = {
            str(theta): {name: rate(int(n), count) for name, n in zip(("flipped", "kept", "both"), row, strict=True)}
            for theta, row in zip(THETAS, rows, strict=True)
        }
    return table


def changed(scene: Scene, attribute: str, *, seed: int) -> tuple[Scene, str, str]:
    """A scene with one attribute changed, and captions of both in the same words otherwise."""
    other = swap(scene, np.random.default_rng(seed), scope=ALONE, split=None, attribute=ATTRIBUTES[attribute])
    before, after = (
        f"a {one.things[0].colour} {one.things[0].noun} {scenery(one.background)[0][0]}" for one in (scene, other)
    )
    return other, before, after


def sheets(pipe: UnCLIPPipeline, bank: SpriteBank, folder: Path, *, seed: int, steps: int) -> None:
    """A sheet of each kind, at 128 px, of the first scenes of another seed: nothing is picked by hand."""
    large = Scope(variants=2, layouts=(("one", 1),), sizes=(("large", 1),))
    drawn = dataset(6, seed=seed + 2, scope=large, bank=bank, split="held_out", captions=1)
    shown = [Image.fromarray(picture) for picture in drawn.pictures]
    options: dict[str, Any] = {"decoder_num_inference_steps": steps}

    vary = UnCLIPImageVariationPipeline(**pipe.components)
    latent = invert(pipe, shown[:4], num_inference_steps=steps)
    columns = [vary(latent=latent, eta=eta, generator=torch.Generator().manual_seed(seed)).images for eta in ETAS]
    sheet([picture for row in zip(shown[:4], *columns, strict=True) for picture in row], 1 + len(ETAS)).save(
        folder / "editing_variations.png"
    )
    between, rows = UnCLIPInterpolationPipeline(**pipe.components), []
    for i in range(0, 6, 2):
        made = between(shown[i : i + 2], 7, generator=torch.Generator().manual_seed(seed), **options).images
        rows += [shown[i], *made, shown[i + 1]]
    sheet(rows, 9).save(folder / "editing_interpolation.png")
    edit, rows = UnCLIPTextDiffPipeline(**pipe.components), []
    for i, (picture, scene) in enumerate(zip(shown, drawn.scenes, strict=True)):
        _, before, after = changed(scene, tuple(ATTRIBUTES)[i % 3], seed=seed + i)
        click.echo(f"{before} -> {after}")
        generator = torch.Generator().manual_seed(seed)
        rows += [picture, *edit(picture, after, before, THETAS, generator=generator, **options).images]
    sheet(rows, 1 + len(THETAS)).save(folder / "editing_text_diff.png")


def sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    return grid([picture.resize((96, 96), Image.Resampling.LANCZOS) for picture in pictures], columns).quantize(256)


def rate(right: int, n: int) -> dict[str, float | int]:
    got = wilson(right, n)
    return {"rate": round(got.rate, 3), "low": round(got.low, 3), "high": round(got.high, 3), "n": n}


def report(output: Path | None, facts: dict[str, Any]) -> None:
    """What is known so far: on the screen what came last, in the file everything."""
    last = list(facts)[-1]
    click.echo(json.dumps({last: facts[last]}, indent=1))
    if output:
        output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
