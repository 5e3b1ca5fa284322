"""Pictures against captions by the checkpoint's own CLIP."""

from pathlib import Path

import pytest
import torch
from pipelines import tiny
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import Scene, Thing
from unclip_hub.data.scenes import render
from unclip_hub.data.sprites import build_bank
from unclip_hub.pipelines.scoring import score


CAPTIONS = ["a house", "two green cats at night"]


@pytest.fixture(scope="module")
def pipe():
    return tiny.in_float64(UnCLIPPipeline(**tiny.components(karlo=False)))


def test_cosines_of_every_picture_with_every_caption(pipe):
    pictures = [torch.rand(3, 20, 16), torch.rand(3, 9, 30), torch.rand(3, 16, 16)]
    made = score(pipe, pictures, captions=CAPTIONS)
    images, texts = pipe.encode_image(pictures), pipe.encode_text(CAPTIONS).text_embed
    assert_close(made.similarities, cosine_similarity(images[:, None], texts[None], dim=-1).float())
    assert_close(made.probabilities, (100 * made.similarities).softmax(dim=1))
    softer = score(pipe, pictures, captions=CAPTIONS, logit_scale=2)
    assert_close(softer.probabilities, (2 * made.similarities).softmax(dim=1))
    assert made.similarities.shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": []}, "captions must be a list of at least one string, got \\[\\]"),
        ({"captions": ["a"], "logit_scale": 0}, "logit_scale must be a finite number above 0, got 0"),
        ({"captions": ["a"], "logit_scale": float("nan")}, "logit_scale must be"),
    ],
)
def test_nonsense_is_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        score(pipe, torch.zeros(3, 8, 8), **options)


def test_without_an_image_encoder_it_says_so():
    with pytest.raises(ValueError, match="needs image_encoder and feature_extractor"):
        score(UnCLIPPipeline(**tiny.components()), torch.zeros(3, 8, 8), captions=CAPTIONS)


@pytest.mark.slow
@pytest.mark.skipif(not Path(BUNDLED_MODEL, "model_index.json").exists(), reason="no bundled model in this checkout")
def test_the_bundled_model_names_what_it_sees():
    bank = build_bank(["star", "circle", "heart"])
    things = [("star", "red"), ("circle", "blue"), ("heart", "green")]
    scenes = [Scene("white", (Thing(noun, colour, position="centre"),)) for noun, colour in things]
    pipe = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
    captions = [f"a {colour} {noun} on a white background" for noun, colour in things]
    made = score(pipe, [render(scene, size=256, bank=bank) for scene in scenes], captions=captions)
    assert made.probabilities.argmax(dim=1).tolist() == [0, 1, 2]
