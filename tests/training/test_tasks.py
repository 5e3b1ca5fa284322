"""Every network's loss: it falls, it depends on the condition, and its curve is the recorded one."""

import copy
import json
from pathlib import Path

import pytest
import torch
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.training.clip import ClipBatch, ClipTask
from unclip_hub.training.decoder import DecoderBatch, DecoderTask, Drops
from unclip_hub.training.degradations import bsr, paper_blur
from unclip_hub.training.inpainting import widened_for_inpainting
from unclip_hub.training.loop import TrainConfig, train
from unclip_hub.training.objective import Objective
from unclip_hub.training.prior import PriorBatch, PriorTask, set_statistics
from unclip_hub.training.upsampler import UpsamplerBatch, UpsamplerTask, random_crops


GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curves.json"
B = 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def conditioning(b, seed=0):
    g = seeded(seed)
    return Conditioning(
        text_embed=torch.randn(b, tiny.WIDTH, generator=g),
        text_states=torch.randn(b, tiny.CONTEXT, tiny.WIDTH, generator=g),
        text_mask=torch.arange(tiny.CONTEXT).expand(b, -1) < torch.randint(3, tiny.CONTEXT, (b, 1), generator=g),
        image_embed=torch.randn(b, tiny.WIDTH, generator=g),
    )


def trainable(model):
    return model.requires_grad_(True)


def clip_task():
    parts = tiny.components(karlo=False)
    torch.manual_seed(0)
    task = ClipTask(
        trainable(parts["text_encoder"]), trainable(parts["image_encoder"]), patch_classes=5, scene_classes=3
    )
    length, vocabulary = 7, len(parts["tokenizer"])
    ids = torch.randint(0, vocabulary - 2, (3 * B, length), generator=seeded())
    ids[:, -1] = vocabulary - 1
    batch = ClipBatch(
        pixels=torch.rand(B, 3, 16, 16, generator=seeded(1)) * 2 - 1,
        ids=ids[:B],
        negative_ids=ids[B:],
        patch_labels=torch.randint(0, 5, (B, 4), generator=seeded(2)),
        scene_labels=torch.randint(0, 3, (B,), generator=seeded(3)),
    )
    return task, batch


def plain_clip_task(*, negatives=False, **options):
    """Captioned pictures, and nothing else."""
    task, batch = clip_task()
    encoders = task.modules["text_encoder"], task.modules["image_encoder"]
    negative_ids = batch.negative_ids if negatives else None
    return ClipTask(*encoders, **options), ClipBatch(batch.pixels, batch.ids, negative_ids)


def prior_task(**options):
    prior = trainable(tiny.components()["prior"])
    cond = conditioning(B)
    return PriorTask(prior, empty=conditioning(1, seed=9), **options), PriorBatch(cond.image_embed, cond)


def decoder_task(*, karlo=False, inpaints=False, **options):
    parts = tiny.components(karlo=karlo)
    decoder = widened_for_inpainting(parts["decoder"]) if inpaints else parts["decoder"]
    task = DecoderTask(trainable(decoder), trainable(parts["text_proj"]), empty=conditioning(1, seed=9), **options)
    return task, DecoderBatch(torch.rand(B, 3, 16, 16, generator=seeded(1)) * 2 - 1, conditioning(B))


def upsampler_task(**options):
    torch.manual_seed(0)
    task = UpsamplerTask(tiny.upsampler(), **options)
    pixels = torch.rand(B, 3, 16, 24, generator=seeded(1)) * 2 - 1
    return task, UpsamplerBatch(pixels=pixels, low=torch.nn.functional.avg_pool2d(pixels, 4))


TASKS = {"clip": clip_task, "prior": prior_task, "decoder": decoder_task, "upsampler": upsampler_task}
EPS = Objective(prediction_type="epsilon", weighting="simple")
VARIANTS = TASKS | {
    "plain clip": plain_clip_task,
    "pairwise clip": lambda: plain_clip_task(pairwise=True, negatives=True),
    "v prior": lambda: prior_task(objective=Objective(prediction_type="v_prediction", weighting="min_snr")),
    "paper's decoder": lambda: decoder_task(karlo=True, objective=EPS, drops=Drops.independent()),
    "inpainting": lambda: decoder_task(inpaints=True),
    "paper's upsampler": lambda: upsampler_task(
        corrupt=paper_blur, objective=Objective(prediction_type="epsilon", weighting="min_snr", schedule="linear")
    ),
}


