"""How fast are single layers of Karlo's sizes, as PyTorch runs them and by the kernels that pipelines use on a CPU?

    python benchmarks/layers.py --output docs/performance.json

Rates are of the operations that the plain layer has, so that fewer of them show as a higher rate. The contenders take
turns; given is the best of the rounds, and how far the result is from float64's.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from measuring import difference, facts, keep
from torch import Tensor

from unclip_hub.models.cpu_kernels import CPUKernels


CONVOLUTIONS = [  # batch, channels in, height and width, channels out: of the upsampler, and of the guided decoder
    (1, 320, 256, 320),
    (1, 640, 256, 320),
    (1, 640, 128, 640),
    (1, 960, 64, 960),
    (1, 1280, 32, 1280),
    (2, 320, 64, 320),
    (2, 640, 32, 640),
    (2, 960, 16, 960),
    (2, 1280, 8, 1280),
]
LINEARS = [(512, 640, 640), (512, 1280, 1280), (6, 2048, 8192), (6, 8192, 2048)]  # rows, in, out
CHECKED = 32  # rows and columns of a picture, as float64 takes long
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@click.command(help=__doc__)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)), default=("float32",))
@click.option("--output", type=click.Path(path_type=Path), help="The file of all results.")
@torch.no_grad()
def main(threads, rounds, dtypes, output) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for dtype in dtypes:
        rows = []
        for batch, c, side, k in CONVOLUTIONS:
            images, weight = torch.randn(batch, c, side, side), torch.randn(k, c, 3, 3) / (9 * c) ** 0.5
            name = f"3 x 3, {c} to {k} channels, {batch} x {side} px"
            operations = 2 * 9 * c * k * batch * side**2
            rows.append(
                compare(name, convolve, images.to(DTYPES[dtype]), weight.to(DTYPES[dtype]), operations, rounds)
            )
        for n, c, k in LINEARS:
            tokens, weight = torch.randn(n, c), torch.randn(k, c) / c**0.5
            name = f"linear, {c} to {k}, {n} rows"
            rows.append(
                compare(name, F.linear, tokens.to(DTYPES[dtype]), weight.to(DTYPES[dtype]), 2 * n * c * k, rounds)
            )
        if output:
            keep(output, "layers", f"{threads} threads, {dtype}", {**facts(), "rows": rows})


def convolve(images: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(images, weight, padding=1)


def compare(
    name: str, layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, operations: int, rounds: int
) -> dict[str, Any]:
    laid_out = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x  # as the layer before left it
    named = {"PyTorch": (x, nullcontext()), "here": (laid_out, CPUKernels())}

    def run(contender: str) -> tuple[Tensor, float]:
        """What it makes, and the seconds of a second call: a network's other layers have been before."""
        given, kernels = named[contender]
        with kernels:
            layer(given, weight)
            began = time.perf_counter()
            made = layer(given, weight)
            return made, time.perf_counter() - began

    part = x[:1, :, :CHECKED, :CHECKED] if x.ndim == 4 else x
    whole = part.shape == x[:1].shape or x.ndim == 2
    exact = layer(part.double(), weight.double())
    exact = exact if whole else exact[..., :-1, :-1]  # what lies beyond the part is missing at its edge
    row: dict[str, Any] = {"name": name, "error": {}}
    for contender in named:
        made = run(contender)[0]
        made = made if made.ndim == 2 else made[:1, :, : exact.shape[2], : exact.shape[3]]
        row["error"][contender] = difference(made, exact)["rms"]
    times: dict[str, list[float]] = {contender: [] for contender in named}
    for _ in range(rounds):
        for contender in named:
            times[contender].append(run(contender)[1])
    row["GFLOP/s"] = {contender: round(operations / min(each) / 1e9, 1) for contender, each in times.items()}
    click.echo(f"{name:44} {row['GFLOP/s']} rms {row['error']}")
    return row


if __name__ == "__main__":
    main()
