"""A one-step prior in two processes learns what one process with both their batches learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from training import one_step_in_processes


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path):
    script = Path(one_step_in_processes.__file__)
    environment = os.environ | {"PYTHONPATH": str(script.parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    ranks = range(one_step_in_processes.PROCESSES)
    running = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], env=environment) for rank in ranks
    ]
    try:
        assert [process.wait(timeout=300) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in ranks]
    whole = one_step_in_processes.gradients(None)
    assert_close(sum(both.pop("loss") for both in found) / len(found), whole.pop("loss"))
    for both in found:
        assert_close(both, whole, rtol=1e-4, atol=1e-6)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3
