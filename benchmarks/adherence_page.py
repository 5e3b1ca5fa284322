"""The tables of README and docs/adherence.md from the results of `adherence.py`, between the pages' markers.

python benchmarks/adherence_page.py
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from adherence_metrics import CEILING, CHANCE, ORDER, SHOWN
from markers import fill, head, line


ROOT = Path(__file__).parents[1]
ONE, TWO, THREE = "one thing, or several of a kind", "two things", "three things"  # groups of adherence.py
WHAT = {  # of which group the ablations' table says what
    "all, one thing": (ONE, "all"),
    "all, two things": (TWO, "all"),
    "objects of two": (TWO, "object"),
    "their colours": (TWO, "colour"),
    "both bound": (TWO, "object and colour"),
    "their relation": (TWO, "relation"),
}
Facts = Mapping[str, Any]


@click.command(help=__doc__)
def main() -> None:
    shown = json.loads((ROOT / "docs" / "adherence.json").read_text(encoding="utf-8"))
    tried = json.loads((ROOT / "docs" / "ablations.json").read_text(encoding="utf-8"))
    page = ROOT / "docs" / "adherence.md"
    fill(ROOT / "README.md", "adherence", "\n".join(rates(shown)))
    fill(page, "adherence", "\n".join(rates(shown)))
    fill(page, "distances", "\n".join(distances(shown)))
    fill(page, "ablations", "\n".join(ablations(tried)))


def rates(facts: Facts) -> Iterator[str]:
    """What is right in how many pictures, by group, chance beside it."""
    groups = (ONE, TWO, THREE)
    yield from head("right", *(name for group in groups for name in (group, "chance")))
    for what in ORDER:
        cells = []
        for group in groups:
            rate = facts["rates"][f"{group}: {SHOWN}"].get(what)
            chance = facts["rates"][f"{group}: {CHANCE}"].get(what)
            cells += ["–", "–"] if rate is None else [f"{_rate(rate)}, n = {rate['n']}", f"{chance['rate']:.2f}"]
        yield line(what, *cells)


def distances(facts: Facts) -> Iterator[str]:
    """How far the pictures' distribution is from that of real renders."""
    yield from head("pictures", "Fréchet distance", "kernel distance × 1,000")
    for name, found in facts["distances"].items():
        error = found["kernel's standard error"]
        yield line(name, f"{found['frechet']:.2f}", f"{found['kernel']:.0f} ± {error:.0f}")


def ablations(facts: Facts) -> Iterator[str]:
    """Chance and ceiling, the model as it is, and each change of it."""
    tried = facts["ablations"]
    known = next(iter(tried.values()))["rates"]
    yield from head("64 px pictures", *WHAT, "Fréchet distance")
    for name in (CHANCE, CEILING):
        yield line(name, *(_rate(known[f"{group}: {name}"][what]) for group, what in WHAT.values()), "")
    for name, found in tried.items():
        cells = (_rate(found["rates"][f"{group}: {name}, 64 px"][what]) for group, what in WHAT.values())
        yield line(name, *cells, f"{found['distances'][f'{name}, 64 px']['frechet']:.1f}")


def _rate(rate: Facts) -> str:
    return f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"


if __name__ == "__main__":
    main()
