"""The public surface: `__all__` is sorted, is the lazy table, and every name in it exists."""

import ast
import inspect

import pytest

import unclip_hub


def test_all_is_sorted_and_is_the_table():
    assert unclip_hub.__all__ == sorted(unclip_hub.__all__)
    assert set(unclip_hub.__all__) == {"BUNDLED_MODEL", *unclip_hub._HOMES}


def test_type_checkers_see_the_same_names():
    tree = ast.parse(inspect.getsource(unclip_hub))
    block = next(node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    seen = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert seen == unclip_hub._HOMES


@pytest.mark.parametrize("name", unclip_hub.__all__)
def test_every_name_exists(name):
    assert getattr(unclip_hub, name) is not None
    assert name in dir(unclip_hub)


@pytest.mark.parametrize("name", ["ModelMixin", "SchedulerMixin"])
def test_names_that_diffusers_loader_looks_up(name):
    assert getattr(unclip_hub, name).__name__ == name
    assert name not in unclip_hub.__all__


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unclip_hub.nothing
