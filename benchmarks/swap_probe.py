"""What does the model's CLIP bind? Each real picture's caption against the same caption with one attribute changed.

    python benchmarks/swap_probe.py --icons icons.json --output docs/swap_probe.json

Held-out scenes in held-out wordings. For every attribute: how often the cosine of picture and caption is above that of
picture and changed caption (chance: .5). "relation" exchanges or turns the things, "colour exchange" gives two shapes
each other's colour: what retrieval among random captions never asks for.
"""

import json
from pathlib import Path

import click
import numpy as np
import torch

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import ATTRIBUTES, CPU
from unclip_hub.data.scenes import caption, dataset, swap, swappable
from unclip_hub.data.sprites import build_bank
from unclip_hub.embeddings import normalize
from unclip_hub.evaluation.sprite_matching import wilson


@click.command(help=__doc__)
@click.option("--model", default=BUNDLED_MODEL, show_default=False, help="Folder or repository; the bundled model.")
@click.option("-n", "count", default=1_000, show_default=True, help="Scenes.")
@click.option("--seed", default=2026, show_default=True)
@click.option("--icons", type=click.Path(path_type=Path), help="icons.json of Noto Emoji.")
@click.option("--cache", type=click.Path(path_type=Path), help="Rendered emoji (.npz), instead of --icons.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers as JSON.")
@torch.no_grad()
def main(model, count, seed, icons, cache, output) -> None:
    bank = build_bank(CPU.nouns, icons=icons, cache=cache)
    held_out = dataset(count, seed=seed, scope=CPU, bank=bank, split="held_out", captions=1)
    pipe = UnCLIPPipeline.from_pretrained(model)
    rng = np.random.default_rng([seed, 1])
    cases = [
        (i, attribute, caption(swap(scene, rng, scope=CPU, split=None, attribute=attribute), rng, wording="held_out"))
        for i, scene in enumerate(held_out.scenes)
        for attribute in swappable(scene, scope=CPU)
    ]
    pictures = torch.cat(
        [pipe.encode_image(list(part)) for part in np.array_split(held_out.pictures, count // 50 + 1)]
    )
    image = normalize(pictures)
    right = _text(pipe, [several[0] for several in held_out.captions])
    wrong = _text(pipe, [text for _, _, text in cases])
    rows = torch.tensor([i for i, _, _ in cases])
    wins = (image[rows] * right[rows]).sum(1) > (image[rows] * wrong).sum(1)
    won = {name: [bool(win) for win, case in zip(wins, cases, strict=True) if case[1] == name] for name in ATTRIBUTES}
    won["every one of a scene's"] = [bool(wins[rows == i].all()) for i in range(count)]
    rates = {}
    for attribute, cases_won in won.items():
        rate = wilson(sum(cases_won), len(cases_won))
        rates[attribute] = {k: round(v, 4) for k, v in rate._asdict().items()}
        click.echo(f"{attribute:24} {rate.rate:.3f}  [{rate.low:.3f}, {rate.high:.3f}]  n={rate.n}")
    if output:
        output.write_text(json.dumps({"scenes": count, "seed": seed, "rates": rates}, indent=1) + "\n")


def _text(pipe: UnCLIPPipeline, captions: list[str]) -> torch.Tensor:
    parts = [pipe.encode_text(captions[at : at + 200]).text_embed for at in range(0, len(captions), 200)]
    return normalize(torch.cat(parts))


if __name__ == "__main__":
    main()
