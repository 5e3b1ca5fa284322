"""`unclip pull` against a Hub on the loopback: whole or not there, cache and offline, gated and private."""

import json

import pytest
from click.testing import CliRunner
from hub.state import Fault
from huggingface_hub import constants

from unclip_hub import UnCLIPPipeline
from unclip_hub.cli import main
from unclip_hub.hub.inspect import inspect
from unclip_hub.models.examine import examine


pytestmark = pytest.mark.hub

REPO = "someone/model"
WEIGHTS = "prior/diffusion_pytorch_model.safetensors"
HALF = "prior/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def repo(hub, saved):
    """Published by somebody, without our command."""
    made = hub.create(REPO)
    hub.put(REPO, saved)
    return made


def pull(*arguments, repo=REPO):
    return CliRunner().invoke(main, ["pull", repo, *map(str, arguments)])


def the_error(result):
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


def test_into_a_folder_that_is_the_same(hub, repo, saved, tmp_path):
    result = pull("--to", tmp_path / "here")
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "here")
    local = {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    here = tmp_path / "here"
    assert {
        path.relative_to(here).as_posix(): path.read_bytes() for path in here.rglob("*") if path.is_file()
    } == local
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    assert "must not exist yet" in the_error(pull("--to", here))


def test_what_was_pushed_comes_back_and_is_healthy(hub, folder, pipe, tmp_path):
    assert CliRunner().invoke(main, ["push", str(folder), REPO]).exit_code == 0
    assert pull("--to", tmp_path / "here").exit_code == 0
    checkpoint = inspect(tmp_path / "here")
    examine(checkpoint)
    assert checkpoint.problems == [] and checkpoint.pipeline == "UnCLIPPipeline"  # its own code is no stranger
    assert CliRunner().invoke(main, ["push", str(tmp_path / "here"), REPO]).stderr.count("Nothing to send") == 1
    UnCLIPPipeline.from_pretrained(tmp_path / "here")


def test_the_cache_and_then_without_a_connection(hub, repo, monkeypatch, tmp_path):
    first = pull()
    folder = first.stdout.strip()
    assert first.exit_code == 0 and folder.startswith(constants.HF_HUB_CACHE)
    before = len(hub.requests)
    assert pull().stdout == first.stdout
    assert not [request for request in hub.requests[before:] if "/resolve/" in request]
    before = len(hub.requests)
    assert pull("--offline").stdout == first.stdout and len(hub.requests) == before
    hub.faults.append(Fault("GET", "/api/models/", 503, times=9))
    assert pull().stdout == first.stdout
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull().stdout == first.stdout
    assert pull("--to", tmp_path / "copy").exit_code == 0
    assert inspect(tmp_path / "copy").problems == []
    assert "not in the cache" in the_error(pull(repo="someone/other"))


def test_a_cache_that_holds_a_part_is_not_taken_for_the_whole(hub, repo):
    hub.faults.append(Fault("GET", f"/resolve/.*/{WEIGHTS}", 404))
    assert pull().exit_code == 1
    line = the_error(pull("--offline"))
    assert "only a part" in line or "prior" in line


def test_one_variant_and_no_more(hub, pipe, folder, tmp_path):
    pipe.save_pretrained(folder, variant="fp16")
    hub.create(REPO)
    hub.put(REPO, folder)
    assert pull("--variant", "fp16", "--to", tmp_path / "half").exit_code == 0
    assert (tmp_path / "half" / HALF).exists() and not (tmp_path / "half" / WEIGHTS).exists()
    assert pull("--to", tmp_path / "full").exit_code == 0
    assert (tmp_path / "full" / WEIGHTS).exists() and not (tmp_path / "full" / HALF).exists()
    line = the_error(pull("--variant", "int8"))
    assert "has no weights of variant int8: it has decoder/diffusion_pytorch_model.fp16.safetensors" in line


def test_revisions(hub, repo, saved, tmp_path):
    first = repo.refs["main"]
    (tmp_path / "later").mkdir()
    index = json.loads((saved / "model_index.json").read_text())
    (tmp_path / "later" / "model_index.json").write_text(json.dumps(index | {"sampling_defaults": None}))
    hub.put(REPO, tmp_path / "later")
    repo.refs["old"] = first
    for revision, defaults in ((first, True), ("old", True), ("main", False)):
        assert pull("--revision", revision, "--to", tmp_path / revision).exit_code == 0
        assert bool(inspect(tmp_path / revision).index["sampling_defaults"]) == defaults
    assert "no such revision" in the_error(pull("--revision", "nowhere"))


def test_gated_and_private(hub, repo, monkeypatch):
    repo.gated = True
    monkeypatch.setenv("HF_TOKEN", "reader-token")
    line = the_error(pull())
    assert f"ask at {hub.url}/{REPO}" in line and "hf auth login" in line
    repo.granted.add("reader")
    assert pull().exit_code == 0
    repo.private = True
    assert "no such repository, or it is private" in the_error(pull())
    monkeypatch.delenv("HF_TOKEN")
    assert "log in with `hf auth login`" in the_error(pull())
    monkeypatch.setenv("HF_TOKEN", "someone-token")
    assert pull().exit_code == 0


FAULTS = {
    "file 500": (Fault("GET", f"/resolve/.*/{WEIGHTS}", 500, times=9), "a fault (error 500): run it again"),
    "file 429": (Fault("GET", f"/resolve/.*/{WEIGHTS}", 429, times=9), "too many requests"),
    "file dropped": (Fault("GET", f"/resolve/.*/{WEIGHTS}", times=9), "the connection broke: run it again"),
    "listing 403": (Fault("GET", "/api/models/", 403), "this token may not"),
}
SLOW = ("file 429", "file dropped")  # the client tries for long


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAULTS])
def test_after_a_fault_there_is_no_folder_and_a_second_try_makes_it(hub, repo, tmp_path, name):
    fault, said = FAULTS[name]
    hub.faults.append(fault)
    line = the_error(pull("--to", tmp_path / "here"))
    assert said in line and line.endswith("what has arrived is kept for the next try")
    assert not (tmp_path / "here").exists()
    hub.faults.clear()
    got = {request for request in hub.requests if request.startswith("GET ") and "/resolve/" in request}
    before = len(hub.requests)
    assert pull("--to", tmp_path / "here").exit_code == 0
    again = {request for request in hub.requests[before:] if request.startswith("GET ") and "/resolve/" in request}
    assert inspect(tmp_path / "here").problems == []
    assert len(got & again) <= 8 and len(got | again) > 10  # what was under way, not all of it


def test_a_body_that_ends_early_goes_on_where_it_stopped(hub, folder, tmp_path):
    assert CliRunner().invoke(main, ["push", str(folder), REPO]).exit_code == 0
    hub.faults.append(Fault("GET", f"/resolve/.*/{WEIGHTS}", cut=1000))
    assert pull("--to", tmp_path / "here").exit_code == 0
    assert (tmp_path / "here" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert hub.faults[0].times == 0
