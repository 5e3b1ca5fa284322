"""Trainings as real processes: two that share a step under torchrun, and one that is killed again and again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close


RUN = """
import dataclasses
import sys
from pathlib import Path
import torch
from torch import nn
from unclip_hub.training.loop import TrainConfig, train

torch.set_num_threads(1)

class Task:
    def __init__(self):
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 3))})

    def loss(self, batch, generator):
        noise = torch.randn(batch.shape, generator=generator)
        return (self.modules["net"](batch + noise) - batch).square().mean(), {}

def batches(n):
    PAUSE
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(n))

steps, accumulate, minutes = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
config = TrainConfig(steps=steps, lr=1e-2, accumulate=accumulate, precision="no", ema=0.9, log_every=5)
config = dataclasses.replace(config, checkpoint_minutes=minutes)
train(Task(), batches, config, output=Path(sys.argv[1]))
"""


def script(folder, pause=0.0):
    path = folder / "run.py"
    path.write_text(RUN.replace("PAUSE", f"import time; time.sleep({pause})"))
    return str(path)


def weights(folder):
    return torch.load(folder / "ema.pt", weights_only=True)


def test_two_processes_make_the_gradients_of_one_with_twice_the_batch(tmp_path):
    run = script(tmp_path)
    one = [sys.executable, run, str(tmp_path / "one"), "20", "2", "9"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", run]
    subprocess.run(one, check=True, capture_output=True)
    subprocess.run([*two, str(tmp_path / "two"), "20", "1", "9"], check=True, capture_output=True)
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"))
    assert len((tmp_path / "two" / "stats.jsonl").read_text().splitlines()) == 4  # one process writes


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again_it_ends_at_the_same_weights(tmp_path):
    """kill -9, while it starts, between steps and while it writes."""
    run = script(tmp_path, pause=0.05)
    command = [sys.executable, run, str(tmp_path / "killed"), "300", "1", "0"]  # a checkpoint at every step
    moments, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ)
        deadline = time.monotonic() + moments.uniform(0.5, 1.5) + (4 + kills / 2)  # torch takes seconds to import
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0, process.stderr.read()
    assert kills >= 3
    subprocess.run([sys.executable, script(tmp_path), str(tmp_path / "whole"), "300", "1", "9"], check=True)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "killed")[name], value)
    lines = Path(tmp_path / "killed" / "stats.jsonl").read_text().splitlines()
    assert len(lines) == 60