def curve(name, folder, steps=20):
    task, batch = TASKS[name]()
    losses = []

    def recording(batch, generator, loss=task.loss):
        value, stats = loss(batch, generator)
        losses.append(value.item())
        return value, stats

    task.loss = recording
    config = TrainConfig(steps=steps, lr=3e-3, warmup=5, precision="no", log_every=10, decay_from=1.0)
    train(task, lambda step: batch, config, output=folder)
    return losses


@pytest.mark.golden
@pytest.mark.parametrize("name", TASKS)
def test_loss_curves_are_the_recorded_ones(name, tmp_path):
    """20 steps in float32. A refactor leaves them as they are; a change of numbers says why in CHANGELOG.

    To record anew: `python tests/training/test_tasks.py`.
    """
    recorded = json.loads(GOLDEN.read_text())[name]
    assert_close(torch.tensor(curve(name, tmp_path)), torch.tensor(recorded), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_one_batch_is_learned(name, tmp_path):
    losses = curve(name, tmp_path, steps=40)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_trained_parameter(name):
    task, batch = VARIANTS[name]()
    generator = seeded(1)
    task.loss(batch, generator)[0].backward()
    # at every step, whatever was withheld: processes that wait for each other's gradients would wait for ever
    assert [n for n, p in task.modules.named_parameters() if p.grad is None] == []
    for _ in range(11):  # enough draws for every drop case to occur
        task.loss(batch, generator)[0].backward()
    assert [n for n, p in task.modules.named_parameters() if not p.grad.abs().any()] == []


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in TASKS])
def test_twenty_steps_lower_the_loss(name):
    task, batch = VARIANTS[name]()
    optimizer = torch.optim.Adam(task.modules.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        loss, stats = task.loss(batch, seeded(3))  # the same noise every time
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert stats and all(isinstance(value, float) for value in stats.values())


def test_a_learned_variance_trains_by_the_bound_alone_and_leaves_the_prediction_to_the_simple_loss():
    gradients = {}
    for bound_weight in (0.0, 0.001, 0.002):
        objective = Objective(prediction_type="epsilon", weighting="simple", bound_weight=bound_weight)
        task, batch = decoder_task(karlo=True, objective=objective)
        task.loss(batch, seeded())[0].backward()
        gradients[bound_weight] = task.modules["decoder"].conv_out.weight.grad
    predicted, variance = ([g[part] for g in gradients.values()] for part in (slice(0, 3), slice(3, 6)))
    assert_close(predicted[1], predicted[0])
    assert_close(predicted[2], predicted[0])
    assert not variance[0].any() and variance[1].any()
    assert_close(variance[2], 2 * variance[1])


def test_clip_sees_pairs_one_by_one_if_asked():
    """SigLIP's loss, restated: a binary decision for each pair of picture and caption, summed over a picture's."""
    task, batch = plain_clip_task(pairwise=True)
    value, _ = task.loss(batch, seeded())
    m = task.modules
    image = torch.nn.functional.normalize(m["image_encoder"](batch.pixels).image_embeds, dim=1)
    text = torch.nn.functional.normalize(m["text_encoder"](batch.ids).text_embeds, dim=1)
    logits = 10 * image @ text.T - 10
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(B), reduction="sum") / B
    assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_the_temperature_stays_at_most_100_and_can_come_back():
    task, batch = plain_clip_task()
    scale = task.modules["temperature"].log_scale
    with torch.no_grad():
        scale.fill_(9.0)
    task.loss(batch, seeded())[0].backward()
    assert scale.exp().item() == pytest.approx(100, rel=1e-5)
    assert scale.grad.abs() > 0


@pytest.mark.parametrize("given", [{"patch_classes": 3}, {"scene_classes": 3}])
def test_clip_takes_both_probes_or_none(given):
    with pytest.raises(ValueError, match="both numbers of classes or none"):
        plain_clip_task(**given)


def test_clip_with_probes_needs_labels():
    task, batch = clip_task()
    with pytest.raises(ValueError, match="needs batches with both labels"):
        task.loss(ClipBatch(batch.pixels, batch.ids), seeded())


