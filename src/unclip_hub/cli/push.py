"""`unclip push`: a folder to the Hub, checked first, in one commit."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unclip_hub.cli import one_line, plain_errors


if TYPE_CHECKING:
    from unclip_hub.hub.push import Plan


@click.command(name="push")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--revision", metavar="BRANCH", help="Commit to this branch, which is created if need be.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--variant", metavar="NAME", help="Send the weights of this variant, for example fp16.")
@click.option("--message", metavar="TEXT", help="The commit's title.")
@click.option("--dry-run", is_flag=True, help="Check everything, show what would be sent, and stop.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    create_pr: bool,
    variant: str | None,
    message: str | None,
    dry_run: bool,
    debug: bool,
) -> None:
    """Publish the model in FOLDER as OWNER/NAME on the Hub.

    The model and its card (README.md, which `unclip card` writes) are checked before anything is sent. Everything is
    sent in one commit, so that the repository never holds a half of it. What is there already is not sent again.

    Example: unclip push runs/model someone/my-unclip --private
    """
    with plain_errors(debug=debug):
        from unclip_hub.hub.inspect import inspect
        from unclip_hub.hub.push import NotReady, prepare, push
        from unclip_hub.models.examine import examine

        checkpoint = inspect(folder, variant=variant)
        if checkpoint.index:
            examine(checkpoint)
        try:
            plan = prepare(checkpoint, variant=variant)
        except NotReady as error:
            for problem in error.problems:
                remedy = f" -> {problem.remedy}" if problem.remedy else ""
                click.echo(f"error: {problem.where}: {one_line(problem.what + remedy)}", err=True)
            raise click.ClickException(f"{folder} is not ready: nothing was published") from error
        _show(plan, f"{folder} -> {repo_id}{', as a pull request' if create_pr else ''}")
        if dry_run:
            return
        pushed = push(
            plan,
            repo_id,
            private=True if private else None,  # None: what the owner's settings say
            revision=revision,
            create_pr=create_pr,
            message=message,
        )
        if not pushed.changed:
            click.echo("Nothing to send: the repository holds these files already.", err=True)
        click.echo(pushed.url)


def _show(plan: "Plan", title: str) -> None:
    """What is sent and how big it is; on stderr, as stdout is for the address alone."""
    from unclip_hub.hub.sizes import readable

    click.echo(title, err=True)
    width = max(map(len, plan.files))
    for path in sorted(plan.files):
        click.echo(f"  {path.ljust(width)}  {readable(plan.size(path)):>8}", err=True)
    click.echo(f"{len(plan.files)} files, {readable(plan.total)}", err=True)
    if plan.left_out:
        more = f" and {len(plan.left_out) - 5} more" if len(plan.left_out) > 5 else ""
        click.echo(f"Not part of the model, not sent: {', '.join(plan.left_out[:5])}{more}", err=True)
