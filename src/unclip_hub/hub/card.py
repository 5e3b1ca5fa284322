"""Model cards: from the files of a model, what people know of it, and what was measured. Nothing else is claimed."""

import json
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from unclip_hub.hub.card_check import LIBRARY, TASK
from unclip_hub.hub.card_facts import MEASURES, Facts, Result, Results, Training
from unclip_hub.hub.inspect import Checkpoint
from unclip_hub.hub.sizes import readable


REPOSITORY = "OWNER/NAME"  # `push` puts the repository's own name here
UNKNOWN = "Not written down by its authors, and not measured."


def write_card(
    facts: Facts, *, checkpoint: Checkpoint | None = None, results: Results | None = None, beside: Path | None = None
) -> str:
    """A card in Markdown, with the Hub's metadata.

    Args:
        facts: of ``card_facts``.
        checkpoint: the model's files, or None if they are not at hand.
        results: what was measured, or None.
        beside: the folder in which training logs are looked for.

    Raises:
        ValueError: a training log that the facts name is missing or holds no steps.
    """
    results = results or Results()
    parts = [
        f"# {facts.name}\n\n{facts.summary.strip()}".strip(),
        _examples(facts),
        f"## Use\n\n{_usage(facts, checkpoint)}",
        f"## What it is for\n\n{facts.scope.strip() or UNKNOWN}",
        f"## How well\n\n{_measured(results)}",
        _reported(facts),
        f"## Limits\n\n{facts.limits.strip() or UNKNOWN}",
        f"## Biases\n\n{facts.biases.strip() or UNKNOWN}",
        f"## Data\n\n{facts.data.strip() or UNKNOWN}",
        f"## Training\n\n{_training(facts, beside or Path())}",
        f"## Networks\n\n{_networks(checkpoint)}",
        f"## Licence\n\n{_licence(facts)}",
    ]
    return f"---\n{_metadata(facts, results)}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts: Facts, results: Results) -> str:
    widget = [{"text": one.caption, "output": {"url": _picture(one.picture)}} for one in facts.examples]
    measured = [
        EvalResult(
            task_type=TASK,
            dataset_type=one.dataset_id,
            dataset_name=one.dataset,
            dataset_config=one.dataset,  # results of one type and configuration are merged under the first one's name
            dataset_split=one.split,
            metric_type=one.measure,
            metric_name=one.metric,
            metric_value=one.value,
            metric_args=_interval(one, results),
        )
        for one in results.results
    ]
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=TASK,
        license=facts.license,
        license_link=facts.license_link,
        base_model=facts.base_model,
        datasets=facts.datasets or None,
        tags=["unclip", *facts.tags],
        widget=widget or None,
        model_name=facts.name,
        eval_results=measured or None,
    )
    if not measured:
        data.model_name = None
    return data.to_yaml().strip()


def _interval(result: Result, results: Results) -> dict[str, Any] | None:
    if result.low is None:
        return None
    return {"low": result.low, "high": result.high, "interval": results.interval, "n": result.n}


def _examples(facts: Facts) -> str:
    if not facts.examples:
        return ""
    heads = [one.caption if one.seed is None else f"{one.caption} (seed {one.seed})" for one in facts.examples]
    return _table(heads, [[f"![{one.caption}]({_picture(one.picture)})" for one in facts.examples]])


def _picture(path: str) -> str:
    return f"images/{Path(path).name}"


def _usage(facts: Facts, checkpoint: Checkpoint | None) -> str:
    if facts.usage:
        return facts.usage.strip()
    name = checkpoint.pipeline if checkpoint else "UnCLIPPipeline"
    caption = facts.examples[0].caption if facts.examples else "a red circle"
    made = 'pipe(Image.open("picture.png"))' if "Variation" in name else f"pipe({json.dumps(caption)})"
    pil = "from PIL import Image\n\n" if "Variation" in name else ""
    half = '\n\nIts variant is loaded with `variant="fp16"`.' if _has_variant(checkpoint, "fp16") else ""
    return f"""```python
{pil}from unclip_hub import {name}

pipe = {name}.from_pretrained("{REPOSITORY}")
image = {made}.images[0]
```

Plain diffusers opens it too, if `unclip_hub` is installed:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{REPOSITORY}", trust_remote_code=True)
```{half}"""


def _has_variant(checkpoint: Checkpoint | None, variant: str) -> bool:
    return checkpoint is not None and any(checkpoint.folder.glob(f"*/*.{variant}*.safetensors"))


