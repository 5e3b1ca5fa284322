"""Every kind of prior learns a small problem: better than no prior, and than the same one with other captions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.ar_prior import AutoregressivePrior
from unclip_hub.models.gaussian_prior import GaussianPrior
from unclip_hub.models.one_step_prior import OneStepPrior
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.sampling import denoise
from unclip_hub.training.ar_prior import AutoregressivePriorTask, fit_codes
from unclip_hub.training.export import new_scheduler
from unclip_hub.training.gaussian_prior import fit_to_batches
from unclip_hub.training.objective import Objective
from unclip_hub.training.one_step_prior import OneStepPriorTask
from unclip_hub.training.prior import PriorBatch, PriorTask, cosines, set_statistics


D, L = 8, 3  # CLIP's width, text tokens
SIZE: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=12, num_layers=1, embedding_dim=D, num_embeddings=L
)
OBJECTIVES = {"diffusion": Objective(weighting="simple"), "flow": Objective(weighting="flow", schedule="flow")}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(count, *, seed):
    """Captions, and images in another direction, with some noise of their own."""
    g = seeded(seed)
    text = torch.randn(count, D, generator=g)
    turn = torch.linalg.qr(torch.randn(D, D, generator=seeded(99))).Q
    embeds = 2 * text @ turn + 0.5 * torch.randn(count, D, generator=g) + 1
    states = torch.randn(count, L, D, generator=g)
    return PriorBatch(embeds, Conditioning(text, states, torch.ones(count, L, dtype=torch.bool)))


def empty():
    return Conditioning(torch.zeros(1, D), torch.zeros(1, L, D), torch.ones(1, L, dtype=torch.bool))


def task(kind):
    """The kind's loss, with a network that knows the statistics it has to know."""
    torch.manual_seed(0)
    embeds = drawn(500, seed=1).image_embed
    if kind == "one_step":
        return OneStepPriorTask(OneStepPrior(**SIZE))
    if kind == "autoregressive":
        network = AutoregressivePrior(**SIZE, num_components=D, num_buckets=16)
        fit_codes(network, embeds)
        return AutoregressivePriorTask(network, empty=empty())
    network = PriorTransformer(**SIZE)
    set_statistics(network, embeds)
    return PriorTask(network, empty=empty(), objective=OBJECTIVES[kind])


def sampled(kind, network, cond):
    if kind not in OBJECTIVES:
        return network.sample(cond, generator=seeded(5))
    scheduler = new_scheduler(OBJECTIVES[kind], network, clip_sample_range=5.0)
    scheduler.set_timesteps(4)
    caption = (cond.text_embed, cond.text_states, cond.text_mask)
    noise = torch.randn(len(cond), D, generator=seeded(5))
    x = denoise(lambda x, t: network(x, t, *caption).predicted_image_embedding, noise, scheduler, generator=seeded(6))
    return network.post_process_latents(x)


def agreement(kind, network):
    """Cosines to new images' embeddings: of samples, with the captions of others, and of the captions' own."""
    new = drawn(200, seed=2)
    with torch.no_grad():
        right, wrong = (sampled(kind, network, c) for c in (new.caption, new.caption.roll(1)))
    return *(F.cosine_similarity(x, new.image_embed).mean() for x in (right, wrong)), cosines(right, new)


@pytest.mark.parametrize("kind", ["diffusion", "flow", "one_step", "autoregressive"])
def test_it_learns(kind):
    made = task(kind)
    optimizer = torch.optim.Adam(made.modules.parameters(), lr=3e-3)
    for step in range(300 if kind == "autoregressive" else 150):
        loss, stats = made.loss(drawn(64, seed=10 + step), seeded(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(isinstance(value, float) for value in stats.values())
    right, wrong, both = agreement(kind, made.modules["prior"].eval())
    assert both["cosine"] == pytest.approx(right.item(), abs=1e-5)
    assert right > both["baseline_cosine"] + 0.3
    assert right > wrong + 0.3
    assert stats["cosine"] > stats["baseline_cosine"] + 0.3


def test_the_gaussian_needs_no_steps():
    network = GaussianPrior(D)
    fit_to_batches(network, (drawn(64, seed=step) for step in range(10, 30)))
    right, wrong, both = agreement("gaussian", network)
    assert right > both["baseline_cosine"] + 0.5 and right > wrong + 0.5


def test_the_baseline_is_the_caption_itself_or_the_mean_embedding():
    batch = drawn(20, seed=3)
    own = F.cosine_similarity(batch.caption.text_embed, batch.image_embed).mean().item()
    assert cosines(batch.image_embed, batch) == {"cosine": pytest.approx(1.0), "baseline_cosine": pytest.approx(own)}
    narrow = Conditioning(torch.randn(20, D - 1), batch.caption.text_states, batch.caption.text_mask)
    mean = F.cosine_similarity(batch.image_embed.mean(0, keepdim=True), batch.image_embed).mean().item()
    other = cosines(batch.image_embed, PriorBatch(batch.image_embed, narrow))
    assert other["baseline_cosine"] == pytest.approx(mean)


def test_the_one_step_loss_is_eclipses():
    """Squared error and 0.2 times the cross-entropy of each prediction's caption among all."""
    made, batch = task("one_step"), drawn(6, seed=3)
    value, stats = made.loss(batch, seeded(4))
    noise = torch.randn(6, D, generator=seeded(4))
    caption = batch.caption
    made_of = made.modules["prior"](noise, caption.text_embed, caption.text_states, caption.text_mask)
    predicted = made_of.predicted_image_embedding
    logits = F.normalize(predicted, dim=1) @ F.normalize(caption.text_embed, dim=1).T / 0.07
    contrast = F.cross_entropy(logits, torch.arange(6))
    squared = (predicted - batch.image_embed).square().mean()
    assert_close(value, squared + 0.2 * contrast)
    assert stats["projection"] == pytest.approx(squared.item(), rel=1e-4)
    assert stats["contrastive"] == pytest.approx(contrast.item(), rel=1e-4)


def test_a_caption_that_occurs_twice_does_not_contrast_with_itself():
    made, one = task("one_step"), drawn(1, seed=3)
    _, stats = made.loss(PriorBatch(one.image_embed.expand(2, -1), one.caption.expand(2)), seeded())
    assert stats["contrastive"] == pytest.approx(0.0, abs=1e-6)


def test_without_the_contrast_text_may_be_of_another_width():
    network = OneStepPrior(**SIZE, embedding_proj_dim=D - 1)
    batch = drawn(4, seed=3)
    caption = Conditioning(torch.randn(4, D - 1), batch.caption.text_states, batch.caption.text_mask)
    value, stats = OneStepPriorTask(network, contrastive=0.0).loss(PriorBatch(batch.image_embed, caption), seeded())
    assert value.item() == pytest.approx(stats["projection"]) and "contrastive" not in stats
    with pytest.raises(ValueError, match="text and image embeddings of one width, got 7 and 8"):
        OneStepPriorTask(network)


@pytest.mark.parametrize("options", [{"contrastive": -0.1}, {"temperature": 0.0}])
def test_numbers_that_no_loss_can_have_are_refused(options):
    with pytest.raises(ValueError, match="contrastive at least 0 and temperature above 0"):
        OneStepPriorTask(OneStepPrior(**SIZE), **options)
