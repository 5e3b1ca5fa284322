"""The folder that a pipeline opens: ``model_index.json`` beside one folder per component."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unclip_hub.hub.class_names import to_disk


def write_index(
    folder: Path, pipeline: str, *, components: Mapping[str, tuple[str, str]], config: Mapping[str, Any] | None = None
) -> Path:
    """Write the index of a folder whose components are saved already.

    Args:
        pipeline: name of the pipeline's class.
        components: library and class of every component, by the name of its folder.
        config: the pipeline's own settings.

    Raises:
        ValueError: a component has no folder.
    """
    missing = [name for name in components if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"{folder} must hold a folder for every component, missing: {', '.join(missing)}")
    named = to_disk({name: list(value) for name, value in components.items()}, optional=[])
    index = {"_class_name": pipeline, "_diffusers_version": version("diffusers"), **(config or {}), **named}
    path = folder / "model_index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return path
