"""A folder on disk, or a repository on the Hub, as a folder."""

import re
from pathlib import Path


_TEXTS = ["*.json", "*.txt", "*.py"]  # code is listed, never run
_STEMS = ("diffusion_pytorch_model", "model")


def locate(source: str, *, variant: str | None = None) -> Path:
    """The folder itself, or the Hub's cache of the repository, downloaded where it is not there yet.

    Only configurations and the weights of ``variant`` are downloaded; pickles only where a component has nothing else.

    Raises:
        FileNotFoundError: neither a folder nor a repository that the cache or the Hub has.
    """
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise FileNotFoundError(f"no model {source!r}: expected a folder, or OWNER/NAME on the Hub")
    from huggingface_hub import snapshot_download

    dot = f".{variant}" if variant else ""
    weights = [f"*/{stem}{dot}{shard}.safetensors" for stem in _STEMS for shard in ("", "-*-of-*")]
    try:
        folder = Path(snapshot_download(source, allow_patterns=[*_TEXTS, *weights]))
        bare = [path.parent for path in folder.glob("*/config.json") if not any(path.parent.glob("*.safetensors"))]
        if bare:
            snapshot_download(source, allow_patterns=[f"{path.name}/*{dot}.bin" for path in bare])
    except OSError as error:  # huggingface_hub's errors are all of this kind
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FileNotFoundError(f"no model {source!r} here, and none from the Hub or its cache: {reason}") from error
    return folder
