"""The rates of `adherence.py` as the ``metrics.json`` that a model card takes.

python benchmarks/adherence_metrics.py docs/adherence.json model_cards/bundled.metrics.json
"""

import json
from pathlib import Path
from typing import Any

import click


DATASET = "procedural scenes"
SPLIT = "held out"
SHOWN, CEILING, CHANCE = "the model", "real renders", "other captions' real renders"  # rows of adherence.py
ORDER = (
    "background", "colour", "object", "object, by the detector", "object and colour",
    "object and colour, by the detector", "count", "position", "size", "relation", "all",
)  # fmt: skip


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(source: Path, output: Path) -> None:
    output.write_text(json.dumps(metrics(json.loads(source.read_text())), indent=1) + "\n")


def metrics(facts: dict[str, Any]) -> dict[str, Any]:
    """Every attribute's rate with its interval, what chance gives, and what real renders get."""
    rates = facts["rates"]
    kinds = [name.removesuffix(f": {SHOWN}") for name in rates if name.endswith(f": {SHOWN}")]
    rows = [(kind, name, rate) for kind in kinds for name, rate in rates[f"{kind}: {SHOWN}"].items()]
    results = [
        {
            "measure": "adherence",
            "metric": name,
            "dataset": f"{DATASET}: {kind}",
            "dataset_id": "unclip_hub.data.scenes",
            "split": SPLIT,
            "value": rate["rate"],
            "low": rate["low"],
            "high": rate["high"],
            "n": rate["n"],
            "chance": rates[f"{kind}: {CHANCE}"][name]["rate"],
            "ceiling": rates[f"{kind}: {CEILING}"][name]["rate"],
        }
        for kind, name, rate in sorted(rows, key=lambda row: ORDER.index(row[1]))
    ]
    name = f"256 px, {facts['threads']} CPU core{'s'[: facts['threads'] > 1]}, in seconds"
    others = [{"measure": "seconds_per_picture", "metric": name, "value": facts["seconds_per_picture"]}]
    for row, title in {SHOWN: "256 px pictures", CEILING: "real renders (the floor)"}.items():
        for what, key in {"Fréchet": "frechet", "kernel, × 1,000": "kernel"}.items():
            value = facts["distances"][row][key]
            others.append({"measure": "distribution", "metric": f"{what}: {title}", "value": value})
    return {
        "protocol": (
            f"{facts['captions']} held-out captions (neither the combination nor the wording occurs in training), "
            f"seed {facts['seed']}, 256 px pictures, the checkpoint's own steps. The scorer is template matching "
            "(`unclip_hub.evaluation.sprite_matching`), which was not trained; or, where it is named, a detector that "
            "was trained on real renders alone. Distances are taken between that detector's features of as many "
            "pictures and real renders of other held-out scenes. "
            "`python benchmarks/adherence.py --icons runs/icons.json` measures it again."
        ),
        "interval": "Wilson's 95 % interval",
        "chance": "the same scorer on real renders of another caption.",
        "ceiling": "the same scorer on real renders of the caption itself.",
        "results": [*results, *others],
    }


if __name__ == "__main__":
    main()
