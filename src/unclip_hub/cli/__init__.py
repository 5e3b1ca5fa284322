"""The command line: `unclip COMMAND ...`.

A command's module is imported when the command is run or listed. `--help` must stay quick, so torch, diffusers and
what needs them are imported inside functions.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click


COMMANDS = (  # a module of this package each, holding one click command named `command`
    "card",
    "data",
    "doctor",
    "edit",
    "embed",
    "evaluate",
    "generate",
    "img2img",
    "inpaint",
    "interpolate",
    "invert",
    "outpaint",
    "pull",
    "push",
    "score",
    "train",
    "upscale",
    "vary",
)


class Commands(click.Group):
    """A group that imports a command when it is asked for, and says what went wrong in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return import_module(f"{__name__}.{cmd_name}").command if cmd_name in COMMANDS else None

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **options)
        try:
            code = super().main(*args, standalone_mode=False, **options)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(f"Error: {one_line(error.format_message())}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Aborted!", err=True)
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


@click.command(cls=Commands)
@click.version_option(package_name="unclip_hub")
def main() -> None:
    """Text to images with unCLIP (DALL-E 2)."""


@contextmanager
def plain_errors(*, debug: bool) -> Iterator[None]:
    """Turn what goes wrong while a command works into one line and exit code 1; ``debug`` keeps the traceback."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, (OSError, ValueError, RuntimeError)) and str(error)
        raise click.ClickException(str(error) if expected else f"{type(error).__name__}: {error}") from error


def one_line(message: str) -> str:
    """A message without its line breaks."""
    return " ".join(message.split())
