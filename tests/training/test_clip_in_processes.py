"""CLIP in two processes learns what one process with both their batches learns."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.testing import assert_close
from training import clip_in_processes


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path):
    script = Path(clip_in_processes.__file__)
    source = str(script.parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], env=environment)
        for rank in range(clip_in_processes.PROCESSES)
    ]
    try:
        assert [process.wait(timeout=120) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(clip_in_processes.PROCESSES)]
    for i, pairwise in enumerate((False, True)):
        whole = clip_in_processes.gradients(pairwise=pairwise, rank=None)
        losses = [both[i].pop("loss") for both in found]
        assert_close(sum(losses) / len(losses), whole.pop("loss"))
        for both in found:
            assert_close(both[i], whole, rtol=1e-4, atol=1e-6)
        names = [name for name in whole if not name.endswith("k_proj.bias")]  # softmax takes no notice of it
        assert all(whole[name].abs().max() > 1e-6 for name in names)
