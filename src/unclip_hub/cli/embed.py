"""`unclip embed`: the CLIP embeddings of a dataset, computed once and kept in shards."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unclip_hub import BUNDLED_MODEL
from unclip_hub.cli import plain_errors


if TYPE_CHECKING:
    from unclip_hub.data.captioned import Sample
    from unclip_hub.data.embeddings import EmbeddedBatch, Manifest
    from unclip_hub.data.sources import Position
    from unclip_hub.pipelines.encoders import CLIPEncoders


@click.command(name="embed")
@click.argument("data", metavar="DATA")
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), required=True, help="A folder.")
@click.option("--model", metavar="FOLDER_OR_REPO", help="Whose encoders. [default: the bundled model]")
@click.option("--shard-size", type=click.IntRange(min=1), default=2048, help="Pictures per shard. [default: 2048]")
@click.option("--batch", type=click.IntRange(min=1), default=32, help="Pictures at a time. [default: 32]")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", help="Of what is stored.")
@click.option("--images-only", is_flag=True, help="Leave the captions' embeddings out; the captions are kept.")
@click.option("--exclude", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Leave these keys out.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="[default: auto]")
@click.option("--threads", type=click.IntRange(min=1), help="That decode. [default: one per core]")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    data: str,
    *,
    output: Path,
    model: str | None,
    shard_size: int,
    batch: int,
    dtype: str,
    images_only: bool,
    exclude: Path | None,
    device: str,
    threads: int | None,
    quiet: bool,
    debug: bool,
) -> None:
    """Compute the CLIP embeddings of the pictures and captions of DATA, for training to read.

    Interrupted at any moment, the same command continues where it was. For the forms of DATA see `unclip data check`,
    which also says what is wrong with it.

    Example: unclip embed photos --model kakaobrain/karlo-v1-alpha-image-variations --output embeddings --dtype float16
    """
    with plain_errors(debug=debug):
        from unclip_hub.data.captioned import BrokenSample
        from unclip_hub.data.embeddings import Embeddings
        from unclip_hub.data.sources import open_data

        source: Any = open_data(data, exclude=exclude)
        if isinstance(source, Embeddings):
            raise ValueError(f"{data} holds embeddings already: expected captioned pictures")
        _check_output(output)
        encoders = _load(model or BUNDLED_MODEL, device=device)
        made_of = {
            "data": data,
            "exclude": hashlib.sha256(exclude.read_bytes()).hexdigest() if exclude else None,
            "encoders": _fingerprint(encoders),
            "shard_size": shard_size,
            "dtype": dtype,
            "images_only": images_only,
        }
        manifest, start = _manifest(output, made_of, source)
        try:
            if not manifest.complete:
                _embed(source, encoders, output, manifest, start=start, batch=batch, threads=threads, quiet=quiet)
        except BrokenSample as problem:
            cure = "`unclip data check DATA --fix-list LIST` names all that is wrong, --exclude LIST leaves it out"
            raise ValueError(f"{problem}; {cure}") from problem
        click.echo(f"{output}: {manifest.rows} rows in {len(manifest.shards)} shards")


def _check_output(output: Path) -> None:
    from unclip_hub.data.embeddings import MANIFEST

    output.mkdir(parents=True, exist_ok=True)
    for partial in output.glob(".*.partial"):  # of a run that was killed
        partial.unlink()
    if any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise ValueError(f"{output} holds other files: expected a new folder, or one of an `unclip embed` to continue")


def _load(model: str, *, device: str) -> "CLIPEncoders":
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from unclip_hub.hub.locate import locate
    from unclip_hub.pipelines.encoders import CLIPEncoders

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no CUDA device here: use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # of captions that are cut off, among others
    folder = locate(model)
    lacking = [name for name in ("text_encoder", "image_encoder") if not (folder / name).is_dir()]
    if lacking:
        raise ValueError(f"{model} has no {' and no '.join(lacking)}: expected a model that holds both of CLIP's")
    return CLIPEncoders.from_pretrained(folder).to(device)


def _fingerprint(encoders: "CLIPEncoders") -> str:
    """A hash of both encoders' weights."""
    import torch

    digest = hashlib.sha256()
    for encoder in (encoders.text_encoder, encoders.image_encoder):
        assert encoder is not None
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _manifest(output: Path, made_of: dict[str, Any], source: Any) -> "tuple[Manifest, Position]":
    """The folder's manifest and where to go on: a new one, or that of an interrupted run, if it is this very one."""
    from unclip_hub.data.embeddings import MANIFEST, Manifest, check_shard, read_manifest
    from unclip_hub.data.sources import in_order

    if not (output / MANIFEST).is_file():
        manifest = Manifest(made_of)
        manifest.write(output)
        return manifest, (0, 0)
    manifest = read_manifest(output)
    for name, value in made_of.items():
        if manifest.made_of.get(name) != value:
            was = manifest.made_of.get(name)
            raise ValueError(f"{output} was begun with {name} {was!r}, not {value!r}: choose another folder")
    for shard in manifest.shards:
        check_shard(output, shard)
    if not manifest.shards:
        return manifest, (0, 0)
    last = manifest.shards[-1]
    shard, done = last["position"]
    found = next(in_order(source, start=(shard, done - 1)), None)
    if found is None or found[0].key != last["last"]:
        raise ValueError(f"the data has changed since {output} was begun: {last['last']} is no longer where it was")
    return manifest, (shard, done)


