"""Best of N: the prior's samples by the caption's embedding, finished pictures by CLIP."""

import pytest
import torch
from pipelines import tiny
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from unclip_hub import UnCLIPPipeline


STEPS = {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 1, "super_res_num_inference_steps": 1}
CAPTIONS = ["a house", "two green cats at night"]


@pytest.fixture(scope="module")
def pipe():
    return tiny.in_float64(UnCLIPPipeline(**tiny.components(karlo=False)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, prompt="a red circle", *, seed=0, **options):
    return pipe(prompt, **STEPS | {"generator": seeded(seed), "output_type": "pt"} | options)


def test_the_priors_sample_nearest_to_the_caption_is_decoded(pipe):
    cond, null = pipe.encode_text(CAPTIONS), pipe.encode_text("")
    drawn = pipe.sample_prior(
        cond.repeat(3), null, num_inference_steps=2, guidance_scale=4.0, generator=seeded()
    ).view(2, 3, -1)
    near = cosine_similarity(drawn, cond.text_embed[:, None], dim=-1)
    made = run(pipe, CAPTIONS, num_prior_samples=3)
    assert_close(made.scores, near.max(dim=1).values.float())
    assert_close(made.image_embeds, drawn[torch.arange(2), near.argmax(dim=1)])
    assert run(pipe, CAPTIONS).scores is None


def test_a_generator_per_picture_draws_all_its_samples(pipe):
    both = run(pipe, CAPTIONS, num_prior_samples=2, generator=[seeded(0), seeded(1)], negative_prompt=["", "a house"])
    second = run(pipe, CAPTIONS[1], num_prior_samples=2, generator=[seeded(1)], negative_prompt="a house")
    assert_close(both.images[1:], second.images, atol=1e-8, rtol=0)
    assert_close(both.scores[1:], second.scores)


def test_a_checkpoint_may_ask_for_the_papers_two():
    parts = tiny.components(karlo=False)
    pipe = tiny.in_float64(UnCLIPPipeline(**parts))
    asking = UnCLIPPipeline(**pipe.components | {"sampling_defaults": {"num_prior_samples": 2}})
    asking.set_progress_bar_config(disable=True)
    assert torch.equal(run(asking).images, run(pipe, num_prior_samples=2).images)
    assert run(asking, num_prior_samples=1).scores is None
    given = run(asking, prior_latents=torch.randn(1, tiny.WIDTH, generator=seeded(3)))  # leave nothing to draw
    assert given.scores is None


def test_clip_chooses_the_best_pictures_and_says_how_good(pipe):
    generators = [seeded(i) for i in range(6)]
    everything = run(pipe, CAPTIONS, num_images_per_prompt=3, generator=generators)
    embeds = pipe.encode_image(everything.images)
    near = cosine_similarity(embeds, pipe.encode_text(CAPTIONS).text_embed.repeat_interleave(3, 0)).view(2, 3)
    scores, order = near.sort(dim=1, descending=True)
    generators = [seeded(i) for i in range(6)]
    made = run(pipe, CAPTIONS, num_images_per_prompt=2, num_candidates=3, generator=generators)
    rows = (order[:, :2] + torch.tensor([[0], [3]])).flatten()
    assert_close(made.scores, scores[:, :2].flatten().float(), atol=1e-5, rtol=0)
    assert_close(made.images, everything.images[rows])
    assert_close(made.small_images, everything.small_images[rows])
    assert_close(made.image_embeds, everything.image_embeds[rows])


def test_pictures_of_given_embeddings_are_ranked_too(pipe):
    embeds = torch.randn(2, tiny.WIDTH, generator=seeded(4)).double()
    made = run(pipe, image_embeds=embeds, num_candidates=2)
    assert made.scores.shape == (1,) and len(made.images) == 1
    assert any(torch.equal(made.image_embeds[0], row) for row in embeds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prior_samples": 0}, "num_prior_samples must be a whole number of at least 1, got 0"),
        (
            {"num_prior_samples": 2, "prior_latents": torch.zeros(1, tiny.WIDTH)},
            "nothing to choose from beside prior_",
        ),
        ({"num_prior_samples": 2, "image_embeds": torch.zeros(1, tiny.WIDTH)}, "nothing to choose from beside image_"),
        ({"num_candidates": 0}, "num_candidates must be a whole number of at least 1, got 0"),
        (
            {"num_candidates": 2, "num_images_per_prompt": 3},
            "num_candidates must be num_images_per_prompt = 3 or",
        ),
        ({"num_candidates": 2, "small_images": torch.zeros(2, 3, 16, 16)}, "num_candidates needs pictures made from"),
        ({"num_candidates": 2, "generator": [seeded()]}, "a list of 2, one per picture, got 1"),
    ],
)
def test_nonsense_is_refused_before_anything_is_computed(pipe, options, message, monkeypatch):
    monkeypatch.setattr(type(pipe), "encode_text", lambda *_: pytest.fail("computed before checking"))
    with pytest.raises(ValueError, match=message):
        run(pipe, **options)


def test_candidates_need_an_image_encoder():
    pipe = UnCLIPPipeline(**tiny.components())
    with pytest.raises(ValueError, match="num_candidates needs image_encoder and feature_extractor"):
        run(pipe, num_candidates=2)
