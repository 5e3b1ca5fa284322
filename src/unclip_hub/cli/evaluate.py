"""`unclip evaluate`: numbers that do not hide what a model lacks."""

import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unclip_hub.cli import options, plain_errors


if TYPE_CHECKING:
    from unclip_hub.evaluation.caption_cases import Cases
    from unclip_hub.evaluation.intervals import Estimate
    from unclip_hub.evaluation.priors import Card, Truth
    from unclip_hub.pipelines.prior_samples import PriorSamples
    from unclip_hub.pipelines.text_to_image import UnCLIPPipeline

REAL, TEXT, TIME = "real pictures", "text embedding", "ms per embedding"
NOT_MEASURED = "not measured"


@click.group(name="evaluate")
def command() -> None:
    """Measure models."""


@command.command(name="prior")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--data", default="scenes", metavar="DATA", help="Pictures with captions. [default: scenes]")
@click.option("-n", "count", type=click.IntRange(min=2), default=500, help="Captions. [default: 500]")
@click.option("--samples", type=click.IntRange(min=1), default=4, help="Of each caption. [default: 4]")
@click.option("--ladder", is_flag=True, help="Also measure real embeddings made worse in steps.")
@click.option("--batch", type=click.IntRange(min=1), default=32, help="Captions at a time. [default: 32]")
@options.prior_steps
@options.prior_guidance
@click.option("--seed", type=options.SEED, default=0, help="[default: 0]")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write all numbers as JSON.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="[default: auto]")
@click.option("--dtype", type=click.Choice(options.DTYPES), default="float32", help="[default: float32]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def prior(
    models: tuple[str, ...],
    *,
    data: str,
    count: int,
    samples: int,
    ladder: bool,
    batch: int,
    prior_num_inference_steps: int | None,
    prior_guidance_scale: float | None,
    seed: int,
    output: Path | None,
    device: str,
    dtype: str,
    debug: bool,
) -> None:
    """The report card of the priors of MODELs (folders or repositories; the bundled model), in one table.

    \b
    cosine           between samples and pictures of the caption
    retrieval        how often a sample is nearest to its caption's picture, of all
    conditional MMD  distance between samples and pictures of the same caption
    marginal MMD     distance between all samples and all pictures
    spread           variance within a caption, as part of that of all pictures
    diversity        that variance, as a multiple of the pictures' own
    norm             of samples, as a multiple of the pictures' norm
    binding          how often a sample is nearer to its caption's picture than to
                     that with one attribute swapped
    ms per embedding

    "real pictures" are other pictures of the captions, what a perfect prior would score; "text embedding" takes the
    caption's own embedding for the picture's. Intervals are of 95 %, by a bootstrap over captions. Only procedural
    scenes have several pictures of a caption, and swaps; elsewhere what needs them is not measured. Scenes are such
    as training never draws, in wordings that it never reads. Of other data the first N pictures are taken, with
    their first captions. The forms of DATA: unclip data check --help.

    Example: unclip evaluate prior runs/flow/model runs/gaussian/model --data scenes:64 -n 1000 --output prior.json
    """
    with plain_errors(debug=debug):
        from unclip_hub.evaluation.caption_cases import embed
        from unclip_hub.pipelines.text_to_image import UnCLIPPipeline

        places = [options.locate(model) for model in models or (None,)]
        if output is not None:
            options.check_place(output)
        cases = read_cases(data, count=count, samples=samples, seed=seed)
        names = list(models) or ["bundled"]
        given = {
            "prior_num_inference_steps": prior_num_inference_steps,
            "prior_guidance_scale": prior_guidance_scale,
        }
        tables: list[dict[str, Any]] = []
        last: UnCLIPPipeline | None = None
        truth: Truth | None = None
        for name, place in zip(names, places, strict=True):
            pipe = options.load(UnCLIPPipeline, place, device=device, dtype=dtype, quiet=True)
            if truth is None or last is None or not same_encoders(pipe, last):
                truth = embed(cases, pipe.encode_image, batch=batch)
                tables.append(reference_table(truth, samples=samples, ladder=ladder, seed=seed))
            last = pipe
            add_prior(tables[-1], name, pipe, cases, truth, samples=samples, batch=batch, seed=seed, given=given)
        facts = {"data": data, "captions": len(cases.captions), "samples": samples, "seed": seed, "given": given}
        for table in tables:
            click.echo("\n".join(terminal_table(table)))
        if output is not None:
            write_json({**facts, "tables": [as_json(table) for table in tables]}, output)


def read_cases(data: str, *, count: int, samples: int, seed: int) -> "Cases":
    """The captions and pictures of a dataset."""
    from unclip_hub.data.captioned import BrokenSample
    from unclip_hub.data.drawn import DrawnScenes
    from unclip_hub.data.embeddings import Embeddings
    from unclip_hub.data.scenes import dataset
    from unclip_hub.data.sources import in_order, open_data
    from unclip_hub.evaluation.caption_cases import photo_cases, scene_cases

    source = open_data(data)
    if isinstance(source, Embeddings):
        raise ValueError(f"{data} holds embeddings: expected captioned pictures, for each model's own encoder to see")
    if isinstance(source, DrawnScenes):
        world = {"scope": source.scope, "bank": source.bank, "size": source.size}
        drawn = dataset(min(count, len(source)), seed=seed, **world, split="held_out", captions=1)
        captions = [several[0] for several in drawn.captions]
        return scene_cases(drawn.scenes, captions, **world, samples=samples, seed=seed)
    found = [sample for sample, _ in islice(in_order(source), count)]
    for sample in found:
        if isinstance(sample, BrokenSample):
            raise ValueError(f"{sample}; `unclip data check` names all that is wrong")
    if len(found) < 2:
        raise ValueError(f"a report card needs at least 2 captioned pictures, {data} holds {len(found)}")
    return photo_cases(found)  # type: ignore[arg-type]


