"""A checkpoint of Karlo's real size is converted in about the memory of its largest component."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PRIOR = 2 * 1022_028_544  # bytes of Karlo's prior in float16
# Anonymous memory is what cannot be taken back; a mapped file's pages only cache what is on disk
MEASURE = """
import sys, threading, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from convert_karlo import main  # and with it torch and diffusers, which are not what is measured

def anonymous():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
main(sys.argv[2:], standalone_mode=False)
done.set()
watcher.join()
print("peak", peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_near_the_largest_component(tmp_path):
    source, golden = tmp_path / "source", GOLDEN / "karlo_original"
    source.mkdir()
    for name in ("decoder.ckpt", "decoder.yaml", "improved_sr.ckpt", "improved_sr.yaml", "ViT-L-14.pt", "meta.json"):
        (source / name).symlink_to(golden / name)
    shapes = json.loads((GOLDEN / "original_shapes.json").read_text())["karlo_prior"]
    state = {key: torch.randn(shape, dtype=torch.float16) for key, shape in shapes.items()}
    torch.save({"state_dict": state}, source / "prior.ckpt")
    torch.save((torch.zeros(768), torch.ones(768)), source / "ViT-L-14_stats.th")
    del state
    assert (source / "prior.ckpt").stat().st_size > PRIOR
    command = [sys.executable, "-c", MEASURE, str(ROOT / "conversion"), str(source), "--output", str(tmp_path / "out")]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        written = (tmp_path / "out" / "prior" / "diffusion_pytorch_model.safetensors").stat().st_size
    finally:
        shutil.rmtree(tmp_path)  # 4 GB, which pytest would keep
    peak = int(ran.stdout.split()[-1])
    print(f"peak {peak / 2**20:.0f} MiB for a component of {written / 2**20:.0f} MiB")
    assert PRIOR < written < 1.01 * PRIOR and peak < 1.2 * PRIOR
