"""Small pictures made worse: blur and noise as asked for, and everything that may happen to a photograph."""

import torch
from torch.testing import assert_close

from unclip_hub import BUNDLED_MODEL, UnCLIPImageToImagePipeline
from unclip_hub.data.drawn import SHAPES_ONLY
from unclip_hub.data.scenes import dataset
from unclip_hub.data.sprites import build_bank
from unclip_hub.training.degradations import blur_and_noise, bsr, paper_blur, redrawn
from unclip_hub.training.world import as_pixels


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(b=2, height=32, width=48):
    """Coloured gradients, in [-0.8, 0.8]."""
    y, x = torch.linspace(-0.8, 0.8, height), torch.linspace(-0.8, 0.8, width)
    planes = [y[:, None].expand(height, width), x.expand(height, width), (y[:, None] + x) / 2]
    return torch.stack([torch.stack(planes), torch.stack(planes[::-1])])[:b]


def test_the_papers_blur_spreads_a_point_as_a_gaussian_does():
    point = torch.zeros(1, 3, 7, 9)
    point[:, 1, 3, 4] = 1.0
    blurred = paper_blur(point, seeded())
    line = torch.tensor([-1.0, 0.0, 1.0]).div(0.6).square().mul(-0.5).exp()
    line /= line.sum()
    expected = torch.zeros(1, 3, 7, 9)
    expected[0, 1, 2:5, 3:6] = torch.outer(line, line)
    assert_close(blurred, expected)
    assert_close(paper_blur(torch.full((1, 3, 4, 5), 0.3), seeded()), torch.full((1, 3, 4, 5), 0.3))


def test_blur_and_noise_come_as_often_and_as_strong_as_asked():
    pictures = torch.randn(400, 3, 6, 5, generator=seeded())
    blurred = blur_and_noise(pictures, seeded(1), blur_share=0.3, max_noise=0.0)
    changed = (blurred != pictures).flatten(1).any(dim=1)
    assert 0.22 < changed.float().mean() < 0.38
    noise = blur_and_noise(pictures, seeded(1), blur_share=0.0, max_noise=0.2) - pictures
    levels = noise.flatten(1).std(dim=1)
    assert levels.max() < 0.25 and 0.08 < levels.mean() < 0.12
    assert levels.min() < 0.01


def test_bsr_shrinks_and_follows_the_generator():
    pictures = smooth()
    low = bsr(pictures, seeded(1), scale=4)
    assert low.shape == (2, 3, 8, 12)
    assert low.min() >= -1 and low.max() <= 1
    assert torch.equal(low, bsr(pictures, seeded(1), scale=4))
    assert not torch.equal(low, bsr(pictures, seeded(2), scale=4))


def test_bsr_leaves_a_picture_recognisable_and_never_as_it_was():
    """Over many draws the mean error is that of a bad photograph: neither none nor everything, and without a shift."""
    pictures = smooth(b=1).expand(60, -1, -1, -1)
    clean = torch.nn.functional.avg_pool2d(pictures, 4)
    error = bsr(pictures, seeded(), scale=4) - clean
    rms = error.square().mean(dim=(1, 2, 3)).sqrt()
    assert rms.min() > 0.005 and 0.03 < rms.median() < 0.2 and rms.max() < 0.6
    assert error.mean().abs() < 0.03
    # nothing moves: the gradients' errors to the left and to the right cancel
    shift = (error[:, 1].mean(dim=(0, 1)) * torch.linspace(-1, 1, 12)).mean()
    assert shift.abs() < 0.03


def test_a_redrawn_picture_is_the_decoders_in_the_place_of_the_old():
    scenes = dataset(4, seed=5, scope=SHAPES_ONLY, bank=build_bank(canvases=(64,)), captions=1)
    low, captions = as_pixels(scenes.pictures), [captions[0] for captions in scenes.captions]
    pipe = UnCLIPImageToImagePipeline.from_pretrained(BUNDLED_MODEL, prior=None, prior_scheduler=None)
    pipe.set_progress_bar_config(disable=True)
    drawn = [redrawn(low, captions, seeded(seed), pipe=pipe) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == low.shape and drawn[0].amin() >= -1 and drawn[0].amax() <= 1
    error = (drawn[0] - low).square().mean(dim=(1, 2, 3))
    others = (drawn[0] - low.roll(1, 0)).square().mean(dim=(1, 2, 3))
    assert (error > 1e-4).all() and (error < others / 4).all()