def test_a_text_encoder_learns_towards_a_locked_image_encoder():
    full, batch = plain_clip_task(negatives=True)
    image_encoder = full.modules["image_encoder"].requires_grad_(False)
    embeds = image_encoder(batch.pixels).image_embeds
    locked = ClipBatch(None, batch.ids, batch.negative_ids, image_embeds=embeds)
    value, stats = full.loss(locked, seeded())
    assert_close(value, full.loss(batch, seeded())[0], rtol=1e-5, atol=1e-6)
    assert 0 <= stats["swap"] <= 1
    value.backward()
    assert all(p.grad is None for p in image_encoder.parameters())
    assert all(p.grad is not None for p in full.modules["text_encoder"].text_projection.parameters())
    with pytest.raises(ValueError, match="needs pixels or image_embeds, got neither"):
        full.loss(ClipBatch(None, batch.ids), seeded())


def test_the_image_embedding_alone_learns_what_stands_where():
    task, batch = clip_task()
    _, stats = task.loss(batch, seeded())
    embeds = task.modules["image_encoder"](batch.pixels).image_embeds
    logits = task.modules["layout_head"](embeds).view(B, 4, 5).transpose(1, 2)
    assert stats["layout"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, batch.patch_labels).item(), rel=1e-4
    )


def test_independent_drops_are_the_products_of_their_rates():
    drops = Drops.independent(image=0.1, caption=0.5)  # 5 % withhold the image alone, as the paper counts them
    assert (drops.both, drops.image, drops.caption) == pytest.approx((0.05, 0.05, 0.45))
    assert drops.both + drops.image == pytest.approx(0.1)
    assert drops.both + drops.caption == pytest.approx(0.5)


@pytest.mark.parametrize("shares", [(0.5, 0.4, 0.2), (-0.1, 0.2, 0.2)])
def test_drops_that_are_no_shares_are_refused(shares):
    with pytest.raises(ValueError, match="at least 0 and at most 1 together"):
        Drops(*shares)


def test_decoder_loss_depends_on_each_condition():
    task, batch = decoder_task(drops=Drops(0.0, 0.0, 0.0))
    cond = batch.condition
    base = task.loss(batch, seeded())[0]
    other = conditioning(B, seed=5)
    for changed in (cond.with_image(other.image_embed), other.with_image(cond.image_embed)):
        assert (task.loss(DecoderBatch(batch.pixels, changed), seeded())[0] - base).abs() > 1e-7


@pytest.mark.parametrize(
    ("drops", "caption_matters", "image_matters"),
    [(Drops(1.0, 0.0, 0.0), False, False), (Drops(0.0, 1.0, 0.0), True, False), (Drops(0.0, 0.0, 1.0), False, True)],
)
def test_what_is_withheld_has_no_effect(drops, caption_matters, image_matters):
    task, batch = decoder_task(drops=drops)
    base, other = task.loss(batch, seeded())[0], conditioning(B, seed=5)
    image_only = DecoderBatch(batch.pixels, batch.condition.with_image(other.image_embed))
    caption_only = DecoderBatch(batch.pixels, other.with_image(batch.condition.image_embed))
    assert ((task.loss(caption_only, seeded())[0] - base).abs() > 1e-7) == caption_matters
    assert ((task.loss(image_only, seeded())[0] - base).abs() > 1e-7) == image_matters


def test_drop_rates_are_those_asked_for():
    task, batch = decoder_task(drops=Drops(both=0.1, image=0.2, caption=0.25))
    kept = {"image": 0, "caption": 0}
    big = conditioning(2000)

    def spy(sample, t, condition, keep_image):
        kept["image"] += keep_image.sum().item()
        kept["caption"] += (condition.text_embed == big.text_embed).all(1).sum().item()
        return type("Output", (), {"float": lambda self: torch.zeros(2000, 3, 2, 2)})()

    task.predict = spy
    task.loss(DecoderBatch(torch.zeros(2000, 3, 2, 2), big), seeded())
    assert kept["image"] / 2000 == pytest.approx(0.70, abs=0.04)
    assert kept["caption"] / 2000 == pytest.approx(0.65, abs=0.04)


def test_prior_learns_in_the_standardised_space():
    """A constant shift of all embeddings, put into clip_mean, leaves the loss as it was."""
    task, batch = prior_task()
    base = task.loss(batch, seeded())[0]
    prior = task.modules["prior"]
    prior.clip_mean += 3.0
    prior.clip_std *= 2.0
    moved = PriorBatch(batch.image_embed * 2 + 3, batch.caption)
    assert_close(task.loss(moved, seeded())[0], base, atol=1e-5, rtol=1e-5)


