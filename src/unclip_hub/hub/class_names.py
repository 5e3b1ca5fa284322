"""Class names in a ``model_index.json``: what others wrote is read as ours, ours is written as they know it.

On disk we keep the names of Karlo's repository, so that one checkpoint opens here and in older diffusers alike; in
memory the same component is a class of ours. diffusers 0.38 and later cannot resolve the names that it wrote itself
(``["unclip", "UnCLIPTextProjModel"]``).
"""

from typing import Any


LIBRARY = "unclip_hub"

# class -> library under which diffusers up to 0.37 finds the class of that name
ON_DISK = {
    "PriorTransformer": "diffusers",
    "UNet2DConditionModel": "diffusers",
    "UNet2DModel": "diffusers",
    "UnCLIPScheduler": "diffusers",
    "UnCLIPTextProjModel": "unclip",
}
# class of transformers -> the class that loads it strictly, see `models.loading`
LOADERS = {
    "CLIPTextModelWithProjection": "CLIPTextModelWithProjection",
    "CLIPVisionModelWithProjection": "CLIPVisionModelWithProjection",
    "CLIPTokenizer": "CLIPTokenizer",
    "CLIPTokenizerFast": "CLIPTokenizer",
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "CLIPImageProcessor": "CLIPImageProcessor",
    "CLIPImageProcessorFast": "CLIPImageProcessor",
    "CLIPImageProcessorPil": "CLIPImageProcessor",
}
_RENAMED = {("transformers", "CLIPImageProcessorPil"): ("transformers", "CLIPImageProcessor")}  # transformers 5's name


def to_ours(index: dict[str, Any]) -> dict[str, Any]:
    """An index as read from disk, its known classes named as this library's."""
    ours = {name: [LIBRARY, value[1]] if _is_ours(value) else value for name, value in index.items()}
    return ours | ({"_class_name": pipeline_class(index)} if "_class_name" in index else {})


def pipeline_class(index: dict[str, Any]) -> str:
    """The pipeline's class; what is published also names the file that loads it in plain diffusers, see `shims`."""
    name = index.get("_class_name", "?")
    return str(name[1] if _is_pair(name) else name)


def to_loaders(index: dict[str, Any]) -> dict[str, Any]:
    """What diffusers' loader is given: `to_ours`, and the classes of transformers by their strict loaders."""
    return {
        name: [LIBRARY, LOADERS[value[1]]]
        if _is_pair(value) and value[0] == "transformers" and value[1] in LOADERS
        else value
        for name, value in to_ours(index).items()
    }


def to_disk(index: dict[str, Any], *, optional: list[str]) -> dict[str, Any]:
    """An index of ours as written: known classes under their old library, absent ``optional`` components left out."""
    named = {name: _written(value) if _is_pair(value) else value for name, value in index.items()}
    return {
        name: value for name, value in named.items() if not (name in optional and list(value or ()) == [None, None])
    }


def _written(value: Any) -> list[Any]:
    library, name = value
    if _is_ours(value):
        return [ON_DISK.get(name, LIBRARY), name]
    return list(_RENAMED.get((library, name), (library, name)))


def _is_ours(value: Any) -> bool:
    """A class of ours under any path, or one of diffusers' that we have; not another library's of the same name."""
    if not _is_pair(value) or not isinstance(value[0], str):
        return False
    root = value[0].partition(".")[0]
    return root == LIBRARY or (root in ("diffusers", "unclip") and value[1] in ON_DISK)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2
