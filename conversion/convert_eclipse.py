"""ECLIPSE's one-step priors (a folder with ``config.json`` and weights, or one with such a folder ``prior``) → ours.

    python conversion/convert_eclipse.py FOLDER --output OUT

`OneStepPrior.from_pretrained(OUT, subfolder="prior")` opens the result; what it returns is a pipeline's
`image_embeds`.
"""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import click
from command import FILE, Source, Target, conversion
from containers import read_state
from ledger import Converted
from torch import Tensor

from unclip_hub.hub.weights import BrokenFile, read_json
from unclip_hub.models.one_step_prior import OneStepPrior


WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_STATISTICS = ("clip_mean", "clip_std")


@conversion
@click.option("--prior", type=FILE, help="The file of weights.")
@click.option("--config", type=FILE, help="Its config.json.")
def main(source: Source, target: Target, *, prior: Path | None, config: Path | None) -> None:
    """Convert an ECLIPSE prior, as FOLDER with config.json and weights, or with both in FOLDER/prior."""
    both = ("prior/{}", "{}")
    described = source.find(*(name.format("config.json") for name in both), flag="--config", given=config)
    file = source.find(*(place.format(name) for place in both for name in WEIGHTS), flag="--prior", given=prior)
    converted = convert(read_state(file))
    with target.open("ECLIPSE's prior") as folder:
        folder.add_model("prior", OneStepPrior, read_config(described), converted["prior"])
        folder.account(file, converted)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """ECLIPSE's keys as the component ``prior``: they are the same, without the statistics.

    Raises:
        ValueError: the prior has a timestep.
    """
    converted = Converted(state, what="an ECLIPSE prior")
    if any(converted.left("time_embedding")):
        raise ValueError("this is not an ECLIPSE prior: it has a timestep; convert_kandinsky_prior.py converts it")
    for name in filter(converted.has, _STATISTICS):
        converted.drop(name, "ECLIPSE's code does not use it: the prior's output is the embedding itself")
    for key in converted.left():
        converted.move(key, "prior", key)
    return converted.finish()


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of `OneStepPrior` in a file of ECLIPSE's.

    Raises:
        BrokenFile: it is no JSON, or has keys that this network does not.
    """
    config = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    unknown = [key for key in config if key not in signature(OneStepPrior.__init__).parameters]
    if unknown:
        raise BrokenFile(
            f"{path.name} is not an ECLIPSE prior's: it has {', '.join(unknown)}",
            remedy="convert_kandinsky_prior.py converts priors with a timestep",
        )
    return config


if __name__ == "__main__":
    main()
