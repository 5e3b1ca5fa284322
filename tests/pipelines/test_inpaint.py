"""What a user of inpainting relies on: white is repainted, black comes back to the bit, at any size."""

import itertools
import re

import diffusers
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from pipelines import tiny
from torch.testing import assert_close

import unclip_hub
from unclip_hub.embeddings import slerp
from unclip_hub.images import outpainting_canvas, to_tensor
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.pipelines.inpaint import UnCLIPInpaintPipeline
from unclip_hub.pipelines.known import Known, levels, renoised, spans


STEPS = {"prior_num_inference_steps": 1, "decoder_num_inference_steps": 2, "super_res_num_inference_steps": 1}
H, W = 40, 56


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def pipe(request):
    made = UnCLIPInpaintPipeline(**tiny.components(karlo=request.param == "karlo"))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def mask():
    made = np.zeros((H, W), dtype=np.uint8)
    made[7:22, 11:40] = 255
    return Image.fromarray(made)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, *arguments, prompt="a red circle", seed=0, **options):
    return pipe(*arguments, prompt, **STEPS | {"generator": seeded(seed), "resampling": 1} | options)


def test_white_is_repainted_and_black_comes_back_to_the_bit(pipe, picture, mask):
    made = run(pipe, picture, mask, resampling=2)
    before, after, white = np.asarray(picture), np.asarray(made.images[0]), np.asarray(mask) == 255
    assert after.shape == before.shape
    np.testing.assert_array_equal(after[~white], before[~white])
    assert (after[white] != before[white]).mean() > 0.9
    tensor = run(pipe, picture, mask, resampling=2, output_type="pt").images[0].permute(1, 2, 0).numpy()
    assert abs(tensor[~white] - before[~white] / 255).max() < 1e-7


