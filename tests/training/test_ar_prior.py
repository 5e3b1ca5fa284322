"""The autoregressive prior's loss: it falls, it measures what it says, and it teaches what the caption tells."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.ar_prior import UNKNOWN, AutoregressivePrior
from unclip_hub.training.ar_prior import AutoregressivePriorTask, count_components, fit_codes
from unclip_hub.training.prior import PriorBatch


D, L, K, N = 12, 5, 4, 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=64, seed=0):
    """Four captions, each with its own region of a plane in which the embeddings lie, but for a little noise."""
    g = seeded(seed)
    kinds = torch.randint(4, (size,), generator=g)
    centres = torch.tensor([[3.0, 2.0], [-3.0, 2.0], [3.0, -2.0], [-3.0, -2.0]])
    embeds = 0.1 * torch.randn(size, D, generator=g)
    embeds[:, :2] += centres[kinds] + 0.3 * torch.randn(size, 2, generator=g)
    text = torch.nn.functional.one_hot(kinds, D).float()
    mask = torch.arange(L) < 3
    return PriorBatch(embeds, Conditioning(text, text[:, None].repeat(1, L, 1), mask.expand(size, -1)))


def empty():
    return Conditioning(torch.zeros(1, D), torch.zeros(1, L, D), torch.ones(1, L, dtype=torch.bool))


def new_prior(**changes):
    torch.manual_seed(0)
    sizes = {"embedding_dim": D, "num_embeddings": L, "num_components": K} | changes
    buckets = {"num_buckets": N, "num_similarity_buckets": N}
    prior = AutoregressivePrior(num_attention_heads=2, attention_head_dim=12, num_layers=2, **sizes, **buckets)
    fit_codes(prior, batch(2000, seed=9).image_embed)
    return prior


@pytest.fixture(scope="module")
def trained():
    """A prior after 150 small steps; its first and its last loss."""
    task = AutoregressivePriorTask(new_prior(), empty=empty())
    generator, optimizer = seeded(), torch.optim.AdamW(task.modules.parameters(), lr=5e-3)
    first = task.loss(batch(512, seed=999), seeded(1))
    for step in range(150):
        optimizer.zero_grad()
        task.loss(batch(seed=step), generator)[0].backward()
        optimizer.step()
    with torch.no_grad():
        last = task.loss(batch(512, seed=999), seeded(1))
    return task.modules["prior"].eval(), first, last


def test_it_learns_from_knowing_nothing_to_what_there_is_to_know(trained):
    _, (before, start), (after, end) = trained
    assert_close(before.item(), math.log(N), atol=1e-5, rtol=0)
    assert_close(start["nats"], math.log(N), atol=1e-5, rtol=0)
    assert after < before - 0.4 and end["nats"] < start["nats"] - 0.3
    assert start["cosine"] < 0.3 and end["cosine"] > 0.85
    assert end["cosine"] < end["ceiling"] == start["ceiling"] < 1


def test_samples_lie_where_the_caption_says_and_are_spread_as_the_data(trained):
    prior = trained[0]
    told = batch(400, seed=5)
    drawn = prior.sample(told.caption, generator=seeded(), similarity_share=1.0)
    assert ((drawn[:, :2] * told.image_embed[:, :2]) > 0).all(dim=1).double().mean() > 0.9
    of_one = told.caption.text_embed[:, 1] == 1
    offsets = [embeds[of_one][:, :2] - torch.tensor([-3.0, 2.0]) for embeds in (drawn, told.image_embed)]
    spreads = [offset.abs().median(dim=0).values for offset in offsets]  # the few that are in another region aside
    assert_close(spreads[0], spreads[1], rtol=0.35, atol=0)


def test_guidance_and_similarity_do_what_they_promise(trained):
    prior, told = trained[0], batch(400, seed=5)
    one, null = told.caption.take(1).expand(400), empty()
    plain, high = (prior.sample(one, generator=seeded(), similarity_share=share) for share in (1.0, 0.2))
    near = [cosine_similarity(drawn, one.text_embed).mean() for drawn in (plain, high)]
    assert near[1] > near[0] + 0.005
    unguided = prior.sample(one, null, generator=seeded(), guidance_scale=0, similarity_share=1.0)
    kinds = (unguided[:, :2] > 0).unique(dim=0)
    assert len(kinds) == 4  # without the caption it is any of them


def test_dropped_captions_are_the_empty_one_and_hidden_similarities_are_unknown():
    task, seen = AutoregressivePriorTask(new_prior(), empty=empty(), drop_caption=0.3), []
    task.modules["prior"].register_forward_pre_hook(lambda m, args, kw: seen.append(kw), with_kwargs=True)
    told = batch(4000)
    task.loss(told, seeded(2))
    dropped = ~seen[0]["proj_embedding"].any(dim=1)
    hidden = seen[0]["similarity"] == UNKNOWN
    assert_close(dropped.float().mean().item(), 0.3, atol=0.03, rtol=0)
    assert_close(hidden[dropped].float().mean().item(), 0.5, atol=0.05, rtol=0)
    assert_close(hidden[~dropped].float().mean().item(), 0.3, atol=0.03, rtol=0)
    assert torch.equal(seen[0]["proj_embedding"][~dropped], told.caption.text_embed[~dropped])


def test_the_loss_is_the_mean_cross_entropy_of_similarity_and_codes():
    prior = new_prior(num_components=1)
    with torch.no_grad():
        for network in (prior.code_out, prior.similarity_out):
            network.smooth.weight.normal_(std=0.1, generator=seeded(3))
    task, told = AutoregressivePriorTask(prior, empty=empty(), drop_caption=0.0), batch(8)
    loss, metrics = task.loss(told, seeded())
    cosine = cosine_similarity(told.image_embed, told.caption.text_embed)
    similarity = ((cosine + 1) / 2 * N).long()
    caption = (told.caption.text_embed, told.caption.text_states, told.caption.text_mask)
    out = prior(*caption, similarity=similarity)
    of_similarity = -out.similarity_logits.log_softmax(-1)[torch.arange(8), similarity].mean()
    of_code = -out.logits[:, 0].log_softmax(-1)[torch.arange(8), prior.codec.encode(told.image_embed)[:, 0]].mean()
    assert_close(loss, (of_similarity + of_code) / 2)
    assert_close(metrics["nats"], of_code.item())


def test_gradients_reach_every_parameter():
    prior = new_prior()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(1)))
    AutoregressivePriorTask(prior, empty=empty(), drop_caption=0.5).loss(batch(), seeded())[0].backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_codes_are_exact_under_autocast():
    task = AutoregressivePriorTask(new_prior(), empty=empty())
    expected = task.loss(batch(), seeded())[1]["ceiling"]
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = task.loss(batch(), seeded())
    assert loss.isfinite() and metrics["ceiling"] == expected


@pytest.mark.parametrize("kept_variance, components", [(0.5, 1), (0.95, 2), (0.985, 2), (1.0, D)])
def test_components_are_counted_by_the_variance_that_they_keep(kept_variance, components):
    assert count_components(batch(2000).image_embed, kept_variance=kept_variance) == components


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="image embeddings must be finite"):
        fit_codes(new_prior(), torch.full((9, D), torch.nan))
    with pytest.raises(ValueError, match="at least 2 embeddings"):
        fit_codes(new_prior(), torch.ones(1, D))
    with pytest.raises(ValueError, match="kept_variance must be above 0 and at most 1, got 1.5"):
        count_components(batch().image_embed, kept_variance=1.5)
