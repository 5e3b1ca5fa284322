"""A Hub for every test, and a tiny model that is fit to be published."""

import shutil

import pytest
from hub.client import connect
from hub.server import serving
from pipelines import tiny

from unclip_hub import UnCLIPPipeline
from unclip_hub.hub.card import write_card
from unclip_hub.hub.card_facts import Facts
from unclip_hub.hub.inspect import inspect


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "hub") as running:
        connect(running.url, monkeypatch=monkeypatch, folder=tmp_path)
        yield running


@pytest.fixture(scope="session")
def pipe():
    """With an own U-Net layout (patches, coordinates), which diffusers' class of that name does not have."""
    made = UnCLIPPipeline(
        **tiny.components(karlo=False),
        sampling_defaults={
            "prior_num_inference_steps": 2,
            "decoder_num_inference_steps": 2,
            "super_res_num_inference_steps": 2,
            "decoder_guidance_scale": 3.0,
        },
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text(write_card(Facts(license="apache-2.0"), checkpoint=inspect(folder)))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to change."""
    return shutil.copytree(saved, tmp_path / "model")