def test_same_seed_same_picture_other_seed_another(pipe, picture, mask):
    first, again, other = (
        run(pipe, picture, mask, seed=seed, resampling=2, output_type="pt").images for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-2


def test_a_soft_mask_blends(pipe, picture, mask):
    soft = Image.fromarray((np.asarray(mask) // 5 * 2).astype(np.uint8))  # 0.4 where it was white
    made = run(pipe, picture, soft, output_type="pt")
    before = (to_tensor(picture) + 1) / 2
    inside = (made.images - before)[..., 7:22, 11:40]
    assert inside.abs().mean() > 1e-3
    assert inside.abs().max() <= 0.4 + 1e-5  # whatever was made is within [0, 1]


def test_pictures_and_prompts_are_matched_and_lie_side_by_side(pipe, picture, mask):
    pipe = tiny.in_float64(pipe)
    pictures = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    prompts = ["a house", "two green cats at night"]

    def made(images, prompt, seeds, **options):
        generators = [seeded(seed) for seed in seeds]
        return run(pipe, images, mask, prompt=prompt, generator=generators, output_type="pt", **options).images

    both = made(pictures, prompts, [0, 1, 2, 3], num_images_per_prompt=2)
    assert both.shape == (4, 3, H, W)
    assert_close(both[2:], made(pictures[1], prompts[1], [2, 3], num_images_per_prompt=2), atol=1e-8, rtol=0)
    assert_close(both[::2], made(pictures, prompts, [0, 2]), atol=1e-8, rtol=0)
    one_picture = made(pictures[0], prompts, [0, 2])
    assert_close(one_picture[:1], both[:1], atol=1e-8, rtol=0)
    one_prompt = made(pictures, prompts[0], [0, 2])
    assert_close(one_prompt[:1], both[:1], atol=1e-8, rtol=0)


def test_everything_white_is_a_plain_decode(pipe):
    """Nothing is known: at the model's own size it is text to image, from the same seed."""
    plain = unclip_hub.UnCLIPPipeline(**tiny.in_float64(pipe).components)
    plain.set_progress_bar_config(disable=True)
    inpaint = tiny.in_float64(pipe)
    expected = plain("a red circle", generator=seeded(), output_type="pt", **STEPS)
    made = run(inpaint, torch.rand(3, 32, 32).double(), torch.ones(32, 32), output_type="pt")
    assert_close(made.image_embeds, expected.image_embeds)
    assert_close(made.small_images, expected.small_images, atol=1e-8, rtol=0)
    assert_close(made.images, expected.images, atol=1e-8, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (70, 41)])
def test_pictures_of_any_size_come_back_in_theirs(pipe, size):
    image = torch.rand(3, *size, generator=seeded())
    mask = torch.zeros(size)
    mask[: (size[0] + 1) // 2] = 1
    made = run(pipe, image, mask, output_type="pt").images
    assert made.shape == (1, 3, *size) and made.isfinite().all()
    assert_close(made[0][:, mask == 0], image[:, mask == 0], atol=1e-7, rtol=0)


def test_a_wide_canvas_is_made_of_windows_and_a_greater_short_side_of_more(pipe):
    image, mask = torch.rand(3, 32, 60), torch.ones(32, 60)
    assert run(pipe, image, mask, output_type="pt").small_images.shape == (1, 3, 16, 30)
    larger = run(pipe, image, mask, short_side=40, output_type="pt")
    assert larger.small_images.shape == (1, 3, 20, 38) and larger.images.shape == (1, 3, 32, 60)


def test_a_picture_of_too_many_windows_is_refused(pipe):
    with pytest.raises(ValueError, match=r"takes \d+ windows of 16 px, more than 64"):
        run(pipe, torch.rand(3, 10, 10_000), torch.ones(10, 10_000))


def test_outpainting_keeps_the_picture_and_fills_the_room(pipe, picture):
    canvas, room = outpainting_canvas(to_tensor(picture), left=9, bottom=5)
    made = np.asarray(run(pipe, (canvas + 1) / 2, room).images[0])
    assert made.shape == (H + 5, W + 9, 3)
    np.testing.assert_array_equal(made[:H, 9:], np.asarray(picture))
    assert made[:, :9].std() > 0


def test_the_image_embedding_is_the_priors_the_pictures_or_between(picture, mask):
    pipe = UnCLIPInpaintPipeline(**tiny.components(karlo=False))
    pipe.set_progress_bar_config(disable=True)
    prior, own, between = (
        run(pipe, picture, mask, image_weight=weight, output_type="pt").image_embeds for weight in (0, 1, 0.25)
    )
    assert_close(own, pipe.encode_image(picture), atol=1e-5, rtol=1e-5)
    assert_close(between, slerp(prior, own, theta=0.25), atol=1e-5, rtol=1e-5)
    given = run(pipe, picture, mask, image_embeds=own, output_type="pt")
    assert torch.equal(given.image_embeds, own)


def test_a_callback_sees_every_step_that_is_run(pipe, picture, mask):
    seen = []

    def callback(self, step, timestep, tensors):
        if self.stage == "decoder":
            seen.append((step, int(timestep)))

    run(pipe, picture, mask, resampling=3, jump_length=2, decoder_num_inference_steps=3, callback_on_step_end=callback)
    times = [t for _, t in seen]
    assert [step for step, _ in seen] == list(range(9))
    assert times == [times[0], times[1]] * 3 + [times[6]] * 3 and times[0] > times[1] > times[6]


SCHEDULERS = ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_holds_what_is_known(pipe, name):
    swapped = UnCLIPInpaintPipeline(**tiny.in_float64(pipe).components)
    swapped.set_progress_bar_config(disable=True)
    swapped.decoder_scheduler = getattr(diffusers, name).from_config(pipe.decoder_scheduler.config)
    pixels = torch.rand(2, 3, 16, 19, generator=seeded()).double() * 2 - 1
    mask = torch.zeros(2, 1, 16, 19)
    mask[..., 4:9, 3:15] = 1
    seen = []
    cond = swapped.encode_text(["a house", "two cats"]).with_image(torch.randn(2, tiny.WIDTH).double())
    made = swapped.repaint(
        cond, known=Known(pixels, mask), num_inference_steps=5, resampling=2, jump_length=3, generator=seeded(),
        on_step=lambda i, t, x: seen.append(x),
    )  # fmt: skip
    assert len(seen) == 10
    known = (mask == 0).expand_as(pixels)
    assert torch.equal(made[known], pixels[known]) and made.isfinite().all()
    assert (seen[-1] - pixels)[known].abs().max() < 0.3  # already before it is pasted: only the last noise is left
    assert (seen[-1] - pixels)[~known].abs().mean() > 0.1


def test_what_is_known_follows_the_noised_picture_at_every_step(pipe):
    """x_t of the known part has the mean sqrt(abar) x_0 and the variance 1 - abar, as RePaint draws it."""
    big = UnCLIPInpaintPipeline(**pipe.components)
    big.set_progress_bar_config(disable=True)
    pixels, mask = torch.full((12, 3, 16, 16), 0.5), torch.zeros(12, 1, 16, 16)
    mask[..., :2] = 1
    cond = big.encode_text(["a house"] * 12).with_image(torch.randn(12, tiny.WIDTH, generator=seeded(1)))
    seen = []
    big.repaint(
        cond, known=Known(pixels, mask), num_inference_steps=4, resampling=2, generator=seeded(),
        on_step=lambda i, t, x: seen.append((x[..., 2:].mean().item(), x[..., 2:].std().item())),
    )  # fmt: skip
    scheduler = big.decoder_scheduler
    abars = [*(scheduler.alphas_cumprod[t].item() for t in scheduler.timesteps[1:]), 1.0]
    for (mean, std), abar in zip(seen, [abar for abar in abars for _ in range(2)], strict=True):
        assert mean == pytest.approx(0.5 * abar**0.5, abs=0.05)
        assert std == pytest.approx((1 - abar) ** 0.5, abs=0.05)


def test_spans_repeat_every_jump():
    assert spans(0, 5, length=2, times=1) == [(0, 5)]
    assert spans(1, 6, length=2, times=2) == [(1, 3), (1, 3), (3, 5), (3, 5), (5, 6), (5, 6)]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_renoising_reaches_the_level_of_every_timestep(name):
    scheduler = getattr(diffusers, name)(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    known = levels(scheduler)
    assert len(known) == len(scheduler.timesteps) + 1 and known[-1] == (1, 0)
    for now, then in itertools.pairwise(reversed(known)):
        x = now[0] * 0.5 + now[1] * torch.randn(40_000, 1, generator=seeded(1))
        made = renoised(x, now, then, generator=seeded(2))
        assert made.mean().item() == pytest.approx(then[0] * 0.5, abs=0.02 * (then[0] + then[1]))
        assert made.std().item() == pytest.approx(then[1], rel=0.03)


def inpainting_decoder():
    config = dict(tiny.components(karlo=False)["decoder"].config) | {"in_channels": 7}
    torch.manual_seed(1)
    return UNet2DConditionModel.from_config(config).eval().requires_grad_(False)


def test_a_decoder_trained_to_inpaint_is_shown_the_masked_picture_and_the_mask(picture, mask):
    pipe = UnCLIPInpaintPipeline(**tiny.components(karlo=False) | {"decoder": inpainting_decoder()})
    pipe.set_progress_bar_config(disable=True)
    seen = []
    handle = pipe.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    made = run(pipe, picture, mask)
    handle.remove()
    white = np.asarray(mask) == 255
    np.testing.assert_array_equal(np.asarray(made.images[0])[~white], np.asarray(picture)[~white])
    x = seen[0]
    assert x.shape == (2, 7, 16, 16)  # guided: both halves are shown the same
    assert set(x[:, 6].unique().tolist()) <= {0.0, 1.0}
    assert (x[:, 3:6] * x[:, 6:]).abs().max() == 0 and x[:, 3:6].abs().max() > 0
    assert torch.equal(x[0, 3:], x[1, 3:])


def test_what_is_under_the_mask_is_never_seen(pipe, picture, mask):
    """Other pixels under the mask, the same result: also at its edge, where small pixels straddle it."""
    pixels = np.asarray(picture).copy()
    pixels[np.asarray(mask) == 255] = 3
    first = run(pipe, picture, mask, output_type="pt")
    second = run(pipe, Image.fromarray(pixels), mask, output_type="pt")
    assert torch.equal(first.small_images, second.small_images)


def test_bfloat16_networks_leave_known_pixels_exact(picture, mask):
    pipe = UnCLIPInpaintPipeline(**tiny.components()).to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    white = np.asarray(mask) == 255
    made = np.asarray(run(pipe, picture, mask, resampling=2).images[0])
    np.testing.assert_array_equal(made[~white], np.asarray(picture)[~white])
    assert (made[white] != np.asarray(picture)[white]).mean() > 0.9


WRONG = [
    ({"image": None}, "image must be a picture or several, got None"),
    ({"mask": None}, "mask must be a picture of the image's size"),
    ({"mask": torch.ones(8, 8)}, r"expected \(b, 1, h, w\) of \(1, 1, 40, 56\), got \(1, 1, 8, 8\)"),
    ({"mask": torch.zeros(H, W)}, "black everywhere"),
    ({"prompt": None}, "exactly one of prompt, prompt_embeds"),
    ({"resampling": 0}, "resampling must be a whole number of at least 1, got 0"),
    ({"jump_length": 0}, "jump_length must be a whole number"),
    ({"image_weight": 1.5}, "image_weight must be a number from 0 to 1, got 1.5"),
    ({"short_side": 8}, "short_side must be at least 32 for this checkpoint, got 8"),
    ({"decoder_latents": torch.zeros(1, 3, 16, 16)}, r"decoder_latents must be \(1, 3, 16, 22\)"),
    ({"prompt": ["a", "b"], "image": [Image.new("RGB", (W, H))] * 3}, "as many of both, got 3 and 2"),
    ({"image": [Image.new("RGB", (W, H)), Image.new("RGB", (H, W))]}, "pictures of one size"),
    ({"generator": [seeded(), seeded()]}, "a list of 1, one per picture, got 2"),
    ({"output_type": "jpg"}, "output_type must be one of"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_nonsense_is_refused_before_anything_is_computed(pipe, picture, mask, options, message, monkeypatch):
    monkeypatch.setattr(type(pipe), "encode_text", lambda *_: pytest.fail("computed before checking"))
    with pytest.raises((ValueError, TypeCheckError)) as caught:
        pipe(**{"image": picture, "mask": mask, "prompt": "a house"} | options)
    assert isinstance(caught.value, TypeCheckError) or re.search(message, str(caught.value))
