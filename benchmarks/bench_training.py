"""A training step of ours and of DALLE2-pytorch's trainers, in turn: seconds, pictures or embeddings a second, memory.

    python benchmarks/bench_training.py race --dalle2-pytorch FOLDER --output docs/training_throughput.json
    python benchmarks/bench_training.py table docs/training_throughput.json

Same batch, width, depth and heads, no CLIP inside, float32, no data loading. A step is the loss, its gradient,
clipping, AdamW and averaged weights: of ours, all that `train` does between two batches. The two take turns, so that a
machine that others use slows both; a ratio is that of neighbours. Networks differ all the same, see their parameters.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import dalle2_pytorch_trainers as peer
import torch
from measuring import facts, fresh_process, memory_mib, spread
from torch import nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.training.decoder import DecoderBatch, DecoderTask, Drops
from unclip_hub.training.loop import TrainConfig, train
from unclip_hub.training.objective import Objective
from unclip_hub.training.presets import new_decoder
from unclip_hub.training.prior import PriorBatch, PriorTask


WIDTH, TOKENS, SIDE = 192, 32, 64  # of CLIP, of a caption, of the decoder's pictures
PRIOR = dict(layers=3, heads=6)
DECODER = dict(widths=(32, 64, 128), layers=1, heads=4)
BATCHES = {"prior": 64, "decoder": 2}
PATIENCE = 2  # rounds that are not counted
SHARED = [
    click.option("--dalle2-pytorch", "folder", type=click.Path(path_type=Path), required=True, help="Its folder."),
    click.option("--threads", default=1, show_default=True),
]


@click.group(help=__doc__)
def main() -> None:
    pass


def shared(command: Any) -> Any:
    for option in SHARED:
        command = option(command)
    return command


@main.command()
@shared
@click.option("--rounds", default=15, show_default=True)
@click.option("--network", "networks", multiple=True, type=click.Choice(list(BATCHES)), default=list(BATCHES))
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers as JSON.")
def race(*, folder: Path, threads: int, rounds: int, networks: tuple[str, ...], output: Path | None) -> None:
    """Both trainers in turn."""
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"facts": facts() | {"rounds": rounds}, "networks": {}}
    for network in networks:
        task, batch = ours(network)
        rival, rival_network = theirs(network, batch, folder=folder)
        own, other = in_turn(task, batch, rival, rounds=rounds)
        rows = BATCHES[network]
        found["networks"][network] = {
            "batch": rows,
            "parameters": {"ours": size(task.modules), "dalle2-pytorch": size(rival_network)},
            "seconds": {"ours": spread(own), "dalle2-pytorch": spread(other)},
            "rows_per_second": {
                name: float(f"{rows / statistics.median(seconds):.3g}")
                for name, seconds in (("ours", own), ("dalle2-pytorch", other))
            },
            "times_as_fast": spread([b / a for a, b in zip(own, other, strict=True)], digits=3),
            "mib_beyond_the_start": {
                name: fresh_process(
                    Path(__file__),
                    "alone",
                    *("--contender", name, "--network", network, "--dalle2-pytorch", str(folder)),
                    threads=threads,
                )[0]
                for name in ("ours", "dalle2-pytorch")
            },
        }
        click.echo(json.dumps(found["networks"][network]))
    if output:
        partial = output.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(partial, output)
    click.echo(markdown(found))


@main.command()
@shared
@click.option("--contender", type=click.Choice(["ours", "dalle2-pytorch"]), required=True)
@click.option("--network", type=click.Choice(list(BATCHES)), required=True)
def alone(*, folder: Path, threads: int, contender: str, network: str) -> None:
    """Three steps of one of them in this process; the last line is what memory they took, as JSON."""
    torch.set_num_threads(threads)
    task, batch = ours(network)
    rival, _ = theirs(network, batch, folder=folder) if contender != "ours" else (lambda: None, None)
    before = memory_mib()["now"]
    if contender == "ours":
        in_turn(task, batch, rival, rounds=1)
    else:
        for _ in range(PATIENCE + 1):
            rival()
    click.echo(json.dumps(round(memory_mib()["most"] - before)))


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
def table(file: Path) -> None:
    """The numbers as a table in markdown."""
    click.echo(markdown(json.loads(file.read_text())))


def in_turn(task: Any, batch: Any, rival: Callable[[], None], *, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of our steps and of the rival's: whenever `train` asks for a batch, the rival takes a step first."""
    own, other, began = [], [], [time.perf_counter()]

    def batches(number: int) -> Any:
        own.append(time.perf_counter() - began[-1])
        started = time.perf_counter()
        rival()
        other.append(time.perf_counter() - started)
        began.append(time.perf_counter())
        return batch

    steps = PATIENCE + rounds + 1
    config = TrainConfig(steps=steps, lr=1e-4, precision="no", log_every=steps + 1, checkpoint_minutes=1e9)
    with tempfile.TemporaryDirectory() as folder:
        train(task, batches, config, output=Path(folder))
    # a rival's step comes before the step of ours that is timed at the next call; the first of `own` is the start
    return own[1 + PATIENCE :], other[PATIENCE:-1]