def same_encoders(a: "UnCLIPPipeline", b: "UnCLIPPipeline") -> bool:
    """Whether two models have one CLIP: only then their numbers can be compared."""
    import torch

    for name in ("text_encoder", "image_encoder"):
        ours, theirs = (getattr(pipe, name).state_dict() for pipe in (a, b))
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return False
    return True


def reference_table(truth: "Truth", *, samples: int, ladder: bool, seed: int) -> dict[str, Any]:
    """A table of priors with one CLIP before there is one in it: the floor and, if asked for, the ladder."""
    from unclip_hub.evaluation import prior_ladder
    from unclip_hub.evaluation.priors import report_card

    rows: dict[str, Card] = {}
    if truth.others is not None:
        rows[REAL] = report_card(truth.others, truth, seed=seed)
    table: dict[str, Any] = {"rows": rows}
    if ladder:
        worse = prior_ladder.ladder(truth, samples=samples, seed=seed)
        cards = {
            name: {amount: report_card(embeds, truth, seed=seed) for amount, embeds in rungs.items()}
            for name, rungs in worse.items()
        }
        real = rows.get(REAL) or report_card(truth.pictures[:, :1].expand(-1, samples, -1), truth, seed=seed)
        table |= {"ladder": cards, "verdicts": prior_ladder.verdicts(real, cards)}
    return table


def add_prior(
    table: dict[str, Any],
    name: str,
    pipe: "UnCLIPPipeline",
    cases: "Cases",
    truth: "Truth",
    *,
    samples: int,
    batch: int,
    seed: int,
    given: dict[str, Any],
) -> "PriorSamples":
    """Add the row of a prior, and that of the text embedding where the table has none yet; returns what it drew."""
    import torch

    from unclip_hub.evaluation.intervals import ratio
    from unclip_hub.evaluation.priors import report_card
    from unclip_hub.pipelines.prior_samples import draw_prior_samples

    drawn = draw_prior_samples(pipe, cases.captions, samples=samples, batch=batch, seed=seed, **given)
    if TEXT not in table["rows"]:
        repeated = drawn.text_embeds[:, None].expand(-1, samples, -1)
        table["rows"][TEXT] = report_card(repeated, truth, seed=seed)
    per_batch = torch.arange(len(drawn.seconds))
    timed = ratio(1000 * drawn.seconds, drawn.rows.double(), groups=per_batch, seed=seed)
    table["rows"][name] = report_card(drawn.embeds, truth, seed=seed) | {TIME: timed}
    return drawn


def terminal_table(table: dict[str, Any]) -> list[str]:
    """A line for each number, a column for each prior; under it whether the ladder was followed."""
    rows: dict[str, Card] = table["rows"]
    metrics = list(dict.fromkeys(metric for card in rows.values() for metric in card))
    heads = [name if len(name) <= 24 else "…" + name[-23:] for name in rows]
    body = [[metric, *(shown(card.get(metric)) for card in rows.values())] for metric in metrics]
    lines = aligned([["", *heads], *body])
    for name, found in table.get("verdicts", {}).items():
        wrong = [metric for metric, right in found.items() if right is False]
        measured = sum(right is not None for right in found.values())
        lines.append(f"ladder, {name}: {measured - len(wrong)} of {measured} numbers go as they must")
        lines += [f"  not so: {metric}" for metric in wrong]
    return lines


def shown(estimate: "Estimate | None") -> str:
    """A number with half its interval, small ones with more digits."""
    if estimate is None:
        return NOT_MEASURED
    digits = 3 if abs(estimate.value) >= 0.1 else 4
    if estimate.n == 1:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} ±{(estimate.high - estimate.low) / 2:.{digits}f}"


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows with their columns under each other, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    pads: list[Callable[..., str]] = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    return ["  ".join(pad(cell, w) for pad, cell, w in zip(pads, row, widths, strict=True)).rstrip() for row in rows]


def as_json(table: dict[str, Any]) -> dict[str, Any]:
    """A table in JSON's types; null is what was not measured."""

    def numbers(card: "Card") -> dict[str, Any]:
        return {metric: None if one is None else one._asdict() for metric, one in card.items()}

    made: dict[str, Any] = {"rows": {name: numbers(card) for name, card in table["rows"].items()}}
    if "ladder" in table:
        made["ladder"] = {
            name: {str(amount): numbers(card) for amount, card in rungs.items()}
            for name, rungs in table["ladder"].items()
        }
        made["verdicts"] = table["verdicts"]
    return made


def write_json(facts: dict[str, Any], path: Path) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
