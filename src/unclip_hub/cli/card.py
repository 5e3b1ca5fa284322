"""`unclip card`: a model card from the model's files, what people know of it, and what was measured."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import click

from unclip_hub.cli import plain_errors


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(name="card")
@click.argument("folder", type=DIRECTORY, required=False)
@click.option("--facts", "facts_file", type=FILE, help="TOML: name, licence, data, limits, training, examples.")
@click.option("--metrics", type=FILE, help="JSON: what was measured. [default: FOLDER/metrics.json]")
@click.option("--run", "runs", type=DIRECTORY, multiple=True, help="The folder of a training; for each network one.")
@click.option("--license", "license_name", metavar="NAME", help="The licence, where there are no facts: apache-2.0.")
@click.option("--variant", metavar="NAME", help="Describe the weights of this variant.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="[default: FOLDER/README.md]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    folder: Path | None,
    *,
    facts_file: Path | None,
    metrics: Path | None,
    runs: tuple[Path, ...],
    license_name: str | None,
    variant: str | None,
    output: Path | None,
    debug: bool,
) -> None:
    """Write the card of the model in FOLDER.

    What is neither in its files nor in --facts nor in --metrics is said to be unknown or not measured. The examples'
    pictures are copied into images/ beside the card. Without a FOLDER the card says that the files were not at hand.

    Example: unclip card runs/model --license apache-2.0
    """
    if output is None:
        if folder is None:
            raise click.UsageError("give a FOLDER, or --output")
        output = folder / "README.md"
    if (facts_file is None) == (license_name is None):
        raise click.UsageError("give either --facts, which names the licence, or --license")
    with plain_errors(debug=debug):
        from unclip_hub.hub.card import write_card
        from unclip_hub.hub.card_facts import Facts, read_facts, read_results, read_run
        from unclip_hub.hub.inspect import inspect

        facts = read_facts(facts_file) if facts_file else Facts(license=str(license_name))
        facts = replace(facts, training=[*facts.training, *map(read_run, runs)])
        if metrics is None and folder is not None and (folder / "metrics.json").is_file():
            metrics = folder / "metrics.json"
        text = write_card(
            facts,
            checkpoint=inspect(folder, variant=variant) if folder else None,
            results=read_results(metrics) if metrics else None,
            beside=facts_file.parent if facts_file else None,
        )
        for example in facts.examples:
            assert facts_file is not None
            _copy(facts_file.parent / example.picture, output.parent / "images" / Path(example.picture).name)
        _write_atomically(text, output)
        click.echo(output)


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _write_atomically(text: str, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
