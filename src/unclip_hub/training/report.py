"""What a training did, as a page that its owner can read: ``report.md`` with its curves beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unclip_hub.training.bands import outside


# curves that belong in one picture: its name, what its y axis says, the names in stats.jsonl, a logarithmic axis
PANELS = (
    ("loss", "loss", ("loss",), True),
    ("by_noise", "loss by noise level, low to high", ("v0", "v1", "v2", "v3", "v4"), True),
    ("cosine", "cosine to the true image embedding", ("cosine", "baseline_cosine"), False),
    ("swap", "right caption above its near misses", ("swap",), False),
    ("error", "squared error of pictures decoded from codes", ("error",), True),
    ("codes", "codes in a batch: different ones, perplexity", ("codes", "perplexity"), True),
    ("gradient", "norm of the gradient", ("grad_norm",), True),
)


def write_report(
    output: Path,
    *,
    title: str,
    facts: Mapping[str, Any],
    proof: str | None = None,
    samples: str | None = None,
    bands: Mapping[str, float] | None = None,
) -> Path:
    """Write ``output/report.md`` from ``output/stats.jsonl``.

    Args:
        facts: what stands in the table: command, data, network, number of parameters, and the like.
        proof: what the check before the run said.
        samples: the file name of a grid of samples in ``output``, if there is one.
        bands: what columns of the numbers should have fallen below, as `bands.filter_losses` tells.

    Raises:
        ImportError: matplotlib is missing; ``pip install "unclip_hub[train]"``.
    """
    rows = read_stats(output)
    lines = [f"# {title}", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts.items())]
    if rows:
        lines += [f"| {name} | {value} |" for name, value in _summary(rows).items()]
    if proof is not None:
        lines += ["", f"**Before the run.** {proof[0].upper()}{proof[1:]}."]
    if samples is not None:
        lines += ["", f"![samples]({samples})"]
    if bands and rows:
        line = outside(rows[-1], bands)
        lines += ["", f"**At the end** {line}; dashed in the picture below."]
    for name, file in _draw(output, rows, bands=bands or {}).items():
        lines += ["", f"![{name}]({file})"]
    path = output / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_stats(output: Path) -> list[dict[str, float]]:
    """The numbers that the loop logged."""
    stats = output / "stats.jsonl"
    return [json.loads(line) for line in stats.read_text().splitlines()] if stats.exists() else []


def _summary(rows: list[dict[str, float]]) -> dict[str, str]:
    first, last = rows[0], rows[-1]
    skipped = sum(row.get("skipped", 0.0) for row in rows) / len(rows)
    summary = {
        "steps": f"{last['step']:.0f}",
        "loss": f"{first['loss']:.4g} at step {first['step']:.0f}, {last['loss']:.4g} at the end",
        "steps with a gradient that was not finite": f"{100 * skipped:.2f} %",
    }
    if "cosine" in last and "baseline_cosine" in last:
        summary["cosine to the true embedding"] = f"{last['cosine']:.3f} (baseline {last['baseline_cosine']:.3f})"
    return summary


def _draw(output: Path, rows: list[dict[str, float]], *, bands: Mapping[str, float]) -> dict[str, str]:
    """The curves there are numbers for, as PNG files in ``output``."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('a report needs matplotlib: pip install "unclip_hub[train]"') from error
    drawn = {}
    for name, label, columns, logarithmic in PANELS:
        present = [column for column in columns if any(column in row for row in rows)]
        if not present:
            continue
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.add_subplot()
        for column in present:
            points = [(row["step"], row[column]) for row in rows if column in row]
            (line,) = axes.plot(*zip(*points, strict=True), label=column, linewidth=1)
            if column in bands:
                axes.axhline(bands[column], color=line.get_color(), linestyle="--", linewidth=0.8)
        axes.set(xlabel="step", ylabel=label, yscale="log" if logarithmic else "linear")
        axes.grid(alpha=0.3)
        if len(present) > 1:
            axes.legend(fontsize="small", ncols=len(present))
        figure.savefig(output / f"{name}.png", dpi=110)
        drawn[label] = f"{name}.png"
    return drawn


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
