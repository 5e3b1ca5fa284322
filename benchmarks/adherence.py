"""Does the picture do what the caption says, and do the pictures look like the real ones?

    python benchmarks/adherence.py --icons icons.json --output docs/adherence.json
    python benchmarks/adherence.py --icons icons.json --ablations --output docs/ablations.json -n 400

Neither the combinations nor the wordings of the captions occur in training. Scorers that no model was trained with:
the sprite matcher of ``unclip_hub.evaluation``, by rules, and a detector trained on real renders alone
(``train_detector.py``). Beside the model's pictures they judge real renders (the ceiling) and real renders of other
captions (chance). Distances are taken between the detector's features of as many pictures and real renders of other
held-out scenes; the floor is that of real renders.
"""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from adherence_metrics import CEILING, CHANCE, SHOWN
from torch import Tensor
from train_detector import WEIGHTS

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import CPU
from unclip_hub.data.scenes import CaptionedScenes, dataset
from unclip_hub.data.sprites import build_bank
from unclip_hub.evaluation.distances import frechet_distance, kernel_distance
from unclip_hub.evaluation.scene_detector import SceneDetector, right
from unclip_hub.evaluation.sprite_matching import Rate, SpriteMatcher, score, wilson
from unclip_hub.training.world import as_pixels


GROUPS = {
    "one thing, or several of a kind": ("one", "count"),
    "two things": ("pair",),
    "three things": ("trio",),
}
Made = tuple[Tensor, Tensor | None]  # (n, 3, 64, 64) and, if they were upsampled, (n, 3, h, w), in [-1, 1]


@click.command(help=__doc__)
@click.option("--model", default=BUNDLED_MODEL, show_default=False, help="Folder or repository; the bundled model.")
@click.option("-n", "count", default=1_000, show_default=True, help="Captions.")
@click.option("--batch", default=25, show_default=True)
@click.option("--seed", default=2026, show_default=True)
@click.option("--icons", type=click.Path(path_type=Path), help="icons.json of Noto Emoji, for the scorers.")
@click.option("--cache", type=click.Path(path_type=Path), help="Rendered emoji (.npz), instead of --icons.")
@click.option("--ablations", is_flag=True, help="The decoder's pictures without a prior, with other guidance, ...")
@click.option("--only", multiple=True, help="Only the ablations whose name holds this; repeatable.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers as JSON.")
def main(model, count, batch, seed, icons, cache, ablations, only, output) -> None:
    judges = Judges(count, seed=seed, icons=icons, cache=cache)
    pipe = UnCLIPPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    facts: dict[str, Any] = {"captions": count, "seed": seed}
    if ablations:
        chosen = {name: change for name, change in variants(pipe, judges.held_out.pictures).items()
                  if not only or any(word in name for word in only)}  # fmt: skip
        facts["ablations"] = {}
        for name, change in chosen.items():
            small, _ = sample(pipe, judges.held_out, change, batch=batch, seed=seed, upsampled=False)
            facts["ablations"][name] = judges.verdict(small, None, name=name)
            if output:  # each when it is done: an hour of them should survive an interruption
                output.write_text(json.dumps(facts, indent=1) + "\n")
    else:
        started = time.perf_counter()
        small, large = sample(pipe, judges.held_out, lambda texts, at: {}, batch=batch, seed=seed, upsampled=True)
        facts["seconds_per_picture"] = round((time.perf_counter() - started) / count, 3)
        facts["threads"] = torch.get_num_threads()
        facts |= judges.verdict(small, large, name=SHOWN)
        if output:
            output.write_text(json.dumps(facts, indent=1) + "\n")


