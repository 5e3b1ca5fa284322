"""`unclip push` against a Hub on the loopback: everything in one commit, or nothing, and one line that says why."""

import json
import re
import shutil
import socket

import pytest
import torch
from click.testing import CliRunner
from hub.client import connect
from hub.server import serving
from hub.state import Commit, Fault, File
from huggingface_hub import constants
from pipelines import tiny
from safetensors.torch import save_file

from unclip_hub import UnCLIPPipeline
from unclip_hub.cli import main


pytestmark = pytest.mark.hub

REPO = "someone/model"
COMMIT = f"/api/models/{REPO}/commit/main"
WEIGHTS = "prior/diffusion_pytorch_model.safetensors"


def push(folder, *arguments, repo=REPO):
    return CliRunner().invoke(main, ["push", str(folder), repo, *arguments])


def the_error(result):
    """The one line that the user sees."""
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in result.output
    return line


def uploads(hub):
    return [request for request in hub.requests if request.startswith("PUT ")]


def test_a_model_goes_up_in_one_commit(hub, folder):
    (folder / "optimizer.pt").write_bytes(b"not a part of the model")
    (folder / "images").mkdir()
    (folder / "images" / "one.png").write_bytes(b"a picture")
    result = push(folder, "--message", "first")
    assert result.exit_code == 0, result.output
    repo = hub.repos[REPO]
    head = repo.commits[repo.refs["main"]]
    assert result.stdout.strip() == f"{hub.url}/{REPO}/commit/{repo.refs['main']}"
    assert len(repo.commits) == 2 and head.title == "first" and head.parent in repo.commits
    local = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"optimizer.pt"}
    shims = {name for name in head.files if name.endswith(".py")}
    assert set(head.files) - shims == local | {".gitattributes"}
    assert {"pipeline.py", "prior/unclip_hub.py", "text_proj/unclip_hub.py"} <= shims
    for name in local - {"README.md", "model_index.json"}:
        data = (folder / name).read_bytes()
        stored = head.files[name].data
        assert data == (hub.object(head.files[name].sha256).read_bytes() if stored is None else stored), name
    assert repr(REPO)[1:-1] in head.files["README.md"].data.decode()
    assert "OWNER/NAME" not in head.files["README.md"].data.decode()
    size = sum(head.files[name].size for name in head.files if name != ".gitattributes")
    assert f"{len(head.files) - 1} files, " in result.stderr and WEIGHTS in result.stderr
    said, unit = re.search(r"files, ([\d.]+) (kB|MB)", result.stderr).groups()
    assert abs(float(said) * {"kB": 1e3, "MB": 1e6}[unit] / size - 1) < 0.01
    assert "not sent: optimizer.pt" in result.stderr


def test_again_there_is_nothing_to_send(hub, folder):
    first, before = push(folder), len(hub.requests)
    again = push(folder)
    assert again.exit_code == 0 and "Nothing to send" in again.stderr
    assert again.stdout == first.stdout and len(hub.repos[REPO].commits) == 2
    assert not [r for r in hub.requests[before:] if r.startswith("PUT ") or "/commit/" in r]


def test_a_change_alone_is_sent_and_outdated_shards_go_in_the_same_commit(hub, folder, pipe):
    (folder / WEIGHTS).unlink()
    pipe.prior.save_pretrained(folder / "prior", max_shard_size="20KB")
    assert push(folder).exit_code == 0
    shards = [name for name in hub.repos[REPO].files if name.startswith("prior/") and "-of-" in name]
    assert len(shards) > 1
    for path in [*folder.glob("prior/*-of-*"), *folder.glob("prior/*.index.json")]:
        path.unlink()
    pipe.prior.save_pretrained(folder / "prior")
    before = len(hub.requests)
    assert push(folder).exit_code == 0
    files = hub.repos[REPO].files
    assert len(hub.repos[REPO].commits) == 3 and len(uploads(hub)) == len(set(uploads(hub)))
    assert len([r for r in hub.requests[before:] if r.startswith("PUT ")]) == 1
    assert WEIGHTS in files and not [name for name in files if "-of-" in name or ".index." in name]


def test_a_variant_joins_what_is_there(hub, folder, pipe):
    assert push(folder).exit_code == 0
    before = set(hub.repos[REPO].files)
    pipe.save_pretrained(folder, variant="fp16")
    assert push(folder, "--variant", "fp16").exit_code == 0
    added = set(hub.repos[REPO].files) - before
    assert "prior/diffusion_pytorch_model.fp16.safetensors" in added and before <= set(hub.repos[REPO].files)
    assert all(".fp16.safetensors" in name for name in added)


def test_a_pull_request_leaves_main_alone(hub, folder, monkeypatch):
    hub.create(REPO)
    monkeypatch.setenv("HF_TOKEN", "reader-token")  # who may not write may ask
    result = push(folder, "--create-pr")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"{hub.url}/{REPO}/discussions/1"
    repo = hub.repos[REPO]
    assert set(repo.files) == {".gitattributes"}
    assert WEIGHTS in repo.commits[repo.refs["refs/pr/1"]].files
    assert "leave out revision" in the_error(push(folder, "--create-pr", "--revision", "other"))


