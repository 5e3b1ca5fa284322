"""What all scripts of this folder have in common on the command line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click
import torch
from folder import OutputFolder, output_folder, push

from unclip_hub.cli import plain_errors
from unclip_hub.hub.weights import BrokenFile


FILE = click.Path(path_type=Path)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Source:
    """The folder with the original's files, or None where all are named one by one."""

    folder: Path | None

    def find(self, *patterns: str, flag: str, given: Path | None = None) -> Path:
        """The file that ``flag`` gave, else the one in the folder whose name fits one of the patterns.

        Raises:
            ValueError: there is none, or more than one.
        """
        found = self.look(*patterns, flag=flag, given=given)
        if found is None:
            where = "no FOLDER was given" if self.folder is None else f"{self.folder} holds {_listing(self.folder)}"
            raise ValueError(f"no file {' or '.join(patterns)}: {where}; {flag} names it")
        return found

    def look(self, *patterns: str, flag: str, given: Path | None = None) -> Path | None:
        """As `find`, for a file that may be absent: the first pattern that some file fits, or None."""
        if given is not None:
            return given
        for pattern in patterns if self.folder is not None else ():
            found = sorted(path for path in self.folder.glob(pattern) if path.is_file())  # type: ignore[union-attr]
            if len(found) > 1:
                names = ", ".join(path.name for path in found)
                raise ValueError(f"{self.folder} holds {names}: choose one with {flag}")
            if found:
                return found[0]
        return None


@dataclass(frozen=True)
class Target:
    """Where the converted folder goes, and how it is written."""

    output: Path
    overwrite: bool
    dtype: torch.dtype | None

    @contextmanager
    def open(self, source_format: str) -> Iterator[OutputFolder]:
        """The folder to write into, see `folder.output_folder`; says what was written."""
        with output_folder(
            self.output, source_format=source_format, overwrite=self.overwrite, dtype=self.dtype
        ) as folder:
            yield folder
        click.echo(f"{self.output}: {', '.join(folder.components)}")
        for note in folder.notes:
            click.echo(f"Note: {note}", err=True)


def conversion(function: Callable[..., None]) -> click.Command:
    """Make ``function(source, target, ...)`` a command ``FOLDER --output OUT ...``; errors become one line."""

    @click.argument("source", metavar="[FOLDER]", required=False, type=FILE)
    @click.option("--output", required=True, type=FILE, metavar="OUT", help="The folder to write.")
    @click.option("--overwrite", is_flag=True, help="Replace OUT, if a conversion wrote it.")
    @click.option("--push-to-hub", metavar="REPO", help="Publish OUT as this repository, in one commit.")
    @click.option("--license", metavar="ID", help="The weights' licence, for the model card of what is published.")
    @click.option("--dtype", type=click.Choice(list(DTYPES)), help="Of the weights; by default the original's.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @wraps(function)
    def run(
        source: Path | None,
        *,
        output: Path,
        overwrite: bool,
        push_to_hub: str | None,
        license: str | None,
        dtype: str | None,
        debug: bool,
        **flags: Any,
    ) -> None:
        if push_to_hub and not license:
            raise click.UsageError("--push-to-hub needs --license, what the weights' authors allow, such as mit")
        with plain_errors(debug=debug), _with_remedies():
            if source is not None and not source.is_dir():
                raise ValueError(f"{source} is no folder; single files are named by flags, see --help")
            function(Source(source), Target(output, overwrite, DTYPES[dtype] if dtype else None), **flags)
            if push_to_hub and license:
                click.echo(push(output, push_to_hub, license=license))

    return click.command()(run)


@contextmanager
def _with_remedies() -> Iterator[None]:
    try:
        yield
    except BrokenFile as error:
        raise ValueError(f"{error}: {error.remedy}") from error


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"