class Judges:
    """The held-out captions, and what every scorer says of pictures of them, of real renders and of chance."""

    def __init__(self, count: int, *, seed: int, icons: Path | None, cache: Path | None) -> None:
        bank = build_bank(CPU.nouns, icons=icons, cache=cache)
        options: dict[str, Any] = {"scope": CPU, "bank": bank, "split": "held_out", "captions": 1}
        self.held_out = dataset(count, seed=seed, **options)
        self.matcher = SpriteMatcher(bank, backgrounds=CPU.backgrounds)
        self.detector = SceneDetector.load(WEIGHTS)
        self.real = as_pixels(self.held_out.pictures)
        self.reference = self._features(as_pixels(dataset(count, seed=seed + 1, **options).pictures))
        self.known = {CEILING: self._rates(self.real), CHANCE: self._rates(self.real.roll(1, 0))}

    def verdict(self, small: Tensor, large: Tensor | None, *, name: str) -> dict[str, Any]:
        """Rates by group of captions and by row, and distances; what they say is printed."""
        rows = {f"{name}, 64 px": small} | ({} if large is None else {name: large})
        judged = self.known | {row: self._rates(pictures) for row, pictures in rows.items()}
        facts: dict[str, Any] = {
            "rates": {f"{group}: {row}": rates[group] for group in GROUPS for row, rates in judged.items()},
            "distances": {row: self._distances(pictures) for row, pictures in ({CEILING: self.real} | rows).items()},
        }
        _print(facts, name=name)
        return facts

    def _rates(self, pictures: Tensor) -> dict[str, dict[str, Any]]:
        """By group of captions, what both scorers say of pictures of all of them."""
        by_group = {}
        for group, layouts in GROUPS.items():
            chosen = [i for i, scene in enumerate(self.held_out.scenes) if scene.layout in layouts]
            scenes = [self.held_out.scenes[i] for i in chosen]
            rates = score([pictures[i] for i in chosen], scenes, matcher=self.matcher)
            seen = self.detector.see(pictures[chosen])
            verdicts = [right(kinds, scene) for kinds, scene in zip(seen, scenes, strict=True)]
            for what in ("object", "object and colour"):
                rates[f"{what}, by the detector"] = wilson(sum(v[what] for v in verdicts), len(verdicts))
            by_group[group] = {k: _numbers(rate) for k, rate in rates.items() if rate.n}
        return by_group

    def _distances(self, pictures: Tensor) -> dict[str, float]:
        features = self._features(pictures)
        value, error = kernel_distance(features, self.reference)
        return {
            "frechet": round(frechet_distance(features, self.reference), 3),
            "kernel": round(1000 * value, 3),
            "kernel's standard error": round(1000 * error, 3),
        }

    def _features(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.detector.features(part) for part in pictures.split(100)])


Change = Callable[[list[str], int], dict[str, Any]]


def variants(pipe: UnCLIPPipeline, pictures: np.ndarray) -> dict[str, Change]:
    """By name, the arguments that change a call for captions from number ``at`` on."""

    def true_embeds(texts: list[str], at: int) -> dict[str, Any]:
        return {"image_embeds": _image_embeds(pipe, pictures[at : at + len(texts)])}

    length = _image_embeds(pipe, pictures[:100]).norm(dim=1).mean()

    def no_prior(texts: list[str], at: int) -> dict[str, Any]:
        text = pipe.encode_text(texts).text_embed.detach()
        return {"image_embeds": text * (length / text.norm(dim=1, keepdim=True))}

    def fixed(**options: Any) -> Change:
        return lambda texts, at: options

    def worded(change: Callable[[str], str]) -> Change:
        return lambda texts, at: {"prompt": [change(text) for text in texts]}

    numbers = {
        "prior guidance": ("prior_guidance_scale", (1.0, 1.5, 3.0)),
        "decoder guidance": ("decoder_guidance_scale", (1.0, 1.5, 2.0, 3.0, 5.0)),
        "decoder steps": ("decoder_num_inference_steps", (4, 8, 12, 25)),
    }
    return {
        "the defaults": fixed(),
        "no prior: the text embedding, as long as a picture's": no_prior,
        "the true picture's embedding": true_embeds,
        "prior, best of 2": fixed(num_prior_samples=2),
        "captions in capitals": worded(str.upper),
        "captions without articles": worded(lambda text: re.sub(r"\b(an?|the|one) ", "", text)),
        **{
            f"{name} {value:g}": fixed(**{option: value})
            for name, (option, values) in numbers.items()
            for value in values
            if value != pipe.config["sampling_defaults"].get(option)
        },
    }


def sample(
    pipe: UnCLIPPipeline, held_out: CaptionedScenes, change: Change, *, batch: int, seed: int, upsampled: bool
) -> Made:
    """Pictures of all captions, each from its own seed."""
    small, large = [], []
    for at in range(0, len(held_out.captions), batch):
        texts = [several[0] for several in held_out.captions[at : at + batch]]
        made = pipe(
            generator=[torch.Generator().manual_seed(seed + at + i) for i in range(len(texts))],
            output_type="pt",
            output_size=256 if upsampled else 64,
            **{"prompt": texts, **change(texts, at)},
        )
        small.append(made.small_images * 2 - 1)
        large.append(made.images * 2 - 1)
    return torch.cat(small), torch.cat(large) if upsampled else None


@torch.no_grad()
def _image_embeds(pipe: UnCLIPPipeline, pictures: np.ndarray) -> Tensor:
    assert pipe.image_encoder is not None
    return pipe.image_encoder(as_pixels(pictures)).image_embeds


def _numbers(rate: Rate) -> dict[str, float | int]:
    return {"rate": round(rate.rate, 4), "low": round(rate.low, 4), "high": round(rate.high, 4), "n": rate.n}


def _print(facts: dict[str, Any], *, name: str) -> None:
    for row, rates in facts["rates"].items():
        if name in row:
            click.echo(row)
            for attribute, rate in rates.items():
                click.echo(
                    f"  {attribute:34} {rate['rate']:.3f}  [{rate['low']:.3f}, {rate['high']:.3f}]  n={rate['n']}"
                )
    for row, distances in facts["distances"].items():
        click.echo(f"{row}: " + ", ".join(f"{what} {value}" for what, value in distances.items()))


if __name__ == "__main__":
    main()
