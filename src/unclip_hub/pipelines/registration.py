"""Where diffusers looks for the classes of a plug-in."""

import diffusers.pipelines

import unclip_hub
from unclip_hub.models import text_proj


def register() -> None:
    """Let plain ``DiffusionPipeline.from_pretrained`` open what we save.

    diffusers resolves a component's library as an attribute of ``diffusers.pipelines`` first: this is how a plug-in's
    classes load from the Hub, and ``unclip`` is the name that Karlo's repository holds.
    """
    diffusers.pipelines.unclip_hub = unclip_hub  # type: ignore[attr-defined]
    if not hasattr(diffusers.pipelines, "unclip"):
        diffusers.pipelines.unclip = text_proj  # type: ignore[attr-defined]
