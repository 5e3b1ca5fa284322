"""``pipe.push_to_hub``: what `unclip push` does to a folder, for a pipeline in memory."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import HfApi

from unclip_hub.hub.card import write_card
from unclip_hub.hub.card_check import CARD
from unclip_hub.hub.card_facts import Facts
from unclip_hub.hub.inspect import inspect
from unclip_hub.hub.push import prepare, push
from unclip_hub.models.examine import examine


def publish(
    pipe: DiffusionPipeline,
    repo_id: str,
    *,
    license: str | None,
    card: str | Path | None,
    token: str | None = None,
    commit_message: str | None = None,
    variant: str | None = None,
    **options: Any,
) -> str:
    """Save, check and push a pipeline; the address of the commit or pull request.

    Raises:
        ValueError: neither a licence nor a card, or both; the model or the card is not fit to be published.
        HubError: the Hub could not take it; the repository is as it was.
    """
    if (license is None) == (card is None):
        raise ValueError(
            "push_to_hub needs license='apache-2.0', or whatever it is, or card= with a whole model card: a text or a "
            f"file; got license={license!r} and {'no card' if card is None else 'a card'}"
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pipe.save_pretrained(folder, variant=variant)
        checkpoint = inspect(folder, variant=variant)
        if isinstance(card, Path):
            card = card.read_text(encoding="utf-8")
        text = card or write_card(Facts(license=str(license)), checkpoint=checkpoint)
        (folder / CARD).write_text(text, encoding="utf-8")
        examine(checkpoint)
        plan = prepare(checkpoint, variant=variant)
        return push(plan, repo_id, api=HfApi(token=token), message=commit_message, **options).url
