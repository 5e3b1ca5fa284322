"""Foreign files give tensors and inert data, or a sentence that says what is wrong with them."""

import io
import os
import pickle
import random
import shutil
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from containers import Stub, module_state, read_container, read_state
from safetensors.torch import save_file
from torch.testing import assert_close

from unclip_hub.hub.weights import BrokenFile


GOLDEN = Path(__file__).parents[1] / "golden"
both_formats = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])


def save(value, path, *, legacy=False):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def tensors():
    base = torch.arange(60.0).reshape(5, 12)
    return OrderedDict(
        {
            "plain": base,
            "view of the same storage": base[1:3, ::2],
            "transposed": base.T,
            "parameter": torch.nn.Parameter(torch.randn(3, 4)),
            "scalar": torch.tensor(2.5, dtype=torch.float64),
            "empty": torch.zeros(0, 4),
            "half": torch.randn(7).half(),
            "brain": torch.randn(7).bfloat16(),
            "long": torch.arange(5),
            "bool": torch.tensor([True, False, True]),
            "byte": torch.arange(9, dtype=torch.uint8),
        }
    )


def assert_same(got, wanted):
    assert list(got) == list(wanted)
    for key, value in wanted.items():
        assert got[key].dtype == value.dtype
        assert_close(got[key], value.detach(), rtol=0, atol=0)


# what can be read


@both_formats
def test_a_state_dict_is_read_as_torch_reads_it(tmp_path, legacy):
    state = tensors()
    assert_same(read_state(save(state, tmp_path / "a.pt", legacy=legacy)), state)
    assert_same(read_state(save({"state_dict": state, "step": 3}, tmp_path / "b.ckpt", legacy=legacy)), state)
    assert_same(read_state(save({"model": state}, tmp_path / "c.pth", legacy=legacy), under=("ema", "model")), state)


def test_safetensors(tmp_path):
    state = {"a": torch.randn(2, 3), "b": torch.arange(4).half()}
    save_file(state, tmp_path / "a.safetensors")
    assert_same(read_state(tmp_path / "a.safetensors"), state)


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning")
def test_a_torchscript_archive_is_read_without_its_code():
    path = GOLDEN / "clip_openai" / "model.pt"
    wanted = torch.jit.load(path).state_dict()
    got = read_state(path)
    assert_same({key: got[key] for key in wanted}, wanted)
    assert set(got) == set(wanted)


@both_formats
def test_storages_are_shared_and_writing_to_them_leaves_the_file_alone(tmp_path, legacy):
    state = tensors()
    path = save(state, tmp_path / "a.pt", legacy=legacy)
    before = path.read_bytes()
    got = read_state(path)
    got["plain"][1, 0] = 99
    assert got["view of the same storage"][0, 0] == 99
    assert path.read_bytes() == before


class Version:
    """A class of some library, pickled with the weights."""

    def __init__(self, text):
        self.text, self.name = text, "a name of its own"


@both_formats
def test_objects_of_listed_classes_become_stubs(tmp_path, legacy):
    counts = defaultdict(int, a=1)
    value = {"version": Version("1.2"), "weights": tensors(), "counts": counts, "betas": (0.9, {1, 2})}
    path = save(value, tmp_path / "trainer.pt", legacy=legacy)
    name = f"{Version.__module__}.Version"
    with pytest.raises(BrokenFile, match=rf"names {name}, which is no tensor or plain data"):
        read_container(path)
    got = read_container(path, stubs=[name])
    assert isinstance(got["version"], Stub) and not isinstance(got["version"], Version)
    assert type(got["version"]).name == name and got["version"].text == "1.2"
    assert_same(got["weights"], value["weights"])
    assert (got["counts"], got["betas"]) == ({"a": 1}, (0.9, {1, 2}))


@both_formats
def test_a_pickled_module_gives_its_state(tmp_path, legacy):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    got = read_container(save(module, tmp_path / "module.pkl", legacy=legacy), stubs=["torch.nn.modules.*"])
    assert_same(dict(sorted(module_state(got).items())), dict(sorted(module.state_dict().items())))


