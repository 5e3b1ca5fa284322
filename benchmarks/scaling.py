"""How cost grows with the work: batch, steps, samples of the prior, size of the picture; beside the least it could be.

    python benchmarks/scaling.py --output docs/performance.json --plot docs/scaling.png

Of the bundled model. The floor of a point is its counted operations (multiplications and additions of matrix products,
convolutions and attention, by PyTorch's counter) over the rates that this machine shows for a large matrix product and
a 3 x 3 convolution in the same run.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from measuring import facts, gflops, keep, spread
from torch.utils.flop_counter import FlopCounterMode

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.pipelines.upscale import UnCLIPUpscalePipeline


CAPTION = "a koala above a pumpkin at sunset"
POINTS = {
    "batch": (1, 2, 4, 8, 16),
    "steps of prior and decoder": (1, 2, 5, 10, 25, 50, 100),
    "samples of the prior": (1, 4, 16, 64, 256),
    "side of the upscaled picture": (256, 448, 640, 1024),
}


@click.command(help=__doc__)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--most", type=float, help="Leave out points above this part of a curve's last, to try it out.")
@click.option("--output", type=click.Path(path_type=Path), help="The file of all results.")
@click.option("--plot", type=click.Path(path_type=Path), help="A PNG of the curves.")
def main(rounds, threads, most, output, plot) -> None:
    torch.set_num_threads(threads)
    pipe = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
    upscale = UnCLIPUpscalePipeline(**pipe.components)
    for one in (pipe, upscale):
        one.set_progress_bar_config(disable=True)
    rates = gflops()
    click.echo(f"{threads} threads, GFLOP/s: {rates}")
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, points in POINTS.items():
        chosen = [point for point in points if most is None or point <= max(points[0], most * points[-1])]
        works = {point: work(pipe, upscale, name, point) for point in chosen}
        curves[name] = measure(name, works, rounds=rounds, rates=rates)
    if output:
        keep(output, "scaling", f"{threads} threads", {**facts(), "GFLOP/s": rates, "curves": curves})
    if plot:
        draw(curves, plot)


def work(pipe: UnCLIPPipeline, upscale: UnCLIPUpscalePipeline, name: str, point: int) -> Callable[[], Any]:
    """The call that a point of a curve is."""
    generator = torch.Generator().manual_seed(0)
    if name == "batch":
        return lambda: pipe([CAPTION] * point, output_type="pt")
    if name == "steps of prior and decoder":
        return lambda: pipe(
            CAPTION, prior_num_inference_steps=point, decoder_num_inference_steps=point, output_type="pt"
        )
    if name == "samples of the prior":
        return lambda: pipe(CAPTION, num_prior_samples=point, output_type="pt")
    small = torch.rand(1, 3, point // 4, point // 4, generator=generator)
    return lambda: upscale(small, output_type="pt")


def measure(
    name: str, works: dict[int, Callable[[], Any]], *, rounds: int, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Every point of a curve in every round, so that a slow minute slows all of them."""
    seconds: dict[int, list[float]] = {point: [] for point in works}
    floors = {}
    for point, call in works.items():  # also the first call, which is not timed
        floors[point] = floor(call, rates)
    for _ in range(rounds):
        for point, call in works.items():
            began = time.perf_counter()
            call()
            seconds[point].append(time.perf_counter() - began)
    rows = []
    for point, times in seconds.items():
        rows.append({"at": point, "seconds": spread(times), **floors[point]})
        click.echo(
            f"{name:30} {point:5}  {rows[-1]['seconds']['median']:8.3f} s, {rows[-1]['GFLOP']:9.2f} GFLOP: "
            f"at least {rows[-1]['floor']:.3f} s"
        )
    return rows


def floor(call: Callable[[], Any], rates: dict[str, float]) -> dict[str, float]:
    """Operations of a call, and the seconds that they take at this machine's rates."""
    with FlopCounterMode(display=False) as counter:
        call()
    by_kind = {"matrix product": 0.0, "convolution": 0.0}
    for operator, count in counter.get_flop_counts()["Global"].items():
        by_kind["convolution" if "conv" in str(operator) else "matrix product"] += count / 1e9
    seconds = sum(count / rates[kind] for kind, count in by_kind.items())
    return {"GFLOP": round(sum(by_kind.values()), 3), "floor": round(seconds, 5)}


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and floor of every curve, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.6), layout="constrained")
    for axis, (name, rows) in zip(axes, curves.items(), strict=True):
        at = [row["at"] for row in rows]
        axis.plot(at, [row["seconds"]["median"] for row in rows], "o-", label="measured")
        low, high = ([row["seconds"][end] for row in rows] for end in ("min", "max"))
        axis.fill_between(at, low, high, alpha=0.2)
        axis.plot(at, [row["floor"] for row in rows], "s--", color="gray", label="floor: operations / rate")
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds" if axis is axes[0] else "")
        axis.set_xticks(at, [str(point) for point in at])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
