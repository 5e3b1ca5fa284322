"""Train, publish, open elsewhere: with our pipeline and with plain diffusers the picture is the same."""

import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hub.client import connect
from hub.server import serving
from torch.testing import assert_close

import unclip_hub
from unclip_hub import UnCLIPPipeline
from unclip_hub.cli import main
from unclip_hub.training.loop import TrainConfig, train
from unclip_hub.training.prior import PriorBatch, PriorTask


pytestmark = pytest.mark.hub

REPO = "someone/trained"
CAPTION = "two green cats at night"
ELSEWHERE = """
import sys

import torch
from diffusers import DiffusionPipeline

sys.modules["unclip_hub"] = None  # as if it were not installed
try:
    DiffusionPipeline.from_pretrained("{repo}", trust_remote_code=True)
except ImportError as error:
    print(error)
del sys.modules["unclip_hub"]
try:
    DiffusionPipeline.from_pretrained("{repo}")
except ValueError as error:
    print("trust_remote_code" in str(error))
assert not [name for name in sys.modules if name.startswith("unclip_hub")]


def picture(pipe):
    pipe.set_progress_bar_config(disable=True)
    pipe = pipe.to(torch.float64)
    return pipe("{caption}", generator=torch.Generator().manual_seed(3), output_type="pt").images


plain = DiffusionPipeline.from_pretrained("{repo}", trust_remote_code=True)
print(type(plain).__module__, type(plain.decoder).__module__)

from unclip_hub import UnCLIPPipeline

ours = UnCLIPPipeline.from_pretrained("{repo}")
torch.save([picture(plain), picture(ours)], sys.argv[1])
"""


@pytest.fixture
def trained(pipe, tmp_path):
    """The tiny model after a few steps of its prior's training."""
    made = UnCLIPPipeline(**copy.deepcopy(pipe.components))
    made.set_progress_bar_config(disable=True)
    caption = made.encode_text([CAPTION, "a house"])
    caption = caption.to(dtype=torch.float32)
    embeds = torch.randn(2, made.prior.config["embedding_dim"], generator=torch.Generator().manual_seed(0))
    task = PriorTask(made.prior.requires_grad_(True), empty=made.encode_text(""))
    config = TrainConfig(steps=5, lr=1e-2, warmup=1, log_every=5, precision="no")
    train(task, lambda step: PriorBatch(embeds, caption), config, output=tmp_path / "run")
    made.prior.eval().requires_grad_(False)
    assert (made.prior.prd_embedding - pipe.prior.prd_embedding).abs().max() > 0
    return made


def picture(pipe):
    exact = UnCLIPPipeline(**copy.deepcopy(pipe.components))
    exact.set_progress_bar_config(disable=True)
    made = exact.to(torch.float64)(CAPTION, generator=torch.Generator().manual_seed(3), output_type="pt")
    return made.images


def test_train_push_and_open_elsewhere(hub, trained, pipe, tmp_path):
    trained.save_pretrained(tmp_path / "trained")
    run = CliRunner().invoke
    assert run(main, ["card", str(tmp_path / "trained"), "--license", "apache-2.0"]).exit_code == 0
    result = run(main, ["push", str(tmp_path / "trained"), REPO])
    assert result.exit_code == 0, result.output

    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE.format(repo=REPO, caption=CAPTION))
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    env |= {"PYTHONPATH": str(Path(unclip_hub.__file__).parents[1]), "HF_HUB_DISABLE_TELEMETRY": "1"}
    arguments = [sys.executable, str(script), str(tmp_path / "pictures.pt")]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "this model needs unclip_hub: pip install unclip_hub",
        "True",
        "unclip_hub.pipelines.text_to_image unclip_hub.models.decoder",
    ]
    plain, ours = torch.load(tmp_path / "pictures.pt")
    assert_close(ours, picture(trained), atol=1e-8, rtol=0)
    assert_close(plain, picture(trained), atol=1e-8, rtol=0)
    assert (picture(pipe) - ours).abs().max() > 1e-6  # the untrained one's is another


def test_through_xet(folder, tmp_path, monkeypatch):
    """The real chunking, upload and download of hf_xet, whose storage is a folder: ``local://`` is undocumented."""
    hf_xet = pytest.importorskip("hf_xet")
    with serving(tmp_path / "hub", xet=f"local://{tmp_path / 'cas'}") as hub:
        connect(hub.url, monkeypatch=monkeypatch, folder=tmp_path, xet=True)
        for path in folder.rglob("*.safetensors"):
            (info,) = hf_xet.hash_files([str(path)])
            hub.xet_hashes[hashlib.sha256(path.read_bytes()).hexdigest()] = info.hash
        result = CliRunner().invoke(main, ["push", str(folder), REPO])
        assert result.exit_code == 0, result.output
        assert not [request for request in hub.requests if request.startswith("PUT ")]
        assert len(hub.repos[REPO].commits) == 2
        assert any("xet-write-token" in request for request in hub.requests)
        result = CliRunner().invoke(main, ["pull", REPO, "--to", str(tmp_path / "back")])
        assert result.exit_code == 0, result.output
        assert any("xet-read-token" in request for request in hub.requests)
        for path in folder.rglob("*.safetensors"):
            assert (tmp_path / "back" / path.relative_to(folder)).read_bytes() == path.read_bytes()
