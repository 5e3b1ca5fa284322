"""Each tracker gets the numbers, offline, and a resumed run goes on where it stopped."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from unclip_hub.training import tracking
from unclip_hub.training.loop import TrainConfig, train
from unclip_hub.training.tracking import chosen_tracker


CONFIG = TrainConfig(steps=4, lr=1e-2, warmup=1, log_every=2, precision="no", decay_from=1.0)
STEPS = [2, 4, 6, 8]


class Line:
    def __init__(self):
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"line": nn.Linear(1, 1)})

    def loss(self, batch, generator):
        return (self.modules["line"](batch) - 2 * batch).square().mean(), {}


def trained_twice(output, tracker):
    """Four steps, then four more by another call."""
    for steps in (4, 8):
        train(Line(), lambda n: torch.ones(3, 1), replace(CONFIG, steps=steps, tracker=tracker), output=output)
    return [json.loads(line)["loss"] for line in (output / "stats.jsonl").read_text().splitlines()]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="the tracker is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = trained_twice(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [one.step for one in events.Scalars("loss")] == STEPS
    assert [one.value for one in events.Scalars("loss")] == pytest.approx(losses, rel=1e-4)
    assert {"loss", "grad_norm", "skipped", "lr"} <= set(events.Tags()["scalars"])


def test_what_keeps_runs_in_a_place_of_its_own(tmp_path):
    """In a process of its own: where they keep them is read when they are imported."""
    installed = [name for name in ("trackio", "wandb") if find_spec(name)]
    if not installed:
        pytest.skip("neither trackio nor wandb is installed")
    places = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), *installed],
        env={**os.environ, **places, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses, tracked = json.loads((tmp_path / "found.json").read_text())
    if "trackio" in installed:
        (rows,) = tracked  # one run, continued and not begun anew
        assert [row["step"] for row in rows] == STEPS
        assert [row["loss"] for row in rows] == pytest.approx(losses["trackio"], rel=1e-4)
        assert all(row["lr"] > 0 for row in rows)
    if "wandb" in installed:
        assert len(list((tmp_path / "wandb").glob("wandb/offline-run-*/*.wandb"))) == 2


def test_auto_is_trackio_where_there_is_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    assert chosen_tracker("auto") == "trackio"
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert chosen_tracker("auto") is None
    train(Line(), lambda n: torch.ones(3, 1), replace(CONFIG, tracker="auto"), output=tmp_path)
    assert f"curves: {tmp_path / 'stats.jsonl'}; to watch them while it trains: pip install trackio" in (
        capsys.readouterr().out
    )


def test_a_tracker_that_is_not_installed_is_said_to_be_missing_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="the tracker wandb is not installed: pip install wandb"):
        train(Line(), pytest.fail, replace(CONFIG, tracker="wandb"), output=tmp_path)
    assert chosen_tracker("none") is None


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ValueError, match="tracker must be one of .*'trackio'.*, got 'paper'"):
        replace(CONFIG, tracker="paper")


if __name__ == "__main__":
    folder, installed = Path(sys.argv[1]), sys.argv[2:]
    losses, tracked = {name: trained_twice(folder / name, name) for name in installed}, []
    if "trackio" in installed:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        runs = trackio.Api().runs(tracking.PROJECT)
        tracked = [SQLiteStorage.get_logs(tracking.PROJECT, run_id=run.id) for run in runs]
    (folder / "found.json").write_text(json.dumps([losses, tracked], default=str))
