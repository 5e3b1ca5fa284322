"""The dVAE's own numbers, from its own pickled modules."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from convert_dvae import config, convert, main
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from unclip_hub.models.dvae import DVAE, map_pixels
from unclip_hub.models.expected import expected as expected_tensors


pytestmark = pytest.mark.golden
FILES = Path(__file__).parents[1] / "golden" / "dvae"
GIVEN, EXPECTED = (load_file(FILES / f"{name}.safetensors") for name in ("inputs", "expected_outputs"))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("dvae") / "converted"
    result = run(FILES, "--output", made)
    assert result.exit_code == 0, result.output
    return made


@torch.no_grad()
def test_the_dvae(folder):
    dvae = DVAE.from_pretrained(folder, subfolder="dvae")
    images = GIVEN["image"] * 2 - 1
    assert_close(map_pixels(images), EXPECTED["mapped"], rtol=0, atol=1e-6)
    assert_close(dvae.encode_logits(images), EXPECTED["z_logits"], rtol=0, atol=1e-4)
    assert_close(dvae.encode(images), EXPECTED["codes"])
    one_hot = nn.functional.one_hot(EXPECTED["codes"], 64).movedim(-1, 1).float()
    assert_close(dvae.decode_statistics(one_hot), EXPECTED["x_stats"], rtol=0, atol=1e-5)
    soft = GIVEN["soft_logits"].softmax(dim=1)
    assert_close(dvae.decode_statistics(soft), EXPECTED["x_stats_soft"], rtol=0, atol=1e-5)
    assert_close((dvae.decode(EXPECTED["codes"]) + 1) / 2, EXPECTED["x_rec"], rtol=0, atol=1e-5)


def test_the_published_sizes():
    shapes = json.loads((FILES / "real_size.json").read_text())
    halves = [convert({key: torch.empty(shape, device="meta") for key, shape in shapes[h].items()}) for h in shapes]
    whole = {key: tensor for half in halves for key, tensor in half["dvae"].items()}
    wanted, published = expected_tensors(DVAE, {})
    assert {key: tuple(tensor.shape) for key, tensor in whole.items()} == wanted
    assert {key: published[key] for key in config(whole)} == config(whole)


def test_every_key_has_a_fate(folder):
    files = json.loads((folder / "conversion_report.json").read_text())["files"]
    shapes = json.loads((FILES / "real_size.json").read_text())  # as deep as the tiny one
    assert {name: set(entry["keys"]) for name, entry in files.items()} == {f"{h}.pkl": set(shapes[h]) for h in shapes}


class Conv2d(nn.Module):
    """With the names of parameters that OpenAI's class has."""

    def __init__(self, before, after, kernel):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(after, before, kernel, kernel)), nn.Parameter(torch.randn(after))


class Half(nn.Module):
    def __init__(self, widths, ends, kernels, depth):
        super().__init__()
        (first, kernel), last = ends
        self.blocks = nn.Sequential()
        self.blocks.add_module("input", Conv2d(first, widths[0], kernel))
        for group in range(1, 5):
            made = nn.Sequential()
            for block in range(1, depth + 1):
                before, after = widths[group - (block == 1)], widths[group]
                one = nn.Module()
                one.id_path = Conv2d(before, after, 1) if before != after else nn.Identity()
                one.res_path = nn.Sequential()
                inner = [before, *[after // 4] * 3, after]
                for i, size in enumerate(kernels):
                    one.res_path.add_module(f"conv_{i + 1}", Conv2d(inner[i], inner[i + 1], size))
                made.add_module(f"block_{block}", one)
            self.blocks.add_module(f"group_{group}", made)
        self.blocks.add_module("output", nn.Sequential())
        self.blocks.output.add_module("conv", Conv2d(widths[-1], last, 1))


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_other_sizes_in_both_containers(tmp_path, monkeypatch, zipped):
    depth, halves = 3, {}
    with monkeypatch.context() as patch:  # the package exists only while the files are written
        for name in ("dall_e", "dall_e.utils", "dall_e.encoder"):
            patch.setitem(sys.modules, name, ModuleType(name))
        for cls, name in ((Conv2d, "dall_e.utils"), (Half, "dall_e.encoder")):
            patch.setattr(cls, "__module__", name)
            patch.setattr(sys.modules[name], cls.__name__, cls, raising=False)
        halves["encoder"] = Half([8, 8, 16, 32, 64], ((3, 7), 11), (3, 3, 3, 1), depth)
        halves["decoder"] = Half([12, 64, 32, 16, 8], ((11, 1), 6), (1, 3, 3, 3), depth)
        for name, half in halves.items():
            torch.save(half, tmp_path / f"{name}.pkl", _use_new_zipfile_serialization=zipped)
    result = run(tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    dvae = DVAE.from_pretrained(tmp_path / "out", subfolder="dvae")
    sizes = {"vocab_size": 11, "channels": 8, "decoder_in_channels": 12, "layers_per_group": 3}
    assert {key: dvae.config[key] for key in sizes} == sizes
    for name, half in halves.items():
        ours = {key: tensor for key, tensor in dvae.state_dict().items() if key.startswith(name)}
        theirs = half.state_dict()
        assert len(ours) == len(theirs)
        group = theirs["blocks.group_3.block_2.res_path.conv_4.w"]
        assert_close(ours[f"{name}.groups.2.1.convs.3.weight"], group, rtol=0, atol=0)
        assert_close(ours[f"{name}.groups.1.0.conv_shortcut.bias"], theirs["blocks.group_2.block_1.id_path.b"])


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_is_no_dvae_is_refused(tmp_path):
    out, source = tmp_path / "out", tmp_path / "source"
    source.mkdir()

    def refused():
        return run(source, "--output", out).output

    shutil.copy(FILES / "encoder.pkl", source / "encoder.pkl")
    assert "no file decoder.pkl" in refused()
    shutil.copy(FILES / "encoder.pkl", source / "decoder.pkl")
    assert "decoder.pkl must be the decoder, it is the other half" in refused()
    torch.save({"blocks.input.w": torch.zeros(8, 3, 7, 7)}, source / "decoder.pkl")
    assert "decoder.pkl must hold a module of dall_e, got dict" in refused()
    whole = (FILES / "decoder.pkl").read_bytes()
    (source / "decoder.pkl").write_bytes(whole[: len(whole) // 2])
    assert "decoder.pkl is cut short" in refused()
    torch.save(Exploit(tmp_path / "ran"), source / "decoder.pkl")
    assert "it was not opened and nothing ran" in refused()
    assert not (tmp_path / "ran").exists() and not out.exists()


@pytest.mark.parametrize(
    "state, message",
    [
        ({"blocks.input.w": torch.zeros(8, 3, 5, 5)}, "it has no blocks.input.w with 7 x 7 or 1 x 1 pixels"),
        ({"blocks.input.w": torch.zeros(8, 3, 7, 7)}, "it has no blocks.input.b"),
        ({"weight": torch.zeros(8)}, "it has no blocks.input.w"),
    ],
)
def test_states_of_other_networks_are_refused(state, message):
    with pytest.raises(ValueError, match=f"this is not a half of OpenAI's dVAE: {message}"):
        convert(state)
