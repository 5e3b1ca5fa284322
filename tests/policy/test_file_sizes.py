"""A file is one idea and stays short enough to be read in one go."""

from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
MAX_LINES = 450
FILES = [
    path
    for folder in ("src", "conversion", "examples", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: expected at most {MAX_LINES}"
