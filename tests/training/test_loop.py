"""The loop: exact resumption, honest averages, clear failures."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

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


class BigTask(LineTask):
    """With 60 parameters more, which count towards the room that a checkpoint needs."""

    def __init__(self):
        super().__init__()
        self.modules["more"] = nn.Linear(60, 1, bias=False)

    def loss(self, batch, generator):
        loss, stats = super().loss(batch, generator)
        return loss + self.modules["more"].weight.square().mean(), stats


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


def test_gradients_that_are_not_finite_are_skipped_and_counted(tmp_path):
    def broken(step):
        return batches(step) * (torch.nan if step in (3, 7, 8) else 1)

    task = LineTask()
    train(task, broken, CONFIG, output=tmp_path)
    assert task.modules["line"].weight.isfinite().all()
    skipped = [json.loads(line)["skipped"] for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert skipped == [0.2, 0.4, 0, 0]


def test_nothing_but_gradients_that_are_not_finite_stops_and_names_the_last_checkpoint(tmp_path):
    train(LineTask(), batches, replace(CONFIG, steps=5), output=tmp_path)
    message = r"not finite in 11 steps in a row \(loss nan\); the last good checkpoint is .*step-00000005$"
    with pytest.raises(FloatingPointError, match=message):
        train(LineTask(), lambda step: batches(step) * torch.nan, CONFIG, output=tmp_path)


def test_divergence_stops(tmp_path):
    def explode(step):
        return batches(step) * (1 if step < 10 else 1e3)

    with pytest.raises(FloatingPointError, match=r"the loss rose from .* to .*; there is no checkpoint yet"):
        train(LineTask(), explode, CONFIG, output=tmp_path)


def test_accumulation_is_one_larger_batch(tmp_path):
    class Plain(LineTask):
        def loss(self, batch, generator):
            return (self.modules["line"](batch) - 2 * batch).square().mean(), {}

    halves, whole = Plain(), Plain()
    train(halves, batches, replace(CONFIG, accumulate=2), output=tmp_path / "halves")
    train(whole, lambda n: torch.cat([batches(2 * n), batches(2 * n + 1)]), CONFIG, output=tmp_path / "whole")
    assert_close(halves.modules.state_dict(), whole.modules.state_dict())


def test_batches_made_ahead_are_the_same(tmp_path):
    here, ahead = LineTask(), LineTask()
    train(here, batches, CONFIG, output=tmp_path / "here")
    train(ahead, batches, replace(CONFIG, workers=2), output=tmp_path / "ahead")
    assert torch.equal(here.modules["line"].weight, ahead.modules["line"].weight)


def test_a_stream_continues_where_it_stopped(tmp_path):
    class Numbers:
        def __init__(self):
            self.position = 0

        def __next__(self):
            self.position += 1
            return batches(self.position)

        def state_dict(self):
            return {"position": self.position}

        def load_state_dict(self, state):
            self.position = state["position"]

    whole, halves = LineTask(), LineTask()
    schedule = replace(CONFIG, warmup=1, decay_from=1.0)
    train(whole, Numbers(), schedule, output=tmp_path / "whole")
    train(halves, Numbers(), replace(schedule, steps=10), output=tmp_path / "halves")
    train(halves, Numbers(), schedule, output=tmp_path / "halves")
    assert torch.equal(whole.modules["line"].weight, halves.modules["line"].weight)


def test_two_precisions_in_one_process(tmp_path):
    for precision in ("bf16", "no", "auto"):
        train(LineTask(), batches, replace(CONFIG, precision=precision), output=tmp_path / precision)


@pytest.mark.parametrize(("free", "refused"), [(100, True), (10**9, False)])
def test_a_disk_without_room_is_reported_before_training(tmp_path, monkeypatch, free, refused):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(OSError, match=r"need .* GB, its disk has 0.00 GB free") if refused else nullcontext():
        train(BigTask(), batches, replace(CONFIG, steps=1), output=tmp_path)


def test_a_folder_of_another_network_is_refused(tmp_path):
    train(LineTask(), batches, CONFIG, output=tmp_path)
    with pytest.raises(ValueError, match="is of a different network"):
        train(LineTask(width=2), batches, CONFIG, output=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"steps": 0}, "steps must be"), ({"ema": 1.0}, "ema must be"), ({"precision": "fp8"}, "precision must be")],
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


@pytest.mark.compile
def test_compiled_networks_learn_the_same_and_are_not_compiled_again_for_samples(tmp_path):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    graphs = []

    class Line(nn.Linear):  # what is PyTorch's own is not compiled by itself
        def forward(self, x):
            return super().forward(x)

    def task():
        made = LineTask()
        made.modules["line"] = Line(1, 1)
        made.modules["line"].load_state_dict(LineTask().modules["line"].state_dict())
        return made

    def sample(modules, step):
        modules["line"](torch.zeros(3, 2, 1))
        graphs.append(counters["stats"]["unique_graphs"])

    for compile in (False, True):
        config = replace(CONFIG, compile=compile)
        train(task(), batches, config, output=tmp_path / str(compile), sample_fn=sample)
    assert graphs == [0, 1]
    compiled = weights(tmp_path / "True" / "ema.pt")
    for name, value in weights(tmp_path / "False" / "ema.pt").items():
        assert_close(compiled[name], value)
