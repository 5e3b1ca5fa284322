"""Every network's loss: it falls, it depends on the condition, and its curve is the recorded one."""

import json
from pathlib import Path

import pytest
import torch
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub.conditioning import Conditioning
from unclip_hub.training.clip import ClipBatch, ClipTask
from unclip_hub.training.decoder import DecoderBatch, DecoderTask, Drops
from unclip_hub.training.loop import TrainConfig, train
from unclip_hub.training.prior import PriorBatch, PriorTask
from unclip_hub.training.upsampler import UpsamplerBatch, UpsamplerTask


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


def prior_task():
    prior = trainable(tiny.components()["prior"])
    cond = conditioning(B)
    return PriorTask(prior, empty=conditioning(1, seed=9)), PriorBatch(cond.image_embed, cond)


def decoder_task(**options):
    parts = tiny.components(karlo=False)
    task = DecoderTask(
        trainable(parts["decoder"]), trainable(parts["text_proj"]), empty=conditioning(1, seed=9), **options
    )
    return task, DecoderBatch(torch.rand(B, 3, 16, 16, generator=seeded(1)) * 2 - 1, conditioning(B))


def upsampler_task():
    torch.manual_seed(0)
    task = UpsamplerTask(tiny.upsampler())
    pixels = torch.rand(B, 3, 16, 24, generator=seeded(1)) * 2 - 1
    return task, UpsamplerBatch(pixels=pixels, low=torch.nn.functional.avg_pool2d(pixels, 4))


TASKS = {"clip": clip_task, "prior": prior_task, "decoder": decoder_task, "upsampler": upsampler_task}


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
    losses = curve(name, tmp_path, steps=80)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


@pytest.mark.parametrize("name", TASKS)
def test_gradients_reach_every_trained_parameter(name):
    task, batch = TASKS[name]()
    generator = seeded(1)
    for _ in range(12):  # enough draws for every drop case to occur
        task.loss(batch, generator)[0].backward()
    still = [n for n, p in task.modules.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert still == []


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

    def spy(x_t, t, condition, keep_image):
        kept["image"] += keep_image.sum().item()
        kept["caption"] += (condition.text_embed == big.text_embed).all(1).sum().item()
        return type("Output", (), {"float": lambda self: torch.zeros(2000, 3, 2, 2)})()

    task._forward = spy
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
