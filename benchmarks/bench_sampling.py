"""How fast do we sample, beside diffusers' UnCLIPPipeline, DALLE2-pytorch's prior and Karlo's loop, at equal output?

    python benchmarks/bench_sampling.py --output docs/performance.json
    python benchmarks/bench_sampling.py --size karlo --rounds 2 --output docs/performance.json

All contenders hold the same tensors, start from the same noise and take turns in one process. A ratio is that of two
neighbours in time; given are the median, the least and the greatest of the rounds. The bundled model takes all of its
steps. Karlo's sizes take a few (--full for all): what a step takes and what a call takes once are told apart by the
moments at which the steps are done, and 25/25/7 steps are extrapolated from them.
"""

import copy
import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from dalle2_pytorch_peer import contenders as dalle2_pytorch_contenders
from diffusers_assembly import twin
from diffusers_peer import call, theirs
from measuring import difference, facts, fresh_process, has_bfloat16, keep, spread
from sampling_contenders import Contender, Inputs, Run, fresh, karlo_loop, ours
from sampling_networks import STAGES, STEPS, parameters, pipeline

from unclip_hub import UnCLIPPipeline, keep_freed_memory


FEW = {"text_encoder": 1, "prior": 4, "decoder": 3, "super_res": 2}  # of Karlo's sizes; diffusers' least is 2
BASE = "diffusers"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@click.command(help=__doc__)
@click.option("--size", type=click.Choice(["bundled", "karlo"]), default="bundled", show_default=True)
@click.option("--batch", "batches", multiple=True, type=int, default=(1,), show_default=True, help="Repeatable.")
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="After a first call of each contender, told apart.")
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), default=STAGES, help="Repeatable; all.")
@click.option("--prior-steps", type=int)
@click.option("--decoder-steps", type=int)
@click.option("--super-res-steps", type=int)
@click.option("--full", is_flag=True, help="All steps, also at Karlo's sizes: minutes for each call.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)), default=("float32",))
@click.option("--anyway", is_flag=True, help="bfloat16 also on a CPU that does not multiply it.")
@click.option("--without-karlo-loop", is_flag=True, help="To save its time, which is about diffusers'.")
@click.option("--dalle2-pytorch", type=click.Path(path_type=Path), help="Where it was installed, see its peer's file.")
@click.option("--keep-freed-memory", "kept", is_flag=True, help="As `unclip` commands do, for all contenders.")
@click.option("--memory", is_flag=True, help="Only peak memory, of a process for each contender and stage.")
@click.option("--first-picture", is_flag=True, help="Only the time to a first picture, in fresh processes.")
@click.option("--output", type=click.Path(path_type=Path), help="The file of all results.")
def main(size, batches, threads, rounds, stages, full, dtypes, anyway, kept, output, **options) -> None:
    torch.set_num_threads(threads)
    if kept and not keep_freed_memory():
        raise click.UsageError("--keep-freed-memory needs glibc")
    known = facts()
    click.echo(", ".join(f"{name} {value}" for name, value in known.items()))
    if "bfloat16" in dtypes and not (anyway or has_bfloat16()):
        click.echo("bfloat16: skipped, as this CPU has neither avx512_bf16 nor amx_bf16 (--anyway to try)")
        dtypes = [name for name in dtypes if name != "bfloat16"]

    def save(section: str, key: str, result: dict[str, Any]) -> None:
        if output:
            keep(output, section, key, {**known, **result})

    if options["first_picture"]:
        save("first picture", f"{threads} threads", first_pictures(rounds, threads))
        return
    if options["memory"]:
        save("memory", size, memory(size, stages, threads))
        return
    steps = {"text_encoder": 1, **STEPS[size]} if full or size == "bundled" else dict(FEW)
    steps |= {stage: options[f"{stage}_steps"] for stage in STEPS[size] if options[f"{stage}_steps"]}
    for batch in batches:
        rows, counts = stage_by_stage(
            size, batch, stages, steps, rounds=rounds, dtypes=dtypes, with_loop=not options["without_karlo_loop"]
        )
        if len(rows) == len(STAGES):
            rows["sum of the stages"] = summed(list(rows.values()))
        if size == "bundled":
            rows["a whole call"] = whole_calls(batch, rounds=rounds)
        if "prior" in stages:
            rows |= against_dalle2_pytorch(options["dalle2_pytorch"], size, batch, steps["prior"], rounds)
        key = f"{size}, batch {batch}, {threads} threads, {'+'.join(dtypes)}{', memory kept' if kept else ''}"
        save("sampling", key, {"parameters": counts, "rows": rows})


def stage_by_stage(
    size: str,
    batch: int,
    stages: Sequence[str],
    steps: Mapping[str, int],
    *,
    rounds: int,
    dtypes: Sequence[str],
    with_loop: bool,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Every stage's comparison, and how large its networks are; of Karlo's, one stage's are held at a time."""
    rows: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for group in [stages] if size == "bundled" else [[stage] for stage in stages]:
        pipe = pipeline(size, stage=group[0])
        named = contenders(pipe, Inputs.of(pipe, size=size, batch=batch), dtypes, with_loop=with_loop)
        for name, count in parameters(pipe).items():
            counts[name] = max(count, counts.get(name, 0))
        for stage in group:
            rows[stage] = compare(stage, named, steps=steps[stage], target=STEPS[size].get(stage), rounds=rounds)
        del pipe, named  # before the next stage's come
        gc.collect()
    return rows, counts


def contenders(
    pipe: UnCLIPPipeline, inputs: Inputs, dtypes: Sequence[str], *, with_loop: bool
) -> dict[str, Contender]:
    """Who runs, diffusers in float32 first; in other dtypes on converted copies of the weights."""
    named = {BASE: theirs(twin(pipe), inputs)}
    if with_loop:
        named["Karlo's loop"] = karlo_loop(pipe, inputs)
    for name in dtypes:
        converted = pipe if name == "float32" else in_dtype(pipe, DTYPES[name])
        suffix = "" if name == "float32" else f", {name}"
        named[f"ours{suffix}"] = ours(converted, inputs)
        if name != "float32":
            named[f"{BASE}{suffix}"] = theirs(twin(converted), inputs)
    return named


def compare(
    stage: str, named: Mapping[str, Contender], *, steps: int, target: int | None, rounds: int
) -> dict[str, Any]:
    """One stage: what each contender takes, and diffusers' time over it.

    ``target`` is the number of steps to extrapolate to, where fewer are run.
    """
    first, runs = {}, {name: [] for name in named}
    failed: dict[str, str] = {}
    for name, contender in named.items():
        try:
            first[name] = contender(stage, steps)
        except Exception as error:  # a peer's own failure is a result: diffusers in bfloat16, for one
            if name in (BASE, "ours"):
                raise
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    names = list(first)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            runs[name].append(named[name](stage, steps))
    found: dict[str, Any] = {"steps": steps, "extrapolated to": target if target != steps else None, "failed": failed}
    base = next(iter(first))
    for name in names:
        seconds = [at(run, target or 0) for run in runs[name]]
        row: dict[str, Any] = {"seconds": spread(seconds), "first call": round(first[name].seconds, 4)}
        if runs[name][0].ticks:
            row["step"] = spread([per_step(run) for run in runs[name]])
            row["once a call"] = spread([once(run) for run in runs[name]])
        if name != base:
            row["times faster"] = spread([at(b, target or 0) / s for b, s in zip(runs[base], seconds, strict=True)])
            row["difference"] = difference(first[name].output, first[base].output)
        found[name] = row | {"each": [round(value, 5) for value in seconds]}
        _say(stage, name, row)
    for name, reason in failed.items():
        click.echo(f"{stage:18} {name:18} failed: {reason}")
    return found


def per_step(run: Run) -> float:
    """Seconds between two steps' ends."""
    if len(run.ticks) == 1:
        return run.seconds
    return statistics.median(after - before for before, after in zip(run.ticks, run.ticks[1:], strict=False))


def once(run: Run) -> float:
    """Seconds of a call that its steps do not explain: caches, text_proj, the first step's extra."""
    return run.seconds - len(run.ticks) * per_step(run)


def at(run: Run, steps: int) -> float:
    """Seconds of a call of so many steps: measured, where it had as many."""
    return run.seconds if len(run.ticks) in (0, steps) else once(run) + steps * per_step(run)


def summed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All stages' times together, round by round."""
    found: dict[str, Any] = {}
    for name in rows[0]:
        if all(isinstance(row.get(name), dict) and "each" in row[name] for row in rows):
            totals = [sum(times) for times in zip(*(row[name]["each"] for row in rows), strict=True)]
            found[name] = {"seconds": spread(totals), "each": totals}
    for name, row in found.items():
        if name != BASE:
            row["times faster"] = spread([b / t for b, t in zip(found[BASE]["each"], row["each"], strict=True)])
        _say("sum of the stages", name, row)
    return found


def whole_calls(batch: int, *, rounds: int) -> dict[str, Any]:
    """``pipe(captions)`` of the bundled model, ours and diffusers', and how far their pictures are apart."""
    pipe = pipeline("bundled")
    inputs = Inputs.of(pipe, size="bundled", batch=batch)

    def calling(one: Any) -> Contender:
        def run(stage: str, steps: int) -> Run:
            began = time.perf_counter()
            pictures = call(one, inputs, steps=STEPS[inputs.size], generator=fresh())
            return Run(pictures, time.perf_counter() - began)

        return run

    named: dict[str, Contender] = {BASE: calling(twin(pipe)), "ours": calling(pipe)}
    return compare("a whole call", named, steps=1, target=None, rounds=rounds)


def against_dalle2_pytorch(folder: Path | None, size: str, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """DALLE2-pytorch's prior and ours with its weights; nothing, and a line that says so, where it is absent."""
    if folder is None:
        click.echo("DALLE2-pytorch's prior: skipped, as --dalle2-pytorch does not say where it is installed")
        return {}
    try:
        named = dalle2_pytorch_contenders(folder, size=size, batch=batch)
    except ImportError as error:
        click.echo(f"DALLE2-pytorch's prior: skipped, as it cannot be imported from {folder}: {error}")
        return {}
    return {"DALLE2-pytorch's prior": compare("prior", named, steps=steps, target=STEPS[size]["prior"], rounds=rounds)}


def in_dtype(pipe: UnCLIPPipeline, dtype: torch.dtype) -> UnCLIPPipeline:
    """The same pipeline with converted weights; the float32 ones stay as they are, and are never copied."""
    parts = dict(pipe.components)
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            weights = {id(p): torch.nn.Parameter(p.to(dtype), requires_grad=False) for p in part.parameters()}
            buffers = {id(b): b.to(dtype) if b.is_floating_point() else b for b in part.buffers()}
            parts[name] = copy.deepcopy(part, {**weights, **buffers})
    made = UnCLIPPipeline(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def first_pictures(rounds: int, threads: int) -> dict[str, Any]:
    """From nothing to a picture of the bundled model, in fresh processes that take turns."""
    names = ["ours", "diffusers", "diffusers, opening the folder"]
    script, found = Path(__file__).with_name("fresh_process.py"), {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            phases, seconds = fresh_process(script, "first-picture", name, threads=threads)
            found[name].append(phases if "failed" in phases else {**phases, "all": seconds})
    rows: dict[str, Any] = {}
    for name, each in found.items():
        failed = [one["failed"] for one in each if "failed" in one]
        rows[name] = failed[0] if failed else {part: spread([one[part] for one in each]) for part in each[0]}
        click.echo(f"first picture, {name}: {rows[name]}")
    return {"rows": rows}


def memory(size: str, stages: Sequence[str], threads: int) -> dict[str, Any]:
    """Peak memory of a process that holds one stage's real networks, and runs two steps of it."""
    script, rows = Path(__file__).with_name("fresh_process.py"), {}
    for stage in stages:
        for name in ("ours", "Karlo's loop", "diffusers"):
            options = ("--size", size, "--stage", stage)
            rows.setdefault(stage, {})[name], _ = fresh_process(script, "memory", name, *options, threads=threads)
            click.echo(f"memory, MiB: {stage:14} {name:14} {rows[stage][name]}")
    return {"rows": rows}


def _say(stage: str, name: str, row: Mapping[str, Any]) -> None:
    line = f"{stage:18} {name:18} {row['seconds']['median']:9.4f} s"
    if "step" in row:
        line += f"  = {row['once a call']['median']:8.4f} + steps x {row['step']['median']:.4f}"
    if "times faster" in row:
        line += "  {median:5.2f}x [{min:.2f}, {max:.2f}]".format(**row["times faster"])
    if "difference" in row:
        line += "  off by at most {max:.1e}, rms {rms:.1e}".format(**row["difference"])
    click.echo(line)


if __name__ == "__main__":
    main()
