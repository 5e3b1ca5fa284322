"""The upsampler alone, on pictures of any size."""

import pytest
import torch
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub.pipelines.upscale import UnCLIPUpscalePipeline


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def pipe(request):
    return tiny.in_float64(UnCLIPUpscalePipeline(**tiny.components(karlo=request.param == "karlo")))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height, width):
    return torch.rand(3, height, width, generator=seeded(9), dtype=torch.float64)


def run(pipe, image, *, seed=0, **options):
    return pipe(
        image, super_res_num_inference_steps=1, **{"generator": seeded(seed), "output_type": "pt"} | options
    ).images


def test_at_the_models_own_size_it_is_the_verb(pipe):
    image = picture(16, 16)
    expected = pipe.upsample(image[None] * 2 - 1, num_inference_steps=1, generator=seeded())
    assert_close(run(pipe, image), (expected + 1) / 2)


@pytest.mark.parametrize("size", [(1, 1), (18, 20)])
def test_any_size_becomes_twice_as_large(pipe, size):
    made = run(pipe, picture(*size))
    assert made.shape == (1, 3, 2 * size[0], 2 * size[1]) and made.isfinite().all()
    assert torch.equal(made, run(pipe, picture(*size)))


def test_windows_agree_with_the_verb_where_only_one_lies(pipe):
    """Two windows of 16 over 16 x 28: the first 12 columns belong to the first window alone."""
    image = picture(16, 28)
    noise = torch.randn(1, 3, 32, 56, generator=seeded(), dtype=torch.float64)
    one_step = {"super_res_num_inference_steps": 1, "generator": seeded(), "output_type": "pt"}
    made = pipe(image, **one_step).images
    alone = pipe.upsample(image[None, :, :, :16] * 2 - 1, num_inference_steps=1, latents=noise[..., :32])
    assert_close(made[..., :24], (alone[..., :24] + 1) / 2)


def test_a_batch_with_generators_equals_one_by_one(pipe):
    images = [picture(9, 25), picture(9, 25).flip(-1)]
    both = run(pipe, images, generator=[seeded(1), seeded(2)])
    assert_close(both[1:], run(pipe, images[1], generator=[seeded(2)]), atol=1e-8, rtol=0)


def test_the_1024_stage_is_chosen_by_name():
    larger = tiny.upsampler()
    larger.register_to_config(sample_size=64)
    parts = tiny.components(karlo=False)
    parts |= {"super_res_1024": larger, "super_res_1024_scheduler": parts["super_res_scheduler"]}
    pipe = tiny.in_float64(UnCLIPUpscalePipeline(**parts))
    stages = []
    made = run(
        pipe,
        picture(32, 32),
        stage="super_res_1024",
        callback_on_step_end=lambda self, *_: stages.append(self.stage),
    )
    assert made.shape == (1, 3, 64, 64) and set(stages) == {"super_res_1024"}


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (None, {}, "image must be a picture or several, got None"),
        (torch.zeros(3, 8, 8), {"stage": "super_res_1024"}, "this checkpoint has no upsampler for stage"),
        (torch.zeros(3, 8, 8), {"stage": "decoder"}, "stage must be 'super_res' or 'super_res_1024', got 'decoder'"),
        (torch.zeros(3, 8, 10_000), {}, "more than 64"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], {}, "pictures of one size"),
        (torch.zeros(3, 8, 8), {"super_res_num_inference_steps": 0}, "super_res_num_inference_steps must be"),
        (torch.zeros(3, 8, 8), {"generator": [seeded(), seeded()]}, "a list of 1, one per picture, got 2"),
    ],
)
def test_nonsense_is_refused(pipe, image, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(image, **options)
