"""A run from its first check to its report: what is the same for every network."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unclip_hub.models.lora import save_lora
from unclip_hub.training.checkpoints import newest
from unclip_hub.training.export import write_model
from unclip_hub.training.loop import Stream, moved, train
from unclip_hub.training.lora import merge_lora
from unclip_hub.training.proof import prove
from unclip_hub.training.report import write_report
from unclip_hub.training.runs import Run, this_process
from unclip_hub.training.samples import save_rows


def conduct(
    run: Run,
    config: Any,
    *,
    output: Path,
    base: Path | None,
    facts: dict[str, Any],
    proof_steps: int = 200,
) -> Path:
    """Prove that the run can learn, train it, and write ``output/model`` (or ``lora``) and ``output/report.md``.

    The same call again resumes. With several processes the first one proves and writes.

    Args:
        base: the model whose other components complete the result.
        facts: what the report says of the run, such as its data and its command.
        proof_steps: of the check before the run; 0 leaves it out.

    Raises:
        ValueError: ``output`` is of a run with other settings, or the check failed.
    """
    process = this_process()
    settings = json.loads(json.dumps(asdict(config), default=str)) | {"base": str(base), "data": facts.get("data")}
    adapters = bool(getattr(config, "lora_rank", 0))
    if process.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        _same_run(output / "run.json", settings)
        if proof_steps and newest(output) is None:
            run.task.modules.to(process.device)
            _prove(run, config, output=output, steps=proof_steps, fine_tuned=_starts_from_base(config))
    process.wait_for_everyone()

    fixed = _first_batch(run) if run.draw is not None and not isinstance(run.batches, Stream) else None

    def sample(modules: nn.ModuleDict, step: int) -> None:
        if run.draw is not None and fixed is not None:
            save_rows(run.draw(moved(fixed, next(modules.parameters()).device)), output / "samples.png")

    averaged = train(run.task, run.batches, config.train, output=output, prepare=run.prepare, sample_fn=sample)
    if not process.is_main_process:
        return output
    run.task.modules.load_state_dict(torch.load(averaged, weights_only=True))
    run.task.modules.eval().to("cpu")
    if adapters:
        result = save_lora(run.networks, output / "lora")
        merge_lora(run.task.modules)
    else:
        result = write_model(output / "model", {**run.networks, **run.others}, base=base)
    parameters = sum(p.numel() for network in run.networks.values() for p in network.parameters())
    proof = output / "proof.txt"
    write_report(
        output,
        title=f"Training of {', '.join(run.networks)}",
        facts={**facts, "parameters": f"{parameters / 1e6:.2f} million", "result": result.relative_to(output)},
        proof=proof.read_text() if proof.exists() else None,
        samples="samples.png" if (output / "samples.png").exists() else None,
    )
    return output


def _starts_from_base(config: Any) -> bool:
    return getattr(config, "start", "scratch") == "base"


def _same_run(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to resume a run with other settings: it would not be the run that the folder's report describes."""
    if path.exists():
        before = json.loads(path.read_text())
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            then, now = ({name: state.get(name) for name in changed} for state in (before, settings))
            raise ValueError(
                f"{path.parent} is of a run with other settings: {then}, now {now}; choose another folder"
            )
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(settings, indent=2) + "\n")
    os.replace(partial, path)


def _prove(run: Run, config: Any, *, output: Path, steps: int, fine_tuned: bool) -> None:
    device = next(run.task.modules.parameters()).device
    proof = prove(
        run.task, moved(_first_batch(run), device), lr=config.train.lr, steps=steps, at_most=1.0 if fine_tuned else 0.7
    )
    print(proof, file=sys.stderr)
    (output / "proof.txt").write_text(str(proof))


def _first_batch(run: Run) -> Any:
    """A batch to look at; of a stream it is the first one, which the run then does not see again."""
    raw = next(run.batches) if isinstance(run.batches, Stream) else run.batches(0)
    return run.prepare(raw, torch.Generator().manual_seed(0))
