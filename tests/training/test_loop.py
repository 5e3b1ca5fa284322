"""The loop: exact resumption, honest averages, clear failures."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unclip_hub.training.loop import TrainConfig, train


CONFIG = TrainConfig(steps=20, lr=1e-2, warmup=4, log_every=5, precision="no", ema=0.9)


class LineTask:
    """y = 2 x + 1 from noisy pairs: the smallest thing with weights, noise and a batch."""

    def __init__(self, width=1):
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"line": nn.Linear(width, 1)})

    def loss(self, batch, generator):
        noise = 0.1 * torch.randn(batch.shape, generator=generator)
        error = self.modules["line"](batch) - (2 * batch + 1 + noise)
        return error.square().mean(), {"bias": self.modules["line"].bias.item()}


def batches(step):
    return torch.randn(8, 1, generator=torch.Generator().manual_seed(step))


def weights(path):
    return torch.load(path, weights_only=True)


def test_ten_and_ten_steps_equal_twenty_to_the_bit(tmp_path):
    whole, halves = LineTask(), LineTask()
    train(whole, batches, CONFIG, output=tmp_path / "whole")

    class Killed(Exception):
        pass

    def until_ten(step):
        if step == 10:
            raise Killed
        return batches(step)

    saving = replace(CONFIG, checkpoint_minutes=0.0)
    with pytest.raises(Killed):
        train(halves, until_ten, saving, output=tmp_path / "halves")
    resumed = LineTask()
    train(resumed, batches, saving, output=tmp_path / "halves")
    for name, value in weights(tmp_path / "whole" / "ema.pt").items():
        assert torch.equal(weights(tmp_path / "halves" / "ema.pt")[name], value)
    assert torch.equal(whole.modules["line"].weight, resumed.modules["line"].weight)
    steps = [json.loads(line)["step"] for line in (tmp_path / "halves" / "stats.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20]


def test_running_a_finished_training_again_changes_nothing(tmp_path):
    train(LineTask(), batches, CONFIG, output=tmp_path)
    before = weights(tmp_path / "ema.pt")
    train(LineTask(), lambda step: pytest.fail("trained on"), CONFIG, output=tmp_path)
    for name, value in weights(tmp_path / "ema.pt").items():
        assert torch.equal(before[name], value)


def test_the_average_lies_between_start_and_end_and_is_not_the_end(tmp_path):
    task = LineTask()
    start = task.modules["line"].weight.item()
    train(task, batches, replace(CONFIG, steps=40), output=tmp_path)
    end, mean = task.modules["line"].weight.item(), weights(tmp_path / "ema.pt")["line.weight"].item()
    assert min(start, end) < mean < max(start, end)


def test_sample_fn_sees_the_averaged_weights_in_eval_mode(tmp_path):
    seen = []

    def sample(modules, step):
        seen.append((step, modules.training, modules["line"].weight.item()))

    train(LineTask(), batches, CONFIG, output=tmp_path, sample_fn=sample)
    assert seen[-1][:2] == (20, False)
    assert seen[-1][2] == weights(tmp_path / "ema.pt")["line.weight"].item()


def test_learning_rate_rises_stays_and_falls():
    config = TrainConfig(steps=100, lr=1.0, warmup=10, decay_from=0.5, final_lr_ratio=0.1)
    assert config.lr_at(0) == pytest.approx(0.1)
    assert config.lr_at(9) == config.lr_at(50) == 1.0
    assert config.lr_at(75) == pytest.approx(0.55)
    assert config.lr_at(100) == pytest.approx(0.1)


def test_a_loss_that_is_not_finite_stops_and_names_the_last_checkpoint(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"loss is nan at step 3; the last good checkpoint is .*checkpoint.pt"
    ):
        train(LineTask(), lambda step: batches(step) * (1 if step < 3 else torch.nan), CONFIG, output=tmp_path)


def test_a_folder_of_another_network_is_refused(tmp_path):
    train(LineTask(), batches, CONFIG, output=tmp_path)
    with pytest.raises(ValueError, match="is of a different network"):
        train(LineTask(width=2), batches, CONFIG, output=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"steps": 0}, "steps must be"), ({"ema": 1.0}, "ema must be"), ({"precision": "fp16"}, "precision must be")],
)
def test_configurations_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **wrong)


def test_biases_and_gains_do_not_decay(tmp_path):
    """With a loss of zero gradient only weight decay moves weights."""

    class Still(LineTask):
        def loss(self, batch, generator):
            return 0 * sum(p.sum() for p in self.modules.parameters()), {}

    task = Still()
    before = {name: value.clone() for name, value in task.modules.state_dict().items()}
    train(task, batches, replace(CONFIG, weight_decay=0.5, lr=0.1), output=tmp_path)
    assert_close(task.modules["line"].bias, before["line.bias"])
    assert task.modules["line"].weight.abs() < before["line.weight"].abs() * 0.95
