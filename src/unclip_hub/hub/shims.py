"""The small files through which plain diffusers opens what we publish, with ``trust_remote_code=True``.

diffusers takes a pipeline from ``[file, class]`` in the index, and accepts a component of a library that it does not
know only if the component's folder holds a file of that name. Nothing in them but one import.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import unclip_hub
from unclip_hub.hub.class_names import LIBRARY, pipeline_class, to_ours


PIPELINE = "pipeline"  # diffusers' name for the file
_CODE = '''"""Lets plain diffusers open this model: DiffusionPipeline.from_pretrained(..., trust_remote_code=True)."""

try:
    from unclip_hub import {name}  # noqa: F401
except ImportError as error:
    raise ImportError("this model needs unclip_hub: pip install unclip_hub") from error
'''


def published(index: Mapping[str, Any]) -> dict[str, bytes]:
    """The index as it is published, and the files that it needs beside it, by path.

    Components of ours are named as ours: diffusers' classes of the same name lack settings and tensors that ours may
    have, and their float32 tables give other pictures.

    Raises:
        ValueError: the pipeline is none of ours.
    """
    name = pipeline_class(dict(index))
    if name not in unclip_hub.__all__:
        raise ValueError(f"model_index.json must name a pipeline of unclip_hub's as _class_name, got {name}")
    named = to_ours(dict(index)) | {"_class_name": [PIPELINE, name]}
    files = {"model_index.json": (json.dumps(named, indent=2, sort_keys=True) + "\n").encode()}
    files[f"{PIPELINE}.py"] = _CODE.format(name=name).encode()
    for component, value in named.items():
        if isinstance(value, list) and value[0] == LIBRARY:
            files[f"{component}/{LIBRARY}.py"] = _CODE.format(name=value[1]).encode()
    return files


def is_shim(path: Path) -> bool:
    """Whether a file is one of these, to the letter."""
    if path.name not in (f"{PIPELINE}.py", f"{LIBRARY}.py"):
        return False
    text = path.read_bytes()
    return any(text == _CODE.format(name=name).encode() for name in unclip_hub.__all__)
