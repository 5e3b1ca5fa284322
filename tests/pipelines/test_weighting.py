"""Weighted words: parsed only when asked, 1 changes nothing, more leads towards the word and less away."""

import pytest
import torch
from PIL import Image
from pipelines import tiny
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from unclip_hub import (
    UnCLIPImageToImagePipeline,
    UnCLIPImageVariationPipeline,
    UnCLIPInpaintPipeline,
    UnCLIPInterpolationPipeline,
    UnCLIPPipeline,
    UnCLIPTextDiffPipeline,
)
from unclip_hub.pipelines.captions import parse_weights, token_weights


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def pipe(request):
    return tiny.in_float64(UnCLIPPipeline(**tiny.components(karlo=request.param == "karlo")))


@pytest.mark.parametrize(
    ("caption", "plain", "spans"),
    [
        ("a (red:1.4) circle", "a red circle", [(2, 5, 1.4)]),
        ("(a house:0) (at night) (cats:2)", "a house (at night) cats", [(0, 7, 0.0), (19, 23, 2.0)]),
        ("a house :) (with: a", "a house :) (with: a", []),
        ("  (&amp;:1.5) ", "&", [(0, 1, 1.5)]),
    ],
)
def test_the_form(caption, plain, spans):
    assert parse_weights(caption) == (plain, spans)


@pytest.mark.parametrize(
    "caption", ["a (red:x)", "(red:-1)", "(red:inf)", "(red:nan)", "(red:)", "((red:1.2) star:2)"]
)
def test_what_looks_like_the_form_and_is_not(pipe, caption):
    with pytest.raises(ValueError, match="weighted"):
        pipe.encode_text(caption, weighted=True)


def test_every_token_of_a_word_gets_its_weight(pipe):
    caption, words = "two green cats at night", [(4, 14, 1.5)]
    weights = token_weights(pipe.tokenizer, [caption], [words], length=tiny.CONTEXT)[0]
    ids = pipe.tokenizer(caption).input_ids
    inside = [token for token, weight in zip(ids, weights.tolist(), strict=False) if weight != 1]
    assert inside == pipe.tokenizer("green cats").input_ids[1:-1]
    assert set(weights.tolist()) == {1.0, 1.5}


def test_brackets_are_text_unless_asked_for(pipe):
    bracketed, plain = pipe.encode_text("a (red:1.4) circle"), pipe.encode_text("a red circle")
    assert (bracketed.text_embed - plain.text_embed).abs().max() > 1e-4
    for caption in ("a (red) circle", "a red circle", "a (red:1) circle"):
        expected = pipe.encode_text(caption.replace(":1", "").replace("(red)", "red" if ":" in caption else "(red)"))
        made = pipe.encode_text(caption, weighted=True)
        assert_close(vars(made), vars(expected))


def test_zero_is_the_caption_without_the_word_and_more_leads_away_from_that(pipe):
    def embed(weight):
        return pipe.encode_text(f"a (red:{weight}) circle", weighted=True).text_embed

    full, without = pipe.encode_text("a red circle").text_embed, pipe.encode_text("a  circle").text_embed
    assert_close(cosine_similarity(embed(0), without), torch.ones(1).double())
    near = [cosine_similarity(embed(weight), without).item() for weight in (0, 0.5, 1, 1.5, 3)]
    assert near == sorted(near, reverse=True) and near[0] > near[-1] + 1e-3
    for weight in (0, 0.5, 3):
        assert_close(embed(weight).norm(), full.norm())


def test_states_move_at_the_words_tokens_alone(pipe):
    plain, empty = pipe.encode_text("a red circle"), pipe.encode_text("")
    made = pipe.encode_text("a (red:0) circle", weighted=True).text_states
    moved = (made - plain.text_states).abs().amax(dim=(0, 2)) > 1e-9
    assert 1 <= moved.sum() < tiny.CONTEXT - 2
    assert_close(made[:, moved], empty.text_states[:, moved])


def test_each_caption_of_a_batch_has_its_own_weights(pipe):
    both = pipe.encode_text(["a (red:1.4) circle", "a house"], weighted=True)
    assert_close(both.text_embed[1:], pipe.encode_text("a house").text_embed)
    assert_close(both.text_embed[:1], pipe.encode_text("a (red:1.4) circle", weighted=True).text_embed)


def test_pipelines_take_it_as_prompt_embeds(pipe):
    few = {f"{stage}_num_inference_steps": 1 for stage in ("prior", "decoder", "super_res")} | {"output_type": "pt"}

    def run(caption):
        embeds = pipe.encode_text(caption, weighted=True)
        return pipe(prompt_embeds=embeds, generator=torch.Generator().manual_seed(0), **few).images

    plain = pipe("a red circle", generator=torch.Generator().manual_seed(0), **few).images
    assert torch.equal(run("a red circle"), plain)
    assert (run("a (red:2) circle") - plain).abs().max() > 1e-4


FEW = {"decoder_num_inference_steps": 1, "super_res_num_inference_steps": 1, "output_type": "pt"}
PRIOR = {"prior_num_inference_steps": 1}
CALLS = {
    "text to image": (UnCLIPPipeline, lambda caption: {"prompt": caption} | PRIOR),
    "image to image": (UnCLIPImageToImagePipeline, lambda caption: {"image": GREY, "prompt": caption} | PRIOR),
    "inpaint": (UnCLIPInpaintPipeline, lambda caption: {"image": GREY, "mask": WHITE, "prompt": caption} | PRIOR),
    "variation": (UnCLIPImageVariationPipeline, lambda caption: {"image": GREY, "negative_prompt": caption}),
    "interpolation": (UnCLIPInterpolationPipeline, lambda caption: {"sources": [caption, GREY]} | PRIOR),
    "text difference": (UnCLIPTextDiffPipeline, lambda caption: {"image": GREY, "target_caption": caption}),
}
GREY, WHITE = Image.new("RGB", (16, 16), (90, 120, 150)), Image.new("L", (16, 16), 255)


@pytest.mark.parametrize("task", CALLS)
def test_every_call_reads_weights_when_asked(task):
    cls, arguments = CALLS[task]
    pipe = tiny.in_float64(cls(**tiny.components(karlo=False)))

    def pictures(caption, **options):
        made = pipe(**arguments(caption), **FEW, generator=torch.Generator().manual_seed(0), **options)
        return made.small_images

    plain = pictures("a red circle")
    assert_close(pictures("a red circle", weighted=True), plain)
    assert_close(pictures("a (red:1) circle", weighted=True), plain)
    assert (pictures("a (red:3) circle", weighted=True) - plain).abs().max() > 1e-5
    assert (pictures("a (red:3) circle") - pictures("a (red:3) circle", weighted=True)).abs().max() > 1e-5
