"""Does the picture do what the caption says? Held-out captions, pictures, and a scorer that was never trained.

    python benchmarks/adherence.py --icons icons.json --output docs/adherence.json

Scores real renders (the ceiling), pictures matched with another caption (chance) and the model's, by the sprite
matcher of ``unclip_hub.evaluation``. Neither the combinations nor the wordings of the captions occur in training.
"""

import json
import time
from pathlib import Path

import click
import torch

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import CPU
from unclip_hub.data.scenes import dataset
from unclip_hub.data.sprites import build_bank
from unclip_hub.evaluation.sprite_matching import Rate, SpriteMatcher, score


@click.command(help=__doc__)
@click.option("--model", default=BUNDLED_MODEL, show_default=False, help="Folder or repository; the bundled model.")
@click.option("-n", "count", default=640, show_default=True, help="Captions.")
@click.option("--batch", default=25, show_default=True)
@click.option("--seed", default=2026, show_default=True)
@click.option("--icons", type=click.Path(path_type=Path), help="icons.json of Noto Emoji, for the scorer's templates.")
@click.option("--cache", type=click.Path(path_type=Path), help="Rendered emoji (.npz), instead of --icons.")
@click.option("--true-embeds", is_flag=True, help="Decode the real picture's embedding instead of the prior's.")
@click.option("--decoder-steps", type=int)
@click.option("--guidance", type=float, help="Of the decoder.")
@click.option("--prior-guidance", type=float)
@click.option("--output", type=click.Path(path_type=Path), help="Write the rates as JSON.")
def main(
    model, count, batch, seed, icons, cache, true_embeds, decoder_steps, guidance, prior_guidance, output
) -> None:
    bank = build_bank(CPU.nouns, icons=icons, cache=cache)
    held_out = dataset(count, seed=seed, scope=CPU, bank=bank, split="held_out", captions=1)
    pipe = UnCLIPPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    small, large, started = [], [], time.perf_counter()
    for at in range(0, count, batch):
        embeds = None
        if true_embeds:
            pixels = torch.from_numpy(held_out.pictures[at : at + batch]).permute(0, 3, 1, 2) / 127.5 - 1
            embeds = pipe.image_encoder(pixels).image_embeds.detach()
        captions = [several[0] for several in held_out.captions[at : at + batch]]
        made = pipe(
            captions,
            image_embeds=embeds,
            decoder_num_inference_steps=decoder_steps,
            decoder_guidance_scale=guidance,
            prior_guidance_scale=prior_guidance,
            generator=[torch.Generator().manual_seed(seed + at + i) for i in range(len(captions))],
            output_type="pt",
        )
        small += list(made.small_images * 2 - 1)
        large += list(made.images * 2 - 1)
    seconds = (time.perf_counter() - started) / count

    matcher = SpriteMatcher(bank, backgrounds=CPU.backgrounds)
    real = list(held_out.pictures)
    rows = {
        "real renders": real,
        "256 px": large,
        "64 px": small,
        "other captions' real renders": real[-1:] + real[:-1],
    }
    table = {}
    for kind, layouts in {"one thing, or several of a kind": ("one", "count"), "two things": ("pair",)}.items():
        chosen = [i for i, scene in enumerate(held_out.scenes) if scene.layout in layouts]
        scenes = [held_out.scenes[i] for i in chosen]
        for name, pictures in rows.items():
            table[f"{kind}: {name}"] = score([pictures[i] for i in chosen], scenes, matcher=matcher)
    click.echo(f"{count} held-out captions, {seconds:.2f} s a picture")
    for name, rates in table.items():
        click.echo(name)
        for attribute, rate in rates.items():
            if rate.n == 0:
                continue
            click.echo(f"  {attribute:20} {rate.rate:.3f}  [{rate.low:.3f}, {rate.high:.3f}]  n={rate.n}")
    if output:
        rates = {name: {k: _numbers(rate) for k, rate in rates.items() if rate.n} for name, rates in table.items()}
        facts = {"captions": count, "seed": seed, "true_embeds": true_embeds, "seconds_per_picture": round(seconds, 3)}
        output.write_text(json.dumps({**facts, "rates": rates}, indent=1) + "\n")


def _numbers(rate: Rate) -> dict[str, float | int]:
    return {"rate": round(rate.rate, 4), "low": round(rate.low, 4), "high": round(rate.high, 4), "n": rate.n}


if __name__ == "__main__":
    main()
