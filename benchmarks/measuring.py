"""What the benchmarks of speed share: the machine, numbers with their spread, fresh processes, the file of results."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def facts() -> dict[str, Any]:
    """The machine, the versions, the command and the date."""
    return {
        "date": date.today().isoformat(),
        "command": " ".join(["python", *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv)]),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; without that it is converted back and forth, and slower."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def gflops(dtype: torch.dtype = torch.float32, *, seconds: float = 1.0) -> dict[str, float]:
    """This machine's rates, now: of a large matrix product, and of a 3 x 3 convolution of Karlo's decoder."""
    a, b = torch.randn(2, 1536, 1536).to(dtype)
    image, weight = torch.randn(2, 320, 64, 64).to(dtype), torch.randn(320, 320, 3, 3).to(dtype)
    return {
        "matrix product": _rate(lambda: a @ b, 2 * 1536**3, seconds),
        "convolution": _rate(
            lambda: torch.nn.functional.conv2d(image, weight, padding=1), 2 * 2 * 64**2 * 9 * 320**2, seconds
        ),
    }


def spread(values: Sequence[float], *, digits: int = 4) -> dict[str, float]:
    """Median, least and greatest."""
    ordered = sorted(values)
    found = {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}
    return {name: float(f"{value:.{digits}g}") for name, value in found.items()}


def difference(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """How far two results are apart: at most, and root mean square, absolute; beside how large they are."""
    off = (a.double() - b.double()).abs()
    found = {"max": off.max(), "rms": off.square().mean().sqrt(), "magnitude": a.double().abs().max()}
    return {name: float(f"{float(value):.2g}") for name, value in found.items()}


def memory_mib() -> dict[str, float]:
    """What this process holds now, and the most that it ever held, both resident."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where it counts in bytes
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {"now": most, "most": most}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    # not ru_maxrss: a child inherits its parent's
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("most", "VmHWM"))}


def fresh_process(script: Path, *arguments: str, threads: int) -> tuple[dict[str, Any], float]:
    """What a script prints as its last line, JSON, in a process of its own; and how long that process took."""
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if ran.returncode != 0:
        return {"failed": (ran.stderr.strip().splitlines() or ["without a word"])[-1]}, seconds
    return json.loads(ran.stdout.strip().splitlines()[-1]), seconds


def keep(path: Path, section: str, key: str, result: Mapping[str, Any]) -> None:
    """Put a result into the file of all results, in the place of an older one under the same section and key."""
    held = json.loads(path.read_text()) if path.exists() else {}
    held.setdefault(section, {})[key] = result
    ordered = {name: dict(sorted(held[name].items())) for name in sorted(held)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(ordered, indent=1) + "\n")
    os.replace(temporary, path)


def _rate(work: Any, operations: int, seconds: float) -> float:
    work()
    times, until = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return round(operations / min(times) / 1e9, 1)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
