"""`unclip pull`: a model from the Hub, whole."""

from pathlib import Path

import click

from unclip_hub.cli import plain_errors


@click.command(name="pull")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--revision", metavar="NAME", help="Branch, tag, commit or refs/pr/N. [default: main]")
@click.option("--variant", metavar="NAME", help="Fetch the weights of this variant, for example fp16.")
@click.option("--to", type=click.Path(path_type=Path), help="A new folder. [default: the Hub's cache]")
@click.option("--offline", is_flag=True, help="Use the cache alone.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    repo_id: str, *, revision: str | None, variant: str | None, to: Path | None, offline: bool, debug: bool
) -> None:
    """Fetch the model OWNER/NAME from the Hub and print the folder that holds it.

    Only one variant's weights are fetched, and no pickles where there is something else. An interrupted download goes
    on where it stopped; a folder appears only when it is whole. Without a connection the cache is used. For gated and
    private repositories log in with `hf auth login`, or set HF_TOKEN.

    Example: unclip pull kakaobrain/karlo-v1-alpha --to karlo
    """
    with plain_errors(debug=debug):
        from unclip_hub.hub.pull import pull

        click.echo(pull(repo_id, revision=revision, variant=variant, to=to, offline=offline))
