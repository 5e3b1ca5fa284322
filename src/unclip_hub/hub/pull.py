"""A model from the Hub, whole: into the cache, or into a folder that appears when all of it is there."""

import logging
import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from unclip_hub.hub.faults import HubError, one_line
from unclip_hub.hub.inspect import CONFIG_FILE, inspect


logger = logging.getLogger(__name__)

KEPT = "what has arrived is kept for the next try"
_TEXTS = (".json", ".txt", ".md", ".py")  # code is fetched, never run
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    to: Path | None = None,
    offline: bool = False,
) -> Path:
    """The folder with a model's settings, card and weights of one variant.

    Without a connection the cache is used, if it holds all that is needed.

    Args:
        revision: branch, tag, commit, or ``refs/pr/N``; main if None.
        to: a folder that must not exist yet; the Hub's cache if None.
        offline: do not ask the Hub.

    Raises:
        HubError: there is no such model, it may not be read, or it could not be fetched.
        ValueError: ``to`` exists, or the weights are not there in this variant.
    """
    if to is not None and to.exists():
        raise ValueError(f"{to} must not exist yet")
    partial = None if to is None else to.with_name(f".{to.name}.partial")
    with one_line(repo_id, state=lambda: KEPT):
        names = None if offline else _wanted(repo_id, revision=revision, variant=variant)
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                local_dir=None if names is None else partial,
                allow_patterns=_patterns(variant) if names is None else names,
                local_files_only=names is None,
            )
        )
    broken = [problem for problem in inspect(folder, variant=variant).problems if problem.level == "error"]
    if broken:
        said = "; ".join(f"{problem.where}: {problem.what}" for problem in broken)
        raise HubError(f"{repo_id} is not whole {'in the cache' if names is None else 'on the Hub'}: {said}")
    if to is None or partial is None:
        return folder
    if names is None:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's notes on what it fetched
    return partial.rename(to)


def choose(names: list[str], *, variant: str | None) -> list[str]:
    """Of a repository's files, those that a model of this variant is made of; pickles only where there is no other.

    Raises:
        ValueError: a component that has weights has none of this variant.
    """
    chosen = [name for name in names if name.endswith(_TEXTS) or name.startswith(("images/", "LICENSE", "NOTICE"))]
    dot = f".{re.escape(variant)}" if variant else ""
    components = {name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG_FILE['model']}")}
    for component in sorted(components):
        for suffix in ("safetensors", "bin"):
            pattern = rf"{component}/({'|'.join(_STEMS)}){dot}(-\d+-of-\d+)?\.{suffix}"
            weights = [name for name in names if re.fullmatch(pattern, name)]
            if weights:
                break
        else:
            others = [name for name in names if re.match(rf"{component}/.*\.(safetensors|bin)$", name)]
            what = f"it has {', '.join(others)}" if others else "it has none"
            raise ValueError(
                f"{component} has no weights of {f'variant {variant}' if variant else 'no variant'}: {what}"
            )
        chosen += weights
    return chosen


def _wanted(repo_id: str, *, revision: str | None, variant: str | None) -> list[str] | None:
    """Names to download, or None without a connection."""
    try:
        info = HfApi().model_info(repo_id, revision=revision)
    except (OfflineModeIsEnabled, httpx.TransportError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        logger.warning(f"{constants.ENDPOINT} does not answer ({type(error).__name__}): looking in the cache")
        return None
    return choose([sibling.rfilename for sibling in info.siblings or []], variant=variant)


def _patterns(variant: str | None) -> list[str]:
    dot = f".{variant}" if variant else ""
    weights = [f"*/{stem}{dot}{shard}.*" for stem in _STEMS for shard in ("", "-*-of-*")]
    return [*(f"*{suffix}" for suffix in _TEXTS), *weights]
