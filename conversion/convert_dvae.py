"""OpenAI's DALL-E 1 dVAE (``encoder.pkl``, ``decoder.pkl``: pickled modules) → our `DVAE`.

    python conversion/convert_dvae.py FOLDER --output OUT

The modules' own classes are neither needed nor run; `DVAE.from_pretrained(OUT, subfolder="dvae")` opens the result.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import click
from command import FILE, Source, Target, conversion
from containers import Stub, module_state, read_container
from ledger import Converted
from torch import Tensor

from unclip_hub.hub.weights import BrokenFile
from unclip_hub.models.dvae import DVAE


CLASSES = ("dall_e.*", "torch.nn.modules.*")
_KERNELS: dict[tuple[int, ...], str] = {
    (7, 7): "encoder",
    (1, 1): "decoder",
}  # of the first convolution, which tells the two apart
_WEIGHT_OR_BIAS = {"w": "weight", "b": "bias"}
_BLOCK = re.compile(r"blocks\.group_(\d+)\.block_(\d+)\.(?:(id_path)|res_path\.conv_(\d))\.([wb])$")


@conversion
@click.option("--encoder", type=FILE, help="encoder.pkl")
@click.option("--decoder", type=FILE, help="decoder.pkl")
def main(source: Source, target: Target, *, encoder: Path | None, decoder: Path | None) -> None:
    """Convert OpenAI's dVAE, as FOLDER with encoder.pkl and decoder.pkl."""
    files = {
        "encoder": source.find("encoder.pkl", flag="--encoder", given=encoder),
        "decoder": source.find("decoder.pkl", flag="--decoder", given=decoder),
    }
    halves = {name: convert(read_module(file)) for name, file in files.items()}
    for name, half in halves.items():
        if not all(key.startswith(name) for key in half["dvae"]):
            raise ValueError(f"{files[name].name} must be the {name}, it is the other half")
    with target.open("OpenAI's dVAE") as folder:
        whole = {key: tensor for half in halves.values() for key, tensor in half["dvae"].items()}
        folder.add_model("dvae", DVAE, config(whole), whole)
        for name, half in halves.items():
            folder.account(files[name], half)


def read_module(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled dVAE module.

    Raises:
        BrokenFile: the file cannot be read, or holds anything else.
    """
    module = read_container(path, stubs=CLASSES)
    if not isinstance(module, Stub):
        what = f"{path.name} must hold a module of dall_e, got {type(module).__name__}"
        raise BrokenFile(what, remedy="take OpenAI's encoder.pkl and decoder.pkl")
    return module_state(module)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """One of the dVAE's two halves as its part of the component ``dvae``.

    Raises:
        ValueError: keys are missing or unknown.
    """
    converted = Converted(state, what="a half of OpenAI's dVAE")
    half = _KERNELS.get(tuple(state["blocks.input.w"].shape[2:])) if converted.has("blocks.input.w") else None
    if half is None:
        raise ValueError(f"this is not {converted.what}: it has no blocks.input.w with 7 x 7 or 1 x 1 pixels")
    for ours, theirs in {"conv_in": "blocks.input", "conv_out": "blocks.output.conv"}.items():
        for letter, name in _WEIGHT_OR_BIAS.items():
            converted.move(f"{theirs}.{letter}", "dvae", f"{half}.{ours}.{name}")
    for key in converted.left("blocks.group_"):
        found = _BLOCK.match(key)
        if found is None:
            continue  # `finish` names it
        group, block, shortcut, conv, letter = found.groups()
        layer = "conv_shortcut" if shortcut else f"convs.{int(conv) - 1}"
        place = f"{half}.groups.{int(group) - 1}.{int(block) - 1}"
        converted.move(key, "dvae", f"{place}.{layer}.{_WEIGHT_OR_BIAS[letter]}")
    return converted.finish()


def config(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The configuration of `DVAE` that both halves' tensors tell."""
    return {
        "vocab_size": len(state["encoder.conv_out.weight"]),
        "channels": len(state["encoder.conv_in.weight"]),
        "decoder_in_channels": len(state["decoder.conv_in.weight"]),
        "layers_per_group": sum(
            re.match(r"encoder\.groups\.0\.\d+\.convs\.0\.bias", key) is not None for key in state
        ),
    }


if __name__ == "__main__":
    main()
