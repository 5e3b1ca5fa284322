"""What the README says to type works: its Python and its commands run, its make targets and its links exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import unclip_hub
from unclip_hub.cli import main


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PLAIN = {"source .venv/bin/activate"}
needs_model = pytest.mark.skipif(
    not Path(unclip_hub.BUNDLED_MODEL, "model_index.json").exists(), reason="the bundled model is not in this checkout"
)


def commands() -> list[str]:
    """The lines to type: all of a bash block, those after "$ " of a console block."""
    typed = []
    for language, body in BLOCKS:
        lines = body.replace("\\\n", " ").splitlines()
        if language == "bash":
            typed += [re.sub(r"\s+# .*", "", line) for line in lines if line and not line.startswith("#")]
        elif language == "console":
            typed += [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return typed


def test_the_file_tree_names_every_module():
    modules = [path.name for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"]
    outside = [path.name for folder in ("examples", "benchmarks") for path in (ROOT / folder).glob("*.py")]
    assert [name for name in modules + outside if f"{name} " not in README] == []


def run(command: list[str], folder: Path) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_commands_are_of_known_kinds():
    assert commands()
    assert [line for line in commands() if shlex.split(line)[0] not in ("make", "unclip") and line not in PLAIN] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make")])
def test_make_target_exists(command):
    run(["make", "--dry-run", *shlex.split(command)[1:]], ROOT)


@needs_model
@pytest.mark.parametrize("block", [body for language, body in BLOCKS if language == "bash" and "unclip " in body])
def test_commands_run_and_write_what_they_say(block, tmp_path, monkeypatch):
    """Those of a block one after the other, in one folder and one process."""
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        arguments = shlex.split(line)[1:]
        ran = CliRunner().invoke(main, arguments)
        assert ran.exit_code == 0, ran.output
        if "--output" in arguments:
            printed = ran.stdout.split("\n")[:-1]
            assert printed and all((tmp_path / name).is_file() for name in printed)


def test_commands_that_are_not_run_exist():
    """Those of sh blocks need data or a network; their commands and options are known all the same."""
    typed = [line for language, body in BLOCKS if language == "sh" for line in body.splitlines()]
    assert typed
    for line in typed:
        program, *arguments = shlex.split(line, comments=True)
        if program == "python":
            assert (ROOT / arguments[0]).is_file()
        else:
            command = main.get_command(click.Context(main), arguments[0])
            known = {option for parameter in command.params for option in parameter.opts}
            assert command is not None and {one for one in arguments if one.startswith("--")} <= known


@needs_model
@pytest.mark.parametrize("code", [body for language, body in BLOCKS if language == "python"])
def test_python_runs(code, tmp_path):
    run([sys.executable, "-c", code], tmp_path)


@needs_model  # the picture is made by it
def test_relative_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.findall(r"^exec (.*)$", script, flags=re.MULTILINE) == ["make test"]
    assert "make test" in commands()