# what is refused


class Payload:
    """Runs a shell command where a file is unpickled without care."""

    def __init__(self, marker, *, kind):
        self.marker, self.kind = marker, kind

    def __reduce__(self):
        if self.kind == "os.system":
            return os.system, (f"touch {self.marker}",)
        if self.kind == "builtins.exec":
            return exec, (f"open({str(self.marker)!r}, 'w').close()",)
        if self.kind == "builtins.getattr":
            return getattr, ("text", "upper")
        return torch.serialization.load, (str(self.marker),)


@both_formats
@pytest.mark.parametrize("kind", ["os.system", "builtins.exec", "builtins.getattr", "torch.serialization.load"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, kind, legacy):
    marker = tmp_path / "ran"
    value = {"state_dict": {"w": torch.zeros(2)}, "callbacks": Payload(marker, kind=kind)}
    path = save(value, tmp_path / "model.ckpt", legacy=legacy)
    with pytest.raises(BrokenFile, match=r"model\.ckpt names .*which is no tensor or plain data; .* nothing ran"):
        read_state(path)
    with pytest.raises(BrokenFile):  # nor under a list that is as generous as it can be for its neighbours
        read_container(path, stubs=["packaging.*", "torch.optim.*", "torch.nn.*"])
    assert not marker.exists()


def test_even_listed_names_are_never_called(tmp_path):
    marker = tmp_path / "ran"
    path = save({"a": Payload(marker, kind="os.system")}, tmp_path / "model.pt")
    got = read_container(path, stubs=["*"])
    assert got["a"].args == (f"touch {marker}",) and not marker.exists()


def test_a_pickle_cannot_change_what_reads_it(tmp_path):
    def archive(content):
        with zipfile.ZipFile(tmp_path / "model.pt", "w") as made:
            made.writestr("model/data.pkl", content)
        return tmp_path / "model.pt"

    poisoned = b"\x80\x02ctorch\nSize\n}X\x04\x00\x00\x00evilK\x01sb."  # sets an attribute of torch.Size's stand-in
    assert read_container(archive(poisoned)).evil == 1
    assert not hasattr(read_container(archive(b"\x80\x02ctorch\nSize\n.")), "evil")


def test_a_module_within_itself(tmp_path):
    module = torch.nn.Module()
    module.__dict__["itself"] = module
    got = read_container(save(module, tmp_path / "module.pkl"), stubs=["torch.nn.modules.*"])
    with pytest.raises(ValueError, match="torch.nn.modules.module.Module is a module within itself"):
        module_state(got)


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BrokenFile, match="a.pkl is a pickle, but not one of torch's"):
        read_container(tmp_path / "a.pkl")


def test_tensors_outside_of_their_storage_are_refused(tmp_path):
    good = save({"a": torch.zeros(4, 4)}, tmp_path / "good.pt")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            if entry.endswith("data.pkl"):
                content = content.replace(b"K\x04K\x04\x86", b"K\x7fK\x04\x86", 1)
            new.writestr(entry, content)
    with pytest.raises(BrokenFile, match=r"bad.pt is damaged.*\(127, 4\) lies outside its 16 elements"):
        read_state(tmp_path / "bad.pt")


# what is wrong with a file