def test_a_self_conditioned_prior_is_shown_its_own_prediction_in_half_of_the_rows():
    task, batch = prior_task()
    config = task.modules["prior"].config
    prior = task.modules["prior"] = PriorTransformer.from_config(config, self_conditioning=True)
    seen, predicted = [], []

    def spy(network, inputs, options, output):
        seen.append(options.get("self_condition"))
        predicted.append(output.predicted_image_embedding)

    prior.register_forward_hook(spy, with_kwargs=True)
    for seed in range(20):
        loss, _ = task.loss(batch, seeded(seed))
    loss.backward()
    assert all(one is None for one in seen[::2]) and prior.self_condition_proj.weight.grad.abs().sum() > 0
    shown = [(condition != 0).any(dim=1) for condition in seen[1::2]]
    for condition, before, rows in zip(seen[1::2], predicted[::2], shown, strict=True):
        assert_close(condition[rows], before[rows])
        assert not condition.requires_grad
    assert 0.2 < torch.cat(shown).float().mean() < 0.8


def test_statistics_of_the_embeddings_standardise_them():
    prior = tiny.components()["prior"]
    embeds = 3 + 5 * torch.randn(50, tiny.WIDTH, generator=seeded())
    set_statistics(prior, embeds)
    standard = (embeds - prior.clip_mean) / prior.clip_std
    assert_close(standard.mean(0), torch.zeros(tiny.WIDTH), atol=1e-5, rtol=0)
    assert_close(standard.std(0), torch.ones(tiny.WIDTH), atol=1e-5, rtol=0)
    embeds[:, 4] = 1.0
    with pytest.raises(ValueError, match=r"must vary and be finite in every dimension; not so \[4\]"):
        set_statistics(prior, embeds)


def test_an_inpainting_decoder_sees_the_mask_and_what_lies_outside_it():
    task, batch = decoder_task(inpaints=True)
    seen = []
    task.predict = lambda sample, *others: seen.append(sample) or torch.zeros_like(batch.pixels)
    task.loss(batch, seeded())
    masked, mask = seen[0][:, 3:6], seen[0][:, 6:]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert_close(masked, batch.pixels * (mask == 0))


def test_crops_lie_where_the_small_pictures_pixels_begin():
    pixels = torch.rand(B, 3, 24, 40, generator=seeded()) * 2 - 1
    batch = random_crops(pixels, seeded(1), size=8)
    whole = torch.nn.functional.avg_pool2d(pixels, 4)
    assert batch.pixels.shape == (B, 3, 8, 8) and batch.low.shape == (B, 3, 2, 2)
    corners = []
    for i in range(B):
        found = [
            (y, x)
            for y in range(5)
            for x in range(9)
            if torch.equal(pixels[i, :, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8], batch.pixels[i])
        ]
        corners += found
        ((y, x),) = found
        assert_close(whole[i, :, y : y + 2, x : x + 2], batch.low[i])
    assert len(set(corners)) > 1
    again = random_crops(pixels, seeded(1), size=8, shrink=bsr)
    assert torch.equal(again.pixels, batch.pixels) and again.low.shape == (B, 3, 2, 2)


@pytest.mark.parametrize("size", [6, 28, 0])
def test_crops_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match="size must be a multiple of 4 and at most 24"):
        random_crops(torch.zeros(1, 3, 24, 40), seeded(), size=size)


def test_small_pictures_that_are_corrupted_already_are_left_alone():
    task, batch = upsampler_task(corrupt=None)
    loss = task.loss(batch, seeded())[0]
    other = copy.deepcopy(task)
    other.corrupt = lambda low, generator: low + 0.1
    assert (other.loss(batch, seeded())[0] - loss).abs() > 1e-6
    assert_close(task.loss(batch, seeded())[0], loss)


def test_captions_that_repeat_in_a_batch_are_no_negatives():
    task, batch = clip_task()
    batch.ids = batch.ids[:1].expand(B, -1)
    batch.negative_ids = batch.negative_ids[:1].expand(2 * B, -1)
    contrastive = task.loss(batch, seeded())[1]["contrastive"]
    assert contrastive < 2.0  # with the three others as negatives it would be at least log 4 on the text side as well
    assert torch.isfinite(torch.tensor(contrastive))


if __name__ == "__main__":
    import tempfile

    recorded = {name: [round(x, 6) for x in curve(name, Path(tempfile.mkdtemp()))] for name in TASKS}
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
