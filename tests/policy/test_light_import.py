"""Importing the package, or asking the command line for help, loads neither torch nor diffusers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unclip_hub.cli import COMMANDS


SRC = Path(__file__).parents[2] / "src"
HEAVY = {"torch", "diffusers", "transformers", "numpy", "accelerate", "huggingface_hub", "safetensors"}


@pytest.mark.parametrize(
    "code",
    [
        "import unclip_hub",
        "import unclip_hub; dir(unclip_hub); unclip_hub.BUNDLED_MODEL",
        "from unclip_hub.cli import main; main(['--help'], standalone_mode=False)",
        *(
            f"from unclip_hub.cli import main; main([*{command!r}, '--help'], standalone_mode=False)"
            for command in [*([name] for name in COMMANDS), ["data", "check"]]
        ),
    ],
)
def test_nothing_heavy_is_imported(code):
    code += "; import sys; print('modules:', *{name.partition('.')[0] for name in sys.modules})"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(ran.stdout.rpartition("modules:")[2].split())
    assert "unclip_hub" in loaded and loaded.isdisjoint(HEAVY), sorted(loaded & HEAVY)