def _measured(results: Results) -> str:
    parts = [results.protocol.strip()] if results.protocol else []
    for measure in MEASURES:
        chosen = [one for one in results.results if one.measure == measure]
        if chosen:
            parts.append(_result_table(chosen, title=MEASURES[measure], interval=results.interval))
    ceilings = [one.ceiling for one in results.results if one.ceiling is not None]
    if any(one.chance is not None for one in results.results) and results.chance:
        parts.append(f"Chance: {results.chance.strip()}")
    if ceilings and results.ceiling:
        ends = sorted({_number(min(ceilings)), _number(max(ceilings))})
        parts.append(f"Ceiling: {' to '.join(ends)}{' in every row' if len(ends) == 1 else ''}: {results.ceiling}")
    absent = [what for measure, what in MEASURES.items() if measure not in {one.measure for one in results.results}]
    if absent:
        parts.append(f"**Not measured:** {', '.join(absent)}.")
    return "\n\n".join(parts)


def _result_table(results: Sequence[Result], *, title: str, interval: str) -> str:
    """Metrics down, data sets across, each with chance beside it where that is known."""
    datasets = list(dict.fromkeys(one.dataset for one in results))
    cells = {(one.metric, one.dataset): one for one in results}
    with_chance = {one.dataset for one in results if one.chance is not None}
    head, rows = [title], []
    for dataset in datasets:
        head += ["value" if dataset == "none" else dataset, *(["chance"] if dataset in with_chance else [])]
    for metric in dict.fromkeys(one.metric for one in results):
        row = [metric]
        for dataset in datasets:
            one = cells.get((metric, dataset))
            row.append("–" if one is None else _value(one))
            if dataset in with_chance:
                row.append("–" if one is None or one.chance is None else _number(one.chance))
        rows.append(row)
    said = f"\n\nIn brackets: {interval}." if interval and any(one.low is not None for one in results) else ""
    return _table(head, rows) + said


def _value(result: Result) -> str:
    if result.low is None or result.high is None:
        ends = " (interval not measured)"
    else:
        ends = f" [{_number(result.low)}, {_number(result.high)}]"
    return f"{_number(result.value)}{ends}" + (f", n = {result.n:,}" if result.n is not None else "")


def _number(value: float | int) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _reported(facts: Facts) -> str:
    if not facts.reported:
        return ""
    rows = [[one.metric, one.value, one.dataset, one.source] for one in facts.reported]
    table = _table(["metric", "value", "data", "source"], rows)
    return f"### Reported by others, not measured here\n\n{table}"


def _training(facts: Facts, beside: Path) -> str:
    note = f"\n\n{facts.training_note.strip()}" if facts.training_note else ""
    if not facts.training:
        return facts.training_note.strip() or UNKNOWN
    rows = []
    for one in facts.training:
        steps, loss = _log(one, beside)
        rows.append([one.network, one.parameters or "not counted", one.trained_on, steps, loss, one.time or "unknown"])
    return _table(["network", "parameters", "trained on", "steps", "loss at the end", "time"], rows) + note


def _log(training: Training, beside: Path) -> tuple[str, str]:
    """Steps and the last loss, as the loop logged them."""
    if not training.log:
        return "not logged", "not logged"
    path = beside / training.log
    try:
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        return f"{last['step']:,.0f}", f"{last['loss']:.3g}"
    except (OSError, IndexError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold the training's steps, one JSON object a line: {error!r}") from None


def _networks(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "Its files were not at hand when this card was written."
    rows = []
    for name, component in checkpoint.components.items():
        shapes = [info.shape for key, info in (component.tensors or {}).items() if not key.endswith("position_ids")]
        size = sum(path.stat().st_size for path in component.files)
        if component.kind == "model":
            rows.append(
                [name, component.ours[1], f"{sum(map(prod, shapes)):,}", ", ".join(component.dtypes), readable(size)]
            )
        elif component.kind == "scheduler":
            rows.append([name, component.ours[1], "–", "–", "–"])
    settings = checkpoint.index.get("sampling_defaults")
    said = ", ".join(f"`{name}={value}`" for name, value in sorted(settings.items())) if settings else "Karlo's"
    defaults = f"\n\nSteps and guidance, unless a call says otherwise: {said}."
    return _table(["component", "class", "parameters", "stored as", "size"], rows) + defaults


def _licence(facts: Facts) -> str:
    link = f" ({facts.license_link})" if facts.license_link else ""
    base = f"Made from `{facts.base_model}`." if facts.base_model else "No base model is named."
    return f"`{facts.license}`{link}. {base}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(_lines([head, ["---"] * len(head), *rows]))


def _lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in row)} |"
