"""The tables of docs/performance.md from docs/performance.json, between the page's markers; its prose is left alone.

python benchmarks/performance_page.py
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from markers import fill, head, line


DOCS = Path(__file__).parents[1] / "docs"
Result = Mapping[str, Any]


@click.command(help=__doc__)
@click.option("--results", type=click.Path(path_type=Path), default=DOCS / "performance.json", show_default=False)
@click.option("--page", type=click.Path(path_type=Path), default=DOCS / "performance.md", show_default=False)
def main(results, page) -> None:
    held = json.loads(results.read_text())
    for section, table in TABLES.items():
        made = "\n".join(text for key, result in held.get(section, {}).items() for text in _part(key, result, table))
        fill(page, section, made or "Not measured yet.")


def sampling(result: Result) -> Iterator[str]:
    yield from head("", "seconds", "a step", "once a call", "times faster", "largest difference", "rms")
    for stage, row in result["rows"].items():
        target = row.get("extrapolated to")
        yield line(f"**{stage}**" + (f", {row['steps']} steps, extrapolated to {target}" if target else ""), *[""] * 6)
        for name, one in row.items():
            if not isinstance(one, dict) or "seconds" not in one:
                continue
            off = one.get("difference", {})
            parts = (_middle(one.get(part)) for part in ("seconds", "step", "once a call"))
            yield line(name, *parts, _ratio(one.get("times faster")), off.get("max", ""), off.get("rms", ""))
        for name, reason in row.get("failed", {}).items():
            yield line(f"{name}: fails ({reason})", *[""] * 6)


def layers(result: Result) -> Iterator[str]:
    yield from head("", "PyTorch, GFLOP/s", "here", "times faster", "PyTorch's rms error", "here")
    for row in result["rows"]:
        rate, error = row["GFLOP/s"], row["error"]
        ratio = f"**{rate['here'] / rate['PyTorch']:.2f}**"
        yield line(row["name"], rate["PyTorch"], rate["here"], ratio, error["PyTorch"], error["here"])


def memory(result: Result) -> Iterator[str]:
    yield from head("MiB", "contender", "most", "beyond the loaded weights")
    for stage, row in result["rows"].items():
        for name, one in row.items():
            found = (
                (one["failed"], "") if "failed" in one else (f"{one[k]:.0f}" for k in ("most", "beyond the weights"))
            )
            yield line(stage, name, *found)


def first_picture(result: Result) -> Iterator[str]:
    yield from head("seconds", "import", "load", "generate", "all, with Python's start")
    for name, one in result["rows"].items():
        if isinstance(one, str):
            yield line(name, f"fails: {one[:120]}", "", "", "")
        else:
            yield line(name, *(_middle(one[part]) for part in ("import", "load", "generate", "all")))


def scaling(result: Result) -> Iterator[str]:
    rates = ", ".join(f"{kind} {rate}" for kind, rate in result["GFLOP/s"].items())
    yield f"GFLOP/s of this run: {rates}."
    yield ""
    yield from head("", "at", "seconds", "GFLOP", "floor, seconds", "times the floor")
    for name, rows in result["curves"].items():
        for row in rows:
            over = row["seconds"]["median"] / row["floor"]
            yield line(name, row["at"], _middle(row["seconds"]), row["GFLOP"], f"{row['floor']:.3g}", f"{over:.1f}")


def approximations(result: Result) -> Iterator[str]:
    yield f"{result['captions']} held-out captions in batches of {result['batch']}."
    yield ""
    yield from head(
        "", "seconds a picture", "times faster", "adherence", "points lost", "kernel distance x 1000", "Pareto"
    )
    for row in result["rows"]:
        rate, cost = row["adherence"], row["points lost"]
        yield line(
            row["name"],
            _middle(row["seconds a picture"]),
            _ratio(row["times faster"]),
            f"{rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]",
            f"{cost['points']:.1f} [{cost['low']:.1f}, {cost['high']:.1f}]",
            "{} ± {}".format(*row["kernel distance"]) if row["kernel distance"] else "",
            "**knee**" if row["knee"] else "yes" if row["pareto"] else "",
        )
    for name, reason in result["not measured"].items():
        yield line(name, f"not measured: {reason}", *[""] * 5)


TABLES: dict[str, Callable[[Result], Iterator[str]]] = {
    "sampling": sampling,
    "layers": layers,
    "memory": memory,
    "first picture": first_picture,
    "scaling": scaling,
    "approximations": approximations,
}


def _part(key: str, result: Result, table: Callable[[Result], Iterator[str]]) -> Iterator[str]:
    """A table, above it what was run where."""
    versions = ", ".join(f"{name} {result[name]}" for name in ("torch", "diffusers", "transformers"))
    yield f"### {key[0].upper()}{key[1:]}"
    yield ""
    yield f"`{result['command']}`, {result['date']}, {result['cpu']} ({result['cores']} cores), {versions}."
    yield ""
    yield from table(result)
    yield ""


def _middle(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.3g}"


def _ratio(found: Mapping[str, float] | None) -> str:
    return "" if found is None else "**{median:.2f}** [{min:.2f}, {max:.2f}]".format(**found)


if __name__ == "__main__":
    main()
