"""Every example runs: `--help`, and with the quick arguments it declares as `FAST = ["--steps", "2", ...]`."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import unclip_hub


ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def fast_arguments(source: str) -> list[str] | None:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == ["FAST"]:
            return ast.literal_eval(node.value)
    return None


def run(example: Path, arguments: list[str], folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(example), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_explains_itself(example):
    ran = CliRunner().invoke(runpy.run_path(str(example))["main"], ["--help"])
    assert ran.exit_code == 0 and "--output" in ran.output, ran.output


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example, tmp_path):
    arguments = fast_arguments(example.read_text(encoding="utf-8"))
    if arguments is None:
        pytest.skip("declares no FAST arguments")
    if not Path(unclip_hub.BUNDLED_MODEL, "model_index.json").exists():
        pytest.skip("the bundled model is not in this checkout")
    run(example, arguments, tmp_path)


def test_fast_arguments_are_read():
    assert fast_arguments("X = 1\nFAST = ['--steps', '2']\n") == ["--steps", "2"]
    assert fast_arguments("X = 1") is None
