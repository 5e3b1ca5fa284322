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
from unclip_hub.training.bands import outside
from unclip_hub.training.checkpoints import newest
from unclip_hub.training.export import write_model
from unclip_hub.training.loop import Stream, moved, train
from unclip_hub.training.lora import merge_lora
from unclip_hub.training.proof import prove
from unclip_hub.training.report import read_stats, write_report
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
    if run.fit is not None:
        return _fitted(run, config, output=output, base=base, facts=facts)
    process = this_process()
    settings = _settings(config, base=base, facts=facts)
    adapters = bool(getattr(config, "lora_rank", 0))
    if process.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        _same_run(output / "run.json", settings)
        run.task.modules.to(process.device)
        first = moved(_first_batch(run), next(run.task.modules.parameters()).device)
        bands = {} if run.bands is None else run.bands(first)
        if proof_steps and newest(output) is None:
            _prove(run, first, config, output=output, steps=proof_steps, fine_tuned=_starts_from_base(config))
    process.wait_for_everyone()

    def sample(modules: nn.ModuleDict, step: int) -> None:
        if run.draw is not None:
            save_rows(run.draw(first), output / "samples.png")
        if bands and (numbers := read_stats(output)):
            print(f"step {step}: {outside(numbers[-1], bands)}", file=sys.stderr)

    averaged = train(run.task, run.batches, config.train, output=output, prepare=run.prepare, sample_fn=sample)
    if not process.is_main_process:
        return output
    run.task.modules.load_state_dict(torch.load(averaged, weights_only=True))
    run.task.modules.eval().to("cpu")
    if adapters:
        result = save_lora(run.networks, output / "lora")
        merge_lora(run.task.modules)
    else:
        parts = {**run.networks, **run.others}
        result = write_model(output / "model", parts, base=base, sampling_defaults=run.sampling_defaults)
    proof = output / "proof.txt"
    write_report(
        output,
        title=f"Training of {', '.join(run.networks)}",
        facts={**facts, **_size(run), "result": result.relative_to(output)},
        proof=proof.read_text() if proof.exists() else None,
        samples="samples.png" if (output / "samples.png").exists() else None,
        bands=bands,
    )
    return output


def _fitted(run: Run, config: Any, *, output: Path, base: Path | None, facts: dict[str, Any]) -> Path:
    """A run without steps, which there is nothing to resume of."""
    assert run.fit is not None
    output.mkdir(parents=True, exist_ok=True)
    _same_run(output / "run.json", _settings(config, base=base, facts=facts))
    fitted = run.fit()
    parts = {**run.networks, **run.others}
    result = write_model(output / "model", parts, base=base, sampling_defaults=run.sampling_defaults)
    report = {**facts, **_size(run), **fitted, "result": result.relative_to(output)}
    write_report(output, title=f"Training of {', '.join(run.networks)}", facts=report)
    return output


def _settings(config: Any, *, base: Path | None, facts: dict[str, Any]) -> dict[str, Any]:
    """What makes a run this run, as JSON has it."""
    return json.loads(json.dumps(asdict(config), default=str)) | {"base": str(base), "data": facts.get("data")}


def _size(run: Run) -> dict[str, str]:
    parameters = sum(p.numel() for network in run.networks.values() for p in network.parameters())
    return {"parameters": f"{parameters / 1e6:.2f} million"}


def _starts_from_base(config: Any) -> bool:
    return getattr(config, "start", "scratch") != "scratch"


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


def _prove(run: Run, batch: Any, config: Any, *, output: Path, steps: int, fine_tuned: bool) -> None:
    proof = prove(run.task, batch, lr=config.train.lr, steps=steps, at_most=1.0 if fine_tuned else run.learnable)
    print(proof, file=sys.stderr)
    (output / "proof.txt").write_text(str(proof))


def _first_batch(run: Run) -> Any:
    """A batch to look at; a stream is put back to where it was."""
    if isinstance(run.batches, Stream):
        place = run.batches.state_dict()
        raw = next(run.batches)
        run.batches.load_state_dict(place)
    else:
        raw = run.batches(0)
    return run.prepare(raw, torch.Generator().manual_seed(0))
