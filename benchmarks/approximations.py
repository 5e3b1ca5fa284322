"""What does a faster picture cost? Time, adherence and distribution with fewer steps, less guidance, reused features.

    python benchmarks/approximations.py --icons icons.json --output docs/performance.json
    python benchmarks/approximations.py --icons icons.json -n 640 --only "DPM++" --only "together"

Every variant makes pictures of the same held-out captions from the same noise, in turns, batch by batch. Adherence is
the sprite matcher's "all" (see ``adherence.py``); points lost are counted caption by caption, with a 95 % interval.
The kernel distance (``evaluation/distances.py``), times 1,000 and with its standard error, is that from renders of
other held-out scenes, in the features of the detector of ``adherence.py``; of fewer than 100 pictures it would be
chance.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from approximate_variants import DEFAULT, Variant, reused, variants
from measuring import facts, keep, spread
from train_detector import WEIGHTS

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import CPU
from unclip_hub.data.scenes import dataset
from unclip_hub.data.sprites import build_bank
from unclip_hub.evaluation.distances import kernel_distance
from unclip_hub.evaluation.scene_detector import SceneDetector
from unclip_hub.evaluation.sprite_matching import SpriteMatcher, judge, wilson
from unclip_hub.training.world import as_pixels


@click.command(help=__doc__)
@click.option("-n", "count", default=96, show_default=True, help="Captions.")
@click.option("--batch", default=16, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=2026, show_default=True)
@click.option("--icons", type=click.Path(path_type=Path), help="icons.json of Noto Emoji, for the scorer's templates.")
@click.option("--cache", type=click.Path(path_type=Path), help="Rendered emoji (.npz), instead of --icons.")
@click.option(
    "--only", multiple=True, help="Only variants whose name holds this; repeatable. The defaults always run."
)
@click.option("--output", type=click.Path(path_type=Path), help="The file of all results.")
def main(count, batch, threads, seed, icons, cache, only, output) -> None:
    torch.set_num_threads(threads)
    bank = build_bank(CPU.nouns, icons=icons, cache=cache)
    count -= count % batch  # whole batches, so that all times are comparable
    asked = dataset(count, seed=seed, scope=CPU, bank=bank, split="held_out", captions=1)
    others = dataset(4 * count, seed=seed + 1, scope=CPU, bank=bank, split="held_out", captions=1)
    pipe = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    chosen = [v for v in variants() if v.name == DEFAULT or not only or any(word in v.name for word in only)]
    made, seconds, refused = sample(pipe, chosen, [several[0] for several in asked.captions], batch=batch, seed=seed)

    matcher = SpriteMatcher(bank, backgrounds=CPU.backgrounds)
    detector = SceneDetector.load(WEIGHTS)
    reference = detector.features(as_pixels(others.pictures))
    rows: list[dict[str, Any]] = []
    right: dict[str, np.ndarray] = {}
    for name, pictures in made.items():
        seen = zip(pictures, asked.scenes, strict=True)
        right[name] = np.array([bool(judge(matcher.see(p), scene)["all"]) for p, scene in seen])
        ratios = [a / b for a, b in zip(seconds[DEFAULT], seconds[name], strict=True)]
        rate = wilson(int(right[name].sum()), count)
        distance = (
            kernel_distance(detector.features(as_pixels(np.stack(pictures))), reference) if count >= 100 else None
        )
        rows.append(
            {
                "name": name,
                "seconds a picture": spread([s / batch for s in seconds[name]]),
                "times faster": spread(ratios),
                "adherence": {"rate": round(rate.rate, 4), "low": round(rate.low, 4), "high": round(rate.high, 4)},
                "points lost": lost(right[DEFAULT], right[name]),
                "kernel distance": distance and [round(1000 * number, 1) for number in distance],
            }
        )
    mark(rows)
    for row in rows:
        click.echo(_line(row))
    for name, reason in refused.items():
        click.echo(f"{name}: {reason}")
    if output:
        key = f"{count} captions, {threads} threads" + (f", {'; '.join(only)}" if only else "")
        known = {**facts(), "captions": count, "batch": batch, "seed": seed}
        keep(output, "approximations", key, {**known, "rows": rows, "not measured": refused})


def sample(
    pipe: UnCLIPPipeline, chosen: Sequence[Variant], captions: list[str], *, batch: int, seed: int
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[float]], dict[str, str]]:
    """Pictures, the seconds of each batch, and why a variant cannot be run."""
    pipes, refused = {}, {}
    for variant in chosen:
        try:
            pipes[variant.name] = variant.on(pipe)
            pipes[variant.name](captions[:1], output_type="np", **variant.options)
        except (ImportError, ValueError) as error:
            refused[variant.name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    running = [variant for variant in chosen if variant.name not in refused]
    made: dict[str, list[np.ndarray]] = {variant.name: [] for variant in running}
    seconds: dict[str, list[float]] = {variant.name: [] for variant in running}
    for start in range(0, len(captions), batch):
        for i in range(len(running)):
            variant = running[(i + start // batch) % len(running)]
            generators = [torch.Generator().manual_seed(seed + start + j) for j in range(batch)]
            reuse = reused(pipe.decoder, every=variant.reuse) if variant.reuse > 1 else nullcontext()
            began = time.perf_counter()
            with reuse:
                pictures = pipes[variant.name](
                    captions[start : start + batch], generator=generators, output_type="np", **variant.options
                ).images
            seconds[variant.name].append(time.perf_counter() - began)
            made[variant.name] += [np.rint(picture * 255).astype(np.uint8) for picture in pictures]
        click.echo(f"{start + batch} of {len(captions)} captions", err=True)
    return made, seconds, refused


def lost(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Percentage points of adherence, and a 95 % interval over captions (normal, paired)."""
    each = 100 * (before.astype(float) - after)
    half = 1.96 * each.std(ddof=1) / math.sqrt(len(each))
    return {"points": round(each.mean(), 2), "low": round(each.mean() - half, 2), "high": round(each.mean() + half, 2)}


def mark(rows: list[dict[str, Any]]) -> None:
    """Which variants no other beats in both time and adherence, and the knee of their curve.

    The knee is the one farthest from the line between the slowest and the fastest of them, both axes scaled to 1.
    """
    at = {row["name"]: (row["seconds a picture"]["median"], row["adherence"]["rate"]) for row in rows}

    def beaten(name: str) -> bool:
        s, r = at[name]
        return any(s2 <= s and r2 >= r and (s2, r2) != (s, r) for s2, r2 in at.values())

    best = sorted((name for name in at if not beaten(name)), key=lambda name: at[name])
    (s0, r0), (s1, r1) = at[best[0]], at[best[-1]]

    def above(name: str) -> float:
        s, r = at[name]
        return (r - r0) / ((r1 - r0) or 1) - (s - s0) / ((s1 - s0) or 1)

    knee = max(best, key=above)
    for row in rows:
        row["pareto"], row["knee"] = row["name"] in best, row["name"] == knee


def _line(row: dict[str, Any]) -> str:
    rate, cost = row["adherence"], row["points lost"]
    mark = "knee" if row["knee"] else "pareto" if row["pareto"] else ""
    return (
        f"{row['name']:44} {row['seconds a picture']['median']:7.4f} s {row['times faster']['median']:5.2f}x  "
        f"adherence {rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]  lost {cost['points']:6.2f} "
        f"[{cost['low']:.2f}, {cost['high']:.2f}]  distance {row['kernel distance']}  {mark}"
    )


if __name__ == "__main__":
    main()
