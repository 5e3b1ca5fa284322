"""The report card of priors on scenes that training never saw, and what becomes of their embeddings in the decoder.

    python benchmarks/priors.py --icons icons.json --prior gaussian=runs/gaussian/model --output docs/priors.json

The bundled model's prior comes first; the others must share its CLIP, and their embeddings are decoded by its decoder.
Of the first captions the 64 px pictures are judged by the sprite matcher, which learned nothing: those of every prior,
and those of the paper's other conditioning signals (Ramesh et al. 2022, section 5.1 and figure 8): the caption alone,
and the text embedding in the image embedding's place. `priors_table.py` renders the JSON as markdown.
"""

import time
from pathlib import Path
from typing import Any

import click
import torch
from jaxtyping import Float
from torch import Tensor

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.cli.evaluate import TEXT, add_prior, as_json, reference_table, same_encoders, write_json
from unclip_hub.data.scene_spec import CPU, Scene
from unclip_hub.data.scenes import CaptionedScenes, dataset
from unclip_hub.data.sprites import build_bank
from unclip_hub.evaluation.caption_cases import embed, scene_cases
from unclip_hub.evaluation.sprite_matching import Rate, SpriteMatcher, score
from unclip_hub.pipelines.settings import settings


BUNDLED, CAPTION, TRUE = "diffusion (bundled)", "caption alone", "true embedding"
KINDS = {"one thing, or several of a kind": ("one", "count"), "two things": ("pair",)}  # as in adherence.py


@click.command(help=__doc__)
@click.option("--prior", "named", multiple=True, metavar="NAME=FOLDER", help="A model with another prior; repeatable.")
@click.option("--model", default=BUNDLED_MODEL, show_default=False, help="The first one; the bundled model.")
@click.option("-n", "count", type=click.IntRange(2), default=2000, show_default=True, help="Captions.")
@click.option("--samples", type=click.IntRange(2), default=4, show_default=True, help="Embeddings of each caption.")
@click.option("--pictures", type=click.IntRange(0), default=320, show_default=True, help="Captions to decode.")
@click.option("--batch", default=32, show_default=True, help="Captions at a time.")
@click.option("--seed", default=2026, show_default=True)
@click.option("--icons", type=click.Path(path_type=Path), help="icons.json of Noto Emoji.")
@click.option("--cache", type=click.Path(path_type=Path), help="Rendered emoji (.npz), instead of --icons.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON, written after every step.")
def main(
    named: tuple[str, ...],
    model: str,
    count: int,
    samples: int,
    pictures: int,
    batch: int,
    seed: int,
    icons: Path | None,
    cache: Path | None,
    output: Path,
) -> None:
    folders = {BUNDLED: model} | dict(_split(one) for one in named)
    bank = build_bank(CPU.nouns, canvases=(64,), icons=icons, cache=cache)
    held_out = dataset(count, seed=seed, scope=CPU, bank=bank, split="held_out", captions=1)
    captions = [several[0] for several in held_out.captions]
    cases = scene_cases(held_out.scenes, captions, scope=CPU, bank=bank, size=64, samples=samples, seed=seed)
    pipe = _opened(model)
    truth = embed(cases, pipe.encode_image, batch=256)
    table = reference_table(truth, samples=samples, ladder=True, seed=seed)
    facts: dict[str, Any] = {"captions": count, "samples": samples, "seed": seed, "pictures": pictures}
    signals: dict[str, Float[Tensor, "p d"]] = {}
    for name, folder in folders.items():
        one = pipe if name == BUNDLED else _opened(folder)
        if not same_encoders(one, pipe):
            raise click.ClickException(f"{folder} has another CLIP than {model}: their numbers cannot be compared")
        drawn = add_prior(table, name, one, cases, truth, samples=samples, batch=batch, seed=seed, given={})
        signals[name] = drawn.embeds[:pictures, 0]
        signals[TEXT] = drawn.text_embeds[:pictures]
        write_json(facts | {"table": as_json(table)}, output)
        click.echo(f"{name}: report card")
    facts["table"] = as_json(table)
    if pictures:
        nothing = pipe.text_proj.learned_classifier_free_guidance_embeddings.detach()
        signals[CAPTION] = nothing.expand(len(signals[TEXT]), -1)
        signals[TRUE] = truth.pictures[:pictures, 0]
        facts |= adherence(
            pipe, signals, held_out, matcher=SpriteMatcher(bank, backgrounds=CPU.backgrounds), seed=seed
        )
    write_json(facts, output)
    click.echo(output)


def adherence(
    pipe: UnCLIPPipeline,
    signals: dict[str, Float[Tensor, "p d"]],
    held_out: CaptionedScenes,
    *,
    matcher: SpriteMatcher,
    seed: int,
) -> dict[str, Any]:
    """The rates of pictures decoded from each signal, and of the true ones; all signals get the same noise."""
    count = len(signals[TEXT])
    captions, scenes = [several[0] for several in held_out.captions[:count]], held_out.scenes[:count]
    rates = {"real renders": _rates(list(held_out.pictures[:count]), scenes, matcher)}
    started = time.perf_counter()
    for name, embeds in signals.items():
        rates[name] = _rates(decoded(pipe, captions, embeds, seed=seed), scenes, matcher)
        click.echo(f"{name}: {count} pictures")
    seconds = (time.perf_counter() - started) / (count * len(signals))
    return {"adherence": rates, "seconds_per_picture": round(seconds, 3)}


@torch.no_grad()
def decoded(
    pipe: UnCLIPPipeline, captions: list[str], embeds: Float[Tensor, "p d"], *, seed: int, batch: int = 20
) -> list[Float[Tensor, "3 h w"]]:
    """The decoder's pictures in [-1, 1], with the checkpoint's own settings; each has a seed of its own."""
    chosen, empty, made = settings(pipe), pipe.encode_text(""), []
    for at in range(0, len(captions), batch):
        cond = pipe.encode_text(captions[at : at + batch]).with_image(embeds[at : at + batch])
        made += pipe.decode(
            cond,
            empty,
            num_inference_steps=chosen.steps["decoder"],
            **chosen.guidance["decoder"],
            generator=[torch.Generator().manual_seed(seed + at + i) for i in range(len(cond))],
        )
    return made


def _rates(pictures: list[Any], scenes: list[Scene], matcher: SpriteMatcher) -> dict[str, Any]:
    found = {}
    for kind, layouts in KINDS.items():
        chosen = [i for i, scene in enumerate(scenes) if scene.layout in layouts]
        rates = score([pictures[i] for i in chosen], [scenes[i] for i in chosen], matcher=matcher)
        found[kind] = {attribute: _numbers(rate) for attribute, rate in rates.items() if rate.n}
    return found


def _numbers(rate: Rate) -> dict[str, float | int]:
    return {"rate": round(rate.rate, 4), "low": round(rate.low, 4), "high": round(rate.high, 4), "n": rate.n}


def _opened(folder: str) -> UnCLIPPipeline:
    pipe = UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _split(named: str) -> tuple[str, str]:
    name, equals, folder = named.partition("=")
    if not (name and equals and folder) or name == BUNDLED:
        raise click.UsageError(f"--prior must be NAME=FOLDER, with a name other than {BUNDLED!r}, got {named!r}")
    return name, folder


if __name__ == "__main__":
    main()