def test_a_branch_is_made_and_main_left_alone(hub, folder):
    result = push(folder, "--revision", "v2")
    assert result.exit_code == 0, result.output
    repo = hub.repos[REPO]
    assert WEIGHTS in repo.commits[repo.refs["v2"]].files and set(repo.files) == {".gitattributes"}
    assert "Nothing to send" in push(folder, "--revision", "v2").stderr


def test_private_means_private(hub, folder):
    assert push(folder, "--private").exit_code == 0 and hub.repos[REPO].private
    hub.create("someone/public")
    line = the_error(push(folder, "--private", repo="someone/public"))
    assert "exists and is public" in line and "nothing was published" in line
    assert set(hub.repos["someone/public"].files) == {".gitattributes"}


def test_objects_in_parts(folder, tmp_path, monkeypatch):
    with serving(tmp_path / "hub", part_size=30_000) as hub:
        connect(hub.url, monkeypatch=monkeypatch, folder=tmp_path)
        assert push(folder).exit_code == 0
        parts = [request for request in uploads(hub) if "/parts/" in request]
        assert len(parts) > 4
        stored = hub.object(hub.repos[REPO].files[WEIGHTS].sha256)
        assert stored.read_bytes() == (folder / WEIGHTS).read_bytes()


# checks before the first byte leaves


def no_card(folder):
    (folder / "README.md").unlink()
    return "there is no model card -> write one with `unclip card"


def no_licence(folder):
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("license: apache-2.0\n", ""))
    return "no licence is named"


def no_metadata(folder):
    (folder / "README.md").write_text("# A model\n")
    return "must begin with metadata"


def another_library(folder):
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("library_name: diffusers", "library_name: keras"))
    return "library_name is 'keras' -> set `library_name: diffusers`"


def a_template(folder):
    with (folder / "README.md").open("a") as file:
        file.write("[More Information Needed]\n")
    return "a template that nobody filled in"


def no_picture(folder):
    text = (folder / "README.md").read_text()
    widget = "widget:\n- text: a\n  output: {url: images/a.png}\n"
    (folder / "README.md").write_text(text.replace("license:", f"{widget}license:", 1))
    return "its picture images/a.png is missing"


def cut_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])
    return "prior: diffusion_pytorch_model.safetensors is cut short"


