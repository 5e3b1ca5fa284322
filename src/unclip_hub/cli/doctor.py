"""`unclip doctor`: what a checkpoint holds, what is wrong with it, and what it can do."""

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unclip_hub.cli import one_line, plain_errors


if TYPE_CHECKING:
    from unclip_hub.hub.inspect import Checkpoint, Component, Problem

NOT_CHECKED = "Values were not read: NaN and infinity were not looked for."
LEVELS = ("error", "warning", "note")


@click.command(name="doctor")
@click.argument("source", metavar="PATH_OR_REPO")
@click.option("--variant", metavar="NAME", help="Look at the weights of this variant, for example fp16.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(source: str, *, variant: str | None, as_json: bool, debug: bool) -> int:
    """List what the checkpoint PATH_OR_REPO holds, what is wrong with it, and what it can do.

    Only headers and configurations are read, nothing in the checkpoint is run. Of a repository on the Hub, what is
    not in the cache is downloaded.

    Exit code: 0 if nothing is wrong (warnings aside), 1 if something is, 2 if there is no such checkpoint.

    Example: unclip doctor kakaobrain/karlo-v1-alpha
    """
    from unclip_hub.hub.inspect import inspect
    from unclip_hub.hub.locate import locate

    try:
        folder = locate(source, variant=variant)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
    with plain_errors(debug=debug):
        checkpoint = inspect(folder, variant=variant)
        able = examine(checkpoint) if checkpoint.index else {}
        checkpoint.problems.sort(key=lambda problem: LEVELS.index(problem.level))
        if as_json:
            click.echo(json.dumps(_as_dict(checkpoint, able, source), indent=2))
        else:
            _print(checkpoint, able, source)
    return int(any(problem.level == "error" for problem in checkpoint.problems))


def examine(checkpoint: "Checkpoint") -> dict[str, str]:
    """Compare every component with the class that loads it, and all with one another; returns what they can do."""
    from unclip_hub.hub.agreement import absent, agreement, compare, tasks

    problems, components = checkpoint.problems, checkpoint.components
    problems += absent(checkpoint.pipeline, components)
    shapes, configs = {}, {}
    for name, component in components.items():
        found = _expected(component, problems)
        if found is not None:
            shapes[name], configs[name] = found
    for name, expected in shapes.items():
        tensors = components[name].tensors
        if components[name].kind == "model" and tensors is not None:
            others = {other: table for other, table in shapes.items() if other != name and table != expected}
            problems += compare(name, tensors, expected, others)
    problems += agreement(configs)
    problems += _statistics(components.get("prior"))
    problems += _dtypes(components)
    ill = {problem.where for problem in problems if problem.level == "error"}
    return _abilities(
        tasks({name: config for name, config in configs.items() if name not in ill}), configs, checkpoint
    )


def _expected(component: "Component", problems: list["Problem"]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What the component's class makes of its configuration, or None where that is a problem, which is noted."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    from unclip_hub.hub.inspect import CONFIG_FILE, Problem
    from unclip_hub.models.expected import expected, find_class

    name, config = component.name, component.config
    cls = find_class(*component.ours)
    if cls is None:
        what = f"unknown class {'.'.join(component.written)}"
        problems.append(Problem("error", name, what, f"pass your own {name}= to from_pretrained, or use another"))
        return None
    if config is None:
        return None
    if component.kind in ("tokenizer", "processor"):
        return {}, config
    file, written = CONFIG_FILE[component.kind], config.get("_class_name")
    if written not in (None, component.ours[1]):
        level = "error" if component.kind == "model" else "warning"
        what = f"{file} is of {written}, model_index.json says {component.ours[1]}"
        problems.append(Problem(level, name, what, "correct the one that is wrong, or put the right folder here"))
        if level == "error":
            return None
    verbosity = [logger.get_verbosity() for logger in (logging, transformers_logging)]
    for logger in (logging, transformers_logging):
        logger.set_verbosity_error()  # what is wrong is told here, in one line
    try:
        return expected(cls, config)
    except ValueError as error:
        what = f"{file} does not fit {component.ours[1]}: {one_line(str(error))}"
        problems.append(Problem("error", name, what, "correct the value, or take the file from the original"))
        return None
    finally:
        for logger, level in zip((logging, transformers_logging), verbosity, strict=True):
            logger.set_verbosity(level)


def _statistics(prior: "Component | None") -> list["Problem"]:
    from unclip_hub.hub.inspect import Problem
    from unclip_hub.hub.weights import read_tensor

    info = ((prior.tensors if prior else None) or {}).get("clip_std")
    if info is None:
        return []
    zeros = int((read_tensor(info, "clip_std") == 0).sum())
    what = f"clip_std is 0 in {zeros} of {info.shape[-1]} places: there the caption has no effect on the embedding"
    return [Problem("error", "prior", what, "write the statistics of its training set, or ones")] if zeros else []


def _dtypes(components: dict[str, "Component"]) -> list["Problem"]:
    from unclip_hub.hub.inspect import Problem

    problems, halves = [], defaultdict(list)
    for name, component in components.items():
        floats = [dtype for dtype in component.dtypes if "float" in dtype]
        if len(floats) > 1:
            remedy = "load it with dtype=, and save it anew"
            problems.append(Problem("warning", name, f"its weights mix {' and '.join(floats)}", remedy))
        elif floats and floats[0] != "float32":
            halves[floats[0]].append(name)
    for dtype, names in halves.items():
        remedy = f"they load as float32, unless from_pretrained is given dtype=torch.{dtype}"
        problems.append(Problem("note", ", ".join(names), f"stored in {dtype}", remedy))
    return problems


def _abilities(words: dict[str, str], configs: dict[str, Any], checkpoint: "Checkpoint") -> dict[str, str]:
    components = checkpoint.components
    if "prior" in components:
        class_name = components["prior"].ours[1]
        words["prior"] = {"PriorTransformer": "diffusion (PriorTransformer)"}.get(class_name, class_name)
    for name, component in components.items():
        config = configs.get(name)
        if component.kind == "scheduler" and config is not None:
            learned = str(config.get("variance_type")).startswith("learned")
            own, others = (" with the learned variance", ", without it") if learned else ("", "")
            predicts = config.get("prediction_type", "epsilon")
            words[name] = f"{component.ours[1]}{own}, predicts {predicts}; or another of diffusers'{others}"
    return words


def _as_dict(checkpoint: "Checkpoint", able: dict[str, str], source: str) -> dict[str, Any]:
    return {
        "source": source,
        "folder": str(checkpoint.folder),
        "pipeline": checkpoint.pipeline,
        "healthy": not any(problem.level == "error" for problem in checkpoint.problems),
        "components": {
            name: {
                "class": ".".join(component.ours),
                "as_written": ".".join(component.written),
                "files": [str(file.relative_to(checkpoint.folder)) for file in component.files],
                "parameters": _parameters(component),
                "bytes": _bytes(component.files),
                "dtypes": component.dtypes,
            }
            for name, component in checkpoint.components.items()
        },
        "can_do": able,
        "problems": [vars(problem) for problem in checkpoint.problems],
        "not_checked": NOT_CHECKED,
    }


def _print(checkpoint: "Checkpoint", able: dict[str, str], source: str) -> None:
    version = checkpoint.index.get("_diffusers_version", "of an unknown version")
    click.echo(f"{source}: {checkpoint.pipeline}, written by diffusers {version}" if checkpoint.index else source)
    rows = [("component", "class", "library", "parameters", "size", "dtype", "files")]
    for name, component in checkpoint.components.items():
        files = [file.name for file in component.files if not file.name.endswith("config.json")]
        count = _parameters(component)
        rows.append(
            (
                name,
                component.ours[1],
                " as ".join(dict.fromkeys((_written(component), component.ours[0]))),
                f"{count:,}" if count else "-",
                _readable(_bytes(component.files)),
                ", ".join(component.dtypes) or "-",
                ", ".join(files) if len(files) <= 2 else f"{files[0]} and {len(files) - 1} more",
            )
        )
    click.echo()
    if checkpoint.components:
        _table(rows, right=(3, 4))
        click.echo("\nWhat it can do")
        _table([(f"  {task}", words) for task, words in able.items()])
        click.echo()
    for problem in checkpoint.problems:
        remedy = f" -> {problem.remedy}" if problem.remedy else ""
        click.echo(f"{problem.level}: {problem.where}: {one_line(problem.what + remedy)}")
    counts = [sum(problem.level == level for problem in checkpoint.problems) for level in LEVELS]
    said = [f"{count} {level}{'s' * (count > 1)}" for count, level in zip(counts, LEVELS, strict=True) if count]
    click.echo(f"{', '.join(said) or 'Nothing is wrong'}. {NOT_CHECKED}")


def _table(rows: list[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _written(component: "Component") -> str:
    library, class_name = component.written
    return library if class_name == component.ours[1] else f"{library}.{class_name}"


def _parameters(component: "Component") -> int:
    from math import prod

    tensors = component.tensors or {}
    return sum(prod(info.shape) for name, info in tensors.items() if not name.endswith("position_ids"))


def _bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.exists())


def _readable(size: int | float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