def _embed(
    source: Any,
    encoders: "CLIPEncoders",
    output: Path,
    manifest: "Manifest",
    *,
    start: "Position",
    batch: int,
    threads: int | None,
    quiet: bool,
) -> None:
    """Write shard after shard; a batch never reaches across two, so an interrupted run makes the same numbers."""
    from unclip_hub.data.embeddings import write_shard
    from unclip_hub.data.shards import Shards
    from unclip_hub.data.sources import in_order

    samples = in_order(source, start=start)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        while taken := list(islice(samples, manifest.made_of["shard_size"])):
            began = time.monotonic()
            whole = [_whole(sample) for sample, _ in taken]
            rows = _rows(whole, encoders, pool, batch=batch, made_of=manifest.made_of)
            entry = write_shard(output, len(manifest.shards), rows)
            entry |= {"position": list(taken[-1][1]), "last": whole[-1].key}
            manifest.shards.append(entry)
            manifest.write(output)
            if not quiet:
                rate = len(whole) / (time.monotonic() - began)
                click.echo(f"{entry['file']}: {entry['rows']} rows, {rate:.1f} pictures/s", err=True)
            if len(manifest.shards) == 1 and not isinstance(source, Shards):
                _check_space(output, entry["bytes"] * (len(source) - len(whole)) // len(whole))
    manifest.complete = True
    manifest.write(output)


def _rows(
    samples: list["Sample"], encoders: "CLIPEncoders", pool: ThreadPoolExecutor, *, batch: int, made_of: dict[str, Any]
) -> "EmbeddedBatch":
    """A row for each picture and each of its captions."""
    import torch

    from unclip_hub.data.embeddings import EmbeddedBatch

    dtype = getattr(torch, made_of["dtype"])
    with torch.no_grad():
        images = torch.cat([_image_embeds(chunk, encoders, pool) for chunk in _chunks(samples, batch)])
        captions = [list(dict.fromkeys(sample.captions)) for sample in samples]
        flat = [caption for several in captions for caption in several]
        counts = torch.tensor([len(several) for several in captions])
        text = None if made_of["images_only"] else _text(flat, encoders, batch=batch, dtype=dtype)
    image_embed = images.repeat_interleave(counts, dim=0).to(dtype)
    if not image_embed.isfinite().all():
        raise ValueError(f"an embedding is not finite in {made_of['dtype']}: use --dtype float32")
    keys = [sample.key for sample, several in zip(samples, captions, strict=True) for _ in several]
    return EmbeddedBatch(image_embed, text, flat, keys)


def _image_embeds(samples: list["Sample"], encoders: "CLIPEncoders", pool: ThreadPoolExecutor) -> Any:
    """What ``encode_image`` returns, with the pictures prepared in threads."""
    import torch

    from unclip_hub.data.pictures import open_picture
    from unclip_hub.pipelines.base import pictures

    encoder, extractor = encoders.image_encoder, encoders.feature_extractor
    assert encoder is not None and extractor is not None

    def prepare(sample: "Sample") -> Any:
        return extractor(images=pictures(open_picture(sample)), return_tensors="pt").pixel_values

    pixels = torch.cat(list(pool.map(prepare, samples)))
    return encoder(pixels.to(encoder.device, encoder.dtype)).image_embeds.cpu()


def _text(captions: list[str], encoders: "CLIPEncoders", *, batch: int, dtype: Any) -> Any:
    import torch

    from unclip_hub.conditioning import Conditioning

    parts = [encoders.encode_text(chunk).to("cpu", dtype) for chunk in _chunks(captions, batch)]
    names = ("text_embed", "text_states", "text_mask")
    return Conditioning(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _whole(sample: Any) -> "Sample":
    if isinstance(sample, Exception):
        raise sample
    return sample


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output).free
    if free < needed:
        raise ValueError(f"the embeddings need {needed / 1e9:.1f} GB more, {output} has {free / 1e9:.1f} GB free")


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
