"""`unclip doctor`: what a checkpoint holds, what is wrong with it, and what it can do."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unclip_hub.cli import one_line, plain_errors


if TYPE_CHECKING:
    from unclip_hub.hub.inspect import Checkpoint, Component

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
    from unclip_hub.models.examine import examine

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
    from unclip_hub.hub.sizes import readable

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
                readable(_bytes(component.files)),
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
