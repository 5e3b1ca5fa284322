"""The numbers of `priors.py` as markdown tables.

python benchmarks/priors_table.py docs/priors.json
"""

import json
from pathlib import Path
from typing import Any

import click

from unclip_hub.cli.evaluate import TIME, shown
from unclip_hub.evaluation.intervals import Estimate
from unclip_hub.evaluation.priors import BEST


ORDER = ("real renders", "true embedding", "text embedding", "caption alone")  # the others, priors, come last


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
def main(source: Path) -> None:
    click.echo(markdown(json.loads(source.read_text(encoding="utf-8"))))


def markdown(facts: dict[str, Any]) -> str:
    """The report cards, the attributes whose binding was measured, the ladder, and adherence where there is one."""
    rows = facts["table"]["rows"]
    attributes = [metric for metric in next(iter(rows.values())) if metric.startswith("binding: ")]
    best = {metric: f"{metric} ({wanted})" for metric, wanted in BEST.items()} | {TIME: TIME}
    parts = [
        _table(
            "prior",
            best,
            {name: {metric: _number(card.get(metric)) for metric in best} for name, card in rows.items()},
        ),
        _table(
            "binding",
            {metric: metric.removeprefix("binding: ") for metric in attributes},
            {name: {metric: _number(card.get(metric)) for metric in attributes} for name, card in rows.items()},
        ),
        _ladder(facts["table"]),
    ]
    if "adherence" in facts:
        parts += [_adherence(kind, facts["adherence"]) for kind in facts["adherence"][ORDER[0]]]
    return "\n\n".join(parts)


def _ladder(table: dict[str, Any]) -> str:
    shown = [metric for metric in BEST]
    rungs = {
        f"{name} {amount}": {metric: _number(card.get(metric)) for metric in shown}
        for name, cards in table["ladder"].items()
        for amount, card in cards.items()
    }
    wrong = [
        f"{metric} under {name}"
        for name, found in table["verdicts"].items()
        for metric, right in found.items()
        if right is False
    ]
    order = f"Out of order: {', '.join(wrong)}." if wrong else "Every number follows the ladder as it must."
    return f"{_table('degraded', {metric: metric for metric in shown}, rungs)}\n\n{order}"


def _adherence(kind: str, rates: dict[str, Any]) -> str:
    names = [*ORDER, *(name for name in rates if name not in ORDER)]
    columns = {attribute: attribute for attribute in rates[ORDER[0]][kind]}
    cells = {
        name: {
            attribute: f"{one['rate']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            for attribute, one in rates[name][kind].items()
        }
        for name in names
    }
    counts = ", ".join(f"{attribute} {one['n']}" for attribute, one in rates[ORDER[0]][kind].items())
    return f"{_table(kind, columns, cells)}\n\nPictures: {counts}."


def _number(estimate: dict[str, Any] | None) -> str:
    return shown(None if estimate is None else Estimate(**estimate))


def _table(corner: str, columns: dict[str, str], rows: dict[str, dict[str, str]]) -> str:
    lines = [f"| {corner} | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells[column] for column in columns)} |" for name, cells in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