@both_formats
def test_every_cut_is_named(tmp_path, legacy):
    whole = save(tensors(), tmp_path / "whole.pt", legacy=legacy).read_bytes()
    cut = tmp_path / "cut.pt"
    for length in range(1, len(whole), max(1, len(whole) // 60)):
        cut.write_bytes(whole[:length])
        with pytest.raises(BrokenFile, match="cut.pt is (cut short|damaged|no file of torch's)"):
            read_state(cut)


def test_a_cut_after_the_pickle_says_how_much_is_missing(tmp_path):
    whole = save(tensors(), tmp_path / "whole.pt", legacy=True).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-10])
    with pytest.raises(BrokenFile, match=f"cut short: it needs {len(whole)} bytes, it has {len(whole) - 10}"):
        read_state(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.ckpt", b"", "a.ckpt is empty"),
        ("a.ckpt", b"<!DOCTYPE html><html>Sign in</html>", "a.ckpt is a web page or XML"),
        ("a.ckpt", b'{"error": "not found"}', "a.ckpt is JSON, not a checkpoint"),
        ("a.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "a Git LFS pointer"),
        ("a.ckpt", b"Not Found", r"a.ckpt is no file of torch's \(it begins with text\)"),
        ("a.ckpt", b"\x00" * 4096, "a.ckpt is no file of torch's"),
        ("a.safetensors", b"", "a.safetensors is cut short within its header"),
        ("a.safetensors", b"<!DOCTYPE html><html></html>", "a.safetensors is cut short within its header, or is not"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenFile, match=what) as raised:
        read_state(tmp_path / name)
    assert raised.value.remedy


def test_renamed_files(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "a.ckpt")
    with pytest.raises(BrokenFile, match="a.ckpt is safetensors under another name"):
        read_state(tmp_path / "a.ckpt")
    save({"a": torch.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(BrokenFile, match="b.safetensors"):
        read_state(tmp_path / "b.safetensors")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(BrokenFile, match="c.pt is a zip archive, but not one of torch's"):
        read_state(tmp_path / "c.pt")


def test_missing_files_folders_and_other_contents(tmp_path):
    with pytest.raises(BrokenFile, match="a.pt cannot be read: No such file"):
        read_state(tmp_path / "a.pt")
    with pytest.raises(BrokenFile, match="is a folder"):
        read_state(tmp_path)
    with pytest.raises(BrokenFile, match="must hold key → tensor, got int at 'epoch'"):
        read_state(save({"epoch": 3, "w": torch.zeros(1)}, tmp_path / "b.pt"))
    with pytest.raises(BrokenFile, match="must hold a state dict, got Tensor"):
        read_state(save(torch.zeros(3), tmp_path / "c.pt"))
    with pytest.raises(BrokenFile, match="an empty state dict"):
        read_state(save({"state_dict": {}, "x": 1}, tmp_path / "d.pt"))


def test_a_storage_that_is_missing_or_short(tmp_path):
    good = save({"a": torch.zeros(4, 4)}, tmp_path / "good.pt")
    for change, what in ((None, "data/0 must have 64 bytes, it is missing"), (b"123", "64 bytes, it is 3 bytes")):
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
            for entry in old.namelist():
                content = change if entry.endswith("data/0") else old.read(entry)
                if content is not None:
                    new.writestr(entry, content)
        with pytest.raises(BrokenFile, match=what):
            read_state(tmp_path / "bad.pt")


def test_a_download_with_a_hole(tmp_path):
    whole = bytearray(save({"a": torch.ones(4000), "b": torch.ones(4000)}, tmp_path / "whole.pt").read_bytes())
    whole[2000:20000] = bytes(18000)
    (tmp_path / "hole.pt").write_bytes(whole)
    with pytest.raises(BrokenFile, match="hole.pt has a hole: data/1 is not where the archive says"):
        read_state(tmp_path / "hole.pt")


@both_formats
def test_damage_anywhere_in_the_pickle_is_a_sentence(tmp_path, legacy):
    whole = bytearray(save({"state_dict": tensors(), "step": 3}, tmp_path / "whole.pt", legacy=legacy).read_bytes())
    end = len(whole) // 2 if legacy else zipfile.ZipFile(io.BytesIO(whole)).infolist()[0].file_size + 100
    chance, bad = random.Random(0), tmp_path / "bad.pt"
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(end)] = chance.randrange(256)
        bad.write_bytes(damaged)
        try:
            read_state(bad)
        except BrokenFile:
            refused += 1
    assert refused > 30
    shutil.rmtree(tmp_path)
