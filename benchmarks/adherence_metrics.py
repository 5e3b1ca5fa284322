"""The rates of `adherence.py` as the ``metrics.json`` that a model card takes.

python benchmarks/adherence_metrics.py docs/adherence.json model_cards/bundled.metrics.json
"""

import json
from pathlib import Path
from typing import Any

import click


DATASET = "procedural scenes"
SPLIT = "held out"
SHOWN, CEILING, CHANCE = "256 px", "real renders", "other captions' real renders"


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
    order = ["background", "colour", "object", "object and colour", "count", "position", "size", "relation", "all"]
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
        for kind, name, rate in sorted(rows, key=lambda row: order.index(row[1]))
    ]
    value = facts["seconds_per_picture"]
    seconds = {"measure": "seconds_per_picture", "metric": "256 px, two CPU cores, in seconds", "value": value}
    return {
        "protocol": (
            f"{facts['captions']} held-out captions (neither the combination nor the wording occurs in training), "
            f"seed {facts['seed']}, {SHOWN} pictures, the checkpoint's own steps. The scorer is template matching "
            "(`unclip_hub.evaluation.sprite_matching`); it was not trained. "
            "`python benchmarks/adherence.py --icons runs/icons.json` measures it again."
        ),
        "interval": "Wilson's 95 % interval",
        "chance": "the same scorer on real renders of another caption.",
        "ceiling": "the same scorer on real renders of the caption itself.",
        "results": [*results, seconds],
    }


if __name__ == "__main__":
    main()