def pickled_weights(folder):
    torch.save(tiny.components()["prior"].state_dict(), folder / "prior" / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    return "prior: diffusion_pytorch_model.bin is a pickle"


def other_shapes(folder):
    save_file({"proj_in.weight": torch.zeros(2, 3)}, folder / WEIGHTS)
    return "error: prior: "


def missing_component(folder):
    shutil.rmtree(folder / "decoder")
    return "decoder: its folder is missing"


def foreign_pipeline(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    return "must name a pipeline of unclip_hub's as _class_name, got FluxPipeline"


@pytest.mark.parametrize(
    "damage",
    [
        no_card,
        no_licence,
        no_metadata,
        another_library,
        a_template,
        no_picture,
        cut_weights,
        pickled_weights,
        other_shapes,
        missing_component,
        foreign_pipeline,
    ],
)
def test_what_is_not_fit_never_leaves(hub, folder, damage):
    said = damage(folder)
    result = push(folder)
    assert "not ready: nothing was published" in the_error(result)
    assert said in result.stderr and " -> " in result.stderr
    assert hub.requests == []


def test_a_dry_run_asks_nobody(hub, folder):
    result = push(folder, "--dry-run")
    assert result.exit_code == 0 and WEIGHTS in result.stderr and result.stdout == ""
    assert hub.requests == []


# faults: what the user sees, and what becomes of the repository


@pytest.fixture
def published(hub, saved):
    """A repository with an older model of the same layout."""
    repo = hub.create(REPO)
    text = b"older"
    repo.add("main", Commit({"README.md": File(len(text), text)}, repo.refs["main"], "older"))
    return repo


PREUPLOAD, OBJECT = f"/api/models/{REPO}/preupload/main", "/objects/"
FAULTS = {
    "create 429": (
        Fault("POST", "/api/repos/create", 429, headers={"Retry-After": "7"}),
        "too many requests: wait 7 s and run it again",
    ),
    "create dropped": (Fault("POST", "/api/repos/create"), "the connection broke: run it again"),
    "preupload 401": (Fault("POST", PREUPLOAD, 401), "does not know who asks"),
    "preupload 403": (Fault("POST", PREUPLOAD, 403), "this token may not do that"),
    "object 403": (Fault("PUT", OBJECT, 403), "this token may not do that"),
    "commit 403": (Fault("POST", COMMIT, 403), "this token may not do that"),
    "commit 409": (Fault("POST", COMMIT, 409), "another change is under way"),
    "commit 412": (Fault("POST", COMMIT, 412), "it was changed while this was under way"),
    "commit 429": (Fault("POST", COMMIT, 429), "too many requests: wait some minutes"),
    "commit 500": (Fault("POST", COMMIT, 500), "the Hub has a fault (error 500)"),
    "commit dropped": (Fault("POST", COMMIT), "the connection broke: run it again"),
}


TRIED_AGAIN = ("create dropped", "object 403", "commit 412", "commit dropped")  # one for each stage


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_the_repository_is_as_it_was_and_a_second_try_completes_it(hub, folder, published, name):
    fault, said = FAULTS[name]
    hub.faults.append(fault)
    before = dict(published.refs)
    line = the_error(push(folder))
    assert said in line and line.startswith(f"Error: {REPO}: ") and line.endswith("; nothing was published")
    assert published.refs == before and published.files["README.md"].data == b"older"
    if name in TRIED_AGAIN:
        sent = uploads(hub)
        assert push(folder).exit_code == 0
        assert WEIGHTS in published.files and len(published.commits) == 3
        assert (uploads(hub) == sent) == name.startswith("commit")  # then the objects had arrived


def test_what_passes_by_itself_is_tried_again_without_a_word(hub, folder, published):
    hub.faults += [
        *(Fault("POST", PREUPLOAD, 500), Fault("POST", PREUPLOAD, 429)),
        *(Fault("PUT", OBJECT), Fault("PUT", OBJECT, 500)),
        Fault("POST", "info/lfs/objects/verify", 502),
    ]
    assert push(folder).exit_code == 0
    assert not any(fault.times for fault in hub.faults)
    assert WEIGHTS in published.files and len(published.commits) == 3


def test_a_lost_answer_is_no_second_commit(hub, folder, published):
    """The commit arrives, its answer does not: the next try finds everything there."""
    hub.faults.append(Fault("POST", COMMIT, after=True))
    line = the_error(push(folder))
    assert "the connection broke: run it again" in line and "nothing was published" not in line
    assert "there is a new commit, this one or another's: a second run tells" in line
    assert WEIGHTS in published.files and len(published.commits) == 3
    again = push(folder)
    assert again.exit_code == 0 and "Nothing to send" in again.stderr and len(published.commits) == 3
    assert again.stdout.strip().endswith(published.refs["main"])


def test_somebody_else_s_commit_is_not_overwritten(hub, folder, published, tmp_path):
    """It happens between the first request and the commit; the client's own objects are its clock."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text("theirs")
    original, hub.object = hub.object, hub.object

    def meanwhile(sha256):
        if published.commits[published.refs["main"]].title != "by somebody else":
            hub.put(REPO, tmp_path / "theirs")
        return original(sha256)

    hub.object = meanwhile
    assert "it was changed while this was under way" in the_error(push(folder))
    assert published.files["README.md"].data == b"theirs" and WEIGHTS not in published.files


def test_no_token_a_reader_s_and_somebody_else_s_namespace(hub, folder, monkeypatch):
    assert "this token may not do that" in the_error(push(folder, repo="others/model"))
    monkeypatch.setenv("HF_TOKEN", "reader-token")
    assert "this token may not do that" in the_error(push(folder))
    monkeypatch.setenv("HF_TOKEN", "unknown-token")
    assert "log in with `hf auth login`" in the_error(push(folder))
    monkeypatch.delenv("HF_TOKEN")
    assert "log in with `hf auth login`" in the_error(push(folder))
    assert hub.repos == {}


def test_names_that_are_none(hub, folder):
    assert "Repo id must" in the_error(push(folder, repo="some one/model"))
    assert hub.requests == []


def test_no_network_and_offline_mode(folder, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    connect(url, monkeypatch=monkeypatch, folder=tmp_path)
    assert f"{url} does not answer: check the network" in the_error(push(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is on: unset HF_HUB_OFFLINE" in the_error(push(folder))


# from memory


def test_a_pipeline_pushes_itself_through_the_same_checks(hub, pipe, tmp_path):
    with pytest.raises(ValueError, match="push_to_hub needs license="):
        pipe.push_to_hub(REPO)
    with pytest.raises(ValueError, match="README.md: no licence is named"):
        pipe.push_to_hub(REPO, card="---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n")
    assert hub.requests == []
    url = pipe.push_to_hub(REPO, "by hand", license="mit", private=True, token="someone-token")
    repo = hub.repos[REPO]
    assert url == f"{hub.url}/{REPO}/commit/{repo.refs['main']}"
    assert repo.private and len(repo.commits) == 2 and repo.commits[repo.refs["main"]].title == "by hand"
    assert b"license: mit" in repo.files["README.md"].data
    opened = UnCLIPPipeline.from_pretrained(REPO)
    torch.testing.assert_close(opened.prior.state_dict(), pipe.prior.state_dict())
