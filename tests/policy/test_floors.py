"""Imports go downwards only: the floors of the package, and who may not import whom."""

import ast
import sys
from pathlib import Path

import pytest

import unclip_hub


SRC = Path(__file__).parents[2] / "src"
FLOORS = [
    {"diffusion", "embeddings", "images"},
    {"sampling", "conditioning", "schedulers", "data", "hub"},
    {"models", "evaluation"},
    {"pipelines", "training"},
    {"cli", "demo", "server"},
]
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
SIBLINGS_APART_FROM = 2  # from this floor upwards, parts of one floor never import each other
NUMERIC = {"torch", "numpy", "PIL", "jaxtyping"}  # what floor 0 may import beside the standard library
OUTSIDE = {"conversion", "examples", "benchmarks", "tests"}
FILES = [path.relative_to(SRC) for path in sorted(SRC.glob("unclip_hub/**/*.py")) if path.parent.name != "unclip_hub"]
FILES += [path.relative_to(SRC) for path in sorted(SRC.glob("unclip_hub/*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file):
    here = file.parts[1].removesuffix(".py")
    assert here in FLOOR, f"{here} has no floor: give it one here, and in DESIGN"
    for name in imports((SRC / file).read_text(encoding="utf-8"), file):
        assert forbidden(here, name) is None, f"{file} imports {name}: {forbidden(here, name)}"


def test_imports_are_found_wherever_they_stand():
    source = """
def f():
    import a.b
    from unclip_hub import guide, images
    from unclip_hub.data.folder import x
    from ..models import y
    from . import z
"""
    found = {"a.b", "sampling.guide", "images", "data.folder.x", "models.y", "pipelines.z"}
    found = {name if name == "a.b" else f"unclip_hub.{name}" for name in found}
    assert imports(source, Path("unclip_hub/pipelines/imagined.py")) == found


@pytest.mark.parametrize(
    ("here", "name"),
    [
        ("pipelines", "unclip_hub.training.loop"),
        ("models", "unclip_hub.evaluation.distance"),
        ("models", "unclip_hub.pipelines.base"),
        ("hub", "unclip_hub.models.decoder"),
        ("images", "diffusers"),
        ("training", "examples.train"),
        ("data", "unclip_hub.somewhere_new"),
    ],
)
def test_imports_upwards_or_sideways_are_refused(here, name):
    assert forbidden(here, name)


@pytest.mark.parametrize(
    ("here", "name"),
    [
        ("pipelines", "unclip_hub.pipelines.base"),
        ("training", "unclip_hub.evaluation.distance"),
        ("sampling", "unclip_hub.conditioning.Conditioning"),
        ("pipelines", "unclip_hub"),
        ("cli", "unclip_hub.BUNDLED_MODEL"),
        ("images", "numpy"),
        ("models", "diffusers.models.modeling_utils"),
    ],
)
def test_imports_downwards_are_free(here, name):
    assert forbidden(here, name) is None


def forbidden(here: str, name: str) -> str | None:
    """Why a part of the package must not import a module, or None."""
    top, _, rest = name.partition(".")
    there = rest.partition(".")[0]
    if top in OUTSIDE:
        return f"the package never imports {top}/"
    if top != "unclip_hub":
        low = FLOOR[here] == 0 and top not in NUMERIC | sys.stdlib_module_names
        return f"floor 0 imports only {sorted(NUMERIC)} and the standard library" if low else None
    if there in ("", here, "BUNDLED_MODEL"):
        return None
    if there not in FLOOR:
        return "it has no floor"
    if FLOOR[there] > FLOOR[here]:
        return f"floor {FLOOR[there]} is above floor {FLOOR[here]}"
    if FLOOR[there] == FLOOR[here] >= SIBLINGS_APART_FROM:
        return f"both are on floor {FLOOR[here]}"
    return None


def imports(source: str, file: Path) -> set[str]:
    """What a file imports, each name in full; a public name of the top-level package counts as its own module's."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            folder = file.parent.parts
            base = ".".join([*folder[: len(folder) + 1 - node.level], *filter(None, [node.module])])
            if not node.level:
                base = node.module or ""
            homes = unclip_hub._HOMES if base == "unclip_hub" else {}
            found |= {f"{homes.get(alias.name, base)}.{alias.name}" for alias in node.names}
    return found
