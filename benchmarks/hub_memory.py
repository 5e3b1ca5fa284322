"""How much memory a push and a pull take: a model of this size goes to a Hub on the loopback and comes back.

    python benchmarks/hub_memory.py --gigabytes 1

Each runs in a process of its own; what is printed is the most that it held at once.
"""

import filecmp
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import click

import unclip_hub
from unclip_hub import BUNDLED_MODEL, PriorTransformer, UnCLIPPipeline
from unclip_hub.hub.card import write_card
from unclip_hub.hub.card_facts import Facts
from unclip_hub.models.expected import expected


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
WEIGHTS = Path("prior") / "diffusion_pytorch_model.safetensors"
RUN = "from unclip_hub.cli import main; main()"


@click.command(help=__doc__)
@click.option("--gigabytes", default=1.0, show_default=True)
def main(gigabytes: float) -> None:
    from hub.server import serving

    with tempfile.TemporaryDirectory() as temporary, serving(Path(temporary) / "hub", part_size=100_000_000) as hub:
        here = Path(temporary)
        size = _write_model(here / "model", size=gigabytes * 1e9)
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(here / "home"), "HF_TOKEN": "someone-token"}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        env |= {"PYTHONPATH": str(Path(unclip_hub.__file__).parents[1])}
        report: dict[str, object] = {"gigabytes": round(size / 1e9, 3)}
        for name, arguments in {
            "nothing (push --dry-run)": ["push", str(here / "model"), "someone/large", "--dry-run"],
            "push": ["push", str(here / "model"), "someone/large"],
            "pull": ["pull", "someone/large", "--to", str(here / "back")],
        }.items():
            seconds, peak = _measured([sys.executable, "-c", RUN, *arguments], env)
            report[name] = {"peak MB": peak, "seconds": seconds}
        if not filecmp.cmp(here / "model" / WEIGHTS, here / "back" / WEIGHTS, shallow=False):
            raise click.ClickException("what came back is not what was sent")
        click.echo(json.dumps(report, indent=1))


def _write_model(folder: Path, *, size: float) -> int:
    """The bundled model with a prior of this size, all zeros; only its header is written, the rest is a hole."""
    pipe = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text(write_card(Facts(license="apache-2.0")))
    assert pipe.prior is not None
    config = dict(pipe.prior.config) | {"num_attention_heads": 32, "attention_head_dim": 64}
    one, two = (_bytes(config | {"num_layers": layers}) for layers in (1, 2))
    config["num_layers"] = max(1, round((size - one) / (two - one)) + 1)
    (folder / "prior" / "config.json").write_text(json.dumps(config))
    shapes, _ = expected(PriorTransformer, config)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        file.seek(8 + len(text) + header["clip_std"]["data_offsets"][0])
        file.write(struct.pack("<f", 1.0) * prod(shapes["clip_std"]))  # a prior without them is refused
    return 8 + len(text) + end


def _bytes(config: dict) -> int:
    return 4 * sum(map(prod, expected(PriorTransformer, config)[0].values()))


def _measured(command: list[str], env: dict[str, str]) -> tuple[float, int]:
    """Seconds, and the peak of resident memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"{command[3]} failed")
    assert isinstance(usage, resource.struct_rusage)
    return round(time.perf_counter() - started, 1), usage.ru_maxrss // 1000


if __name__ == "__main__":
    main()