def ours(network: str) -> tuple[Any, Any]:
    """A task of our trainer at the size, and a batch."""
    torch.manual_seed(0)
    rows = BATCHES[network]
    condition, empty = _condition(rows), _condition(1)
    if network == "prior":
        prior = PriorTransformer(
            num_attention_heads=PRIOR["heads"],
            attention_head_dim=WIDTH // PRIOR["heads"],
            num_layers=PRIOR["layers"],
            embedding_dim=WIDTH,
            num_embeddings=TOKENS,
        )
        assert condition.image_embed is not None
        return PriorTask(prior, empty=empty), PriorBatch(condition.image_embed, condition)
    widths: Any = DECODER["widths"]
    levels = len(widths) - 1
    decoder, text_proj = new_decoder(
        "tiny",
        patch_size=1,
        coordinates=False,
        out_channels=6,
        block_out_channels=widths,
        layers_per_block=DECODER["layers"],
        attention_head_dim=widths[-1] // DECODER["heads"],  # type: ignore[operator]
        down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * levels),
        up_block_types=(*("SimpleCrossAttnUpBlock2D",) * levels, "ResnetUpsampleBlock2D"),
        only_cross_attention=False,
    )
    task = DecoderTask(
        decoder,
        text_proj,
        empty=empty,
        drops=Drops.independent(),
        objective=Objective(prediction_type="epsilon", weighting="simple"),
    )
    return task, DecoderBatch(torch.rand(rows, 3, SIDE, SIDE) * 2 - 1, condition)


def theirs(network: str, batch: Any, *, folder: Path) -> tuple[Callable[[], None], nn.Module]:
    """A step of their trainer at the size, on the batch, and the network."""
    if network == "prior":
        return peer.prior_step(folder, batch, width=WIDTH, tokens=TOKENS, **PRIOR)
    return peer.decoder_step(folder, batch, **DECODER)  # type: ignore[arg-type]


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def markdown(found: dict[str, Any]) -> str:
    lines = [
        "| | rows a second, ours | DALLE2-pytorch | times as fast (least, most) "
        "| memory, ours | DALLE2-pytorch | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["networks"].items():
        rate, times, memory = row["rows_per_second"], row["times_as_fast"], row["mib_beyond_the_start"]
        counts = " and ".join(f"{count / 1e6:.2f} M" for count in row["parameters"].values())
        lines.append(
            f"| {name}, batch {row['batch']} | {rate['ours']} | {rate['dalle2-pytorch']} "
            f"| {times['median']} ({times['min']}, {times['max']}) "
            f"| {memory['ours']} MiB | {memory['dalle2-pytorch']} MiB | {counts} |"
        )
    given = found["facts"]
    lines += ["", f"{given['rounds']} rounds in turn, {given['threads']} threads of {given['cpu']}, {given['date']}."]
    return "\n".join(lines)


def _condition(rows: int) -> Conditioning:
    mask = torch.arange(TOKENS) < torch.randint(4, TOKENS, (rows, 1))
    return Conditioning(torch.randn(rows, WIDTH), torch.randn(rows, TOKENS, WIDTH), mask, torch.randn(rows, WIDTH))


if __name__ == "__main__":
    main()
