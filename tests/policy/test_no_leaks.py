"""What is published holds no trace of the machine it was made on: no home folders, no tokens."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
LEAKS = re.compile(rb"/(?:home|root|Users)/[\w.-]+|\bhf_[A-Za-z]{34}\b")


def test_no_home_folders_and_no_tokens():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    paths = [ROOT / name.decode() for name in files if name]
    found = {str(path): match[0] for path in paths if path.is_file() and (match := LEAKS.search(path.read_bytes()))}
    assert not found
