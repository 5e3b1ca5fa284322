"""One contender in a process of its own, for `bench_sampling.py`: its memory, or how long it takes to a first picture.

    python benchmarks/fresh_process.py first-picture ours
    python benchmarks/fresh_process.py memory diffusers --size karlo --stage decoder

The last line printed is JSON. Modules are imported where they are needed, as importing is what is measured.
"""

import json
import time
from pathlib import Path
from typing import Any

import click


CAPTION = "a koala above a pumpkin at sunset"


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.argument("contender", type=click.Choice(["ours", "diffusers", "diffusers, opening the folder"]))
def first_picture(contender: str) -> None:
    """Import, load and generate with the bundled model; seconds of each."""
    started = time.perf_counter()
    if contender == "ours":
        from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline

        UnCLIPPipeline.from_pretrained  # noqa: B018  importing is lazy
        imported = time.perf_counter()
        pipe: Any = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
        options: dict[str, Any] = {}
    elif contender == "diffusers":
        import diffusers_assembly

        from unclip_hub import BUNDLED_MODEL

        imported = time.perf_counter()
        pipe = diffusers_assembly.from_folder(Path(BUNDLED_MODEL))
        options = json.loads((Path(BUNDLED_MODEL) / "model_index.json").read_text())["sampling_defaults"]
        del options["output_size"]  # diffusers knows one, this one
    else:
        from diffusers import UnCLIPPipeline as DiffusersPipeline  # pyright: ignore[reportPrivateImportUsage]

        from unclip_hub import BUNDLED_MODEL

        imported = time.perf_counter()
        pipe, options = DiffusersPipeline.from_pretrained(BUNDLED_MODEL), {}
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    pipe(CAPTION, **options)
    done = time.perf_counter()
    _print({"import": imported - started, "load": loaded - imported, "generate": done - loaded})


@main.command()
@click.argument("contender", type=click.Choice(["ours", "diffusers", "Karlo's loop"]))
@click.option("--size", type=click.Choice(["bundled", "karlo"]), default="bundled", show_default=True)
@click.option("--stage", default="decoder", show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--steps", default=2, show_default=True)
def memory(contender: str, size: str, stage: str, batch: int, steps: int) -> None:
    """The most that the process held, and how much of that was beyond the loaded weights; MiB, resident."""
    import gc

    import diffusers_assembly
    import measuring
    from diffusers_peer import theirs
    from sampling_contenders import Inputs, karlo_loop, ours
    from sampling_networks import pipeline

    pipe = pipeline(size, stage=stage)
    inputs = Inputs.of(pipe, size=size, batch=batch)
    if contender == "diffusers":
        run = theirs(diffusers_assembly.twin(pipe), inputs)
    else:
        run = (ours if contender == "ours" else karlo_loop)(pipe, inputs)
    del pipe
    gc.collect()
    before = measuring.memory_mib()
    run(stage, steps)
    after = measuring.memory_mib()
    _print({"most": after["most"], "loaded": before["now"], "beyond the weights": after["most"] - before["now"]})


def _print(found: dict[str, float]) -> None:
    click.echo(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
