"""A folder converted from DALLE2-pytorch's files is one that the pipelines open."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from convert_dalle2_pytorch import main
from safetensors.torch import load_file
from torch.testing import assert_close

from unclip_hub import Conditioning, UnCLIPPipeline


GOLDEN = Path(__file__).parents[1] / "golden" / "dalle2_pytorch" / "v1_15_6"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dalle2") / "converted"
    assert CliRunner().invoke(main, [str(GOLDEN), "--output", str(folder)]).exit_code == 0
    made = UnCLIPPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def captions():
    given = load_file(GOLDEN / "inputs.safetensors")
    states = given["text_encodings"]
    return Conditioning(given["text_embed"], states, (states != 0).any(dim=-1))


def generator():
    return torch.Generator().manual_seed(7)


@torch.no_grad()
def test_the_verbs(pipe):
    cond = captions()
    null = pipe.prior.null(cond)
    embeds = [
        pipe.sample_prior(cond, away, num_inference_steps=8, guidance_scale=scale, generator=generator())
        for away, scale in ((None, 1.0), (null, 1.0), (null, 2.0))
    ]
    assert_close(embeds[0], embeds[1])
    assert (embeds[0] - embeds[2]).abs().max() > 1e-3
    with_image = cond.with_image(embeds[0])
    small = [
        pipe.decode(with_image, null, num_inference_steps=6, guidance_scale=scale, generator=generator())
        for scale in (1.0, 2.0)
    ]
    assert small[0].shape == (2, 3, 16, 16) and (small[0] - small[1]).abs().max() > 1e-3
    assert pipe.upsample(small[0], num_inference_steps=5, generator=generator()).shape == (2, 3, 32, 32)


def test_a_call_samples_as_its_files_say(pipe):
    made = pipe(prompt_embeds=captions(), output_type="pt", generator=generator())
    assert made.images.shape == (2, 3, 32, 32) and made.images.std() > 0.01
    again = pipe(prompt_embeds=captions(), output_type="pt", generator=generator())
    assert_close(made.images, again.images, rtol=0, atol=0)
    assert pipe.config["sampling_defaults"]["decoder_num_inference_steps"] == 6
