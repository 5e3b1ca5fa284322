"""Cached embeddings come back row by row; a folder that is not what its manifest says is refused by name."""

import json

import pytest
import torch

from unclip_hub.conditioning import Conditioning
from unclip_hub.data.batches import batches_of
from unclip_hub.data.captioned import BrokenSample
from unclip_hub.data.embeddings import (
    MANIFEST,
    EmbeddedBatch,
    Embeddings,
    Manifest,
    check_shard,
    read_manifest,
    write_shard,
)


def batch(first: int, rows: int, *, text: bool = True) -> EmbeddedBatch:
    generator = torch.Generator().manual_seed(first)
    conditioning = Conditioning(
        text_embed=torch.randn(rows, 6, generator=generator),
        text_states=torch.randn(rows, 5, 7, generator=generator),
        text_mask=torch.rand(rows, 5, generator=generator) < 0.5,
    )
    numbers = range(first, first + rows)
    return EmbeddedBatch(
        torch.randn(rows, 6, generator=generator),
        conditioning if text else None,
        [f"caption {i} äöü 🐸" for i in numbers],
        [f"key-{i}" * (i % 3) for i in numbers],  # of unequal lengths, and empty
    )


def write(folder, *batches: EmbeddedBatch, complete: bool = True):
    folder.mkdir(exist_ok=True)
    shards = [write_shard(folder, number, one) for number, one in enumerate(batches)]
    Manifest({"data": "x"}, shards, complete).write(folder)
    return folder


def assert_rows(found: EmbeddedBatch, expected: EmbeddedBatch, rows: list[int]):
    assert found.keys == [expected.keys[row] for row in rows]
    assert found.captions == [expected.captions[row] for row in rows]
    torch.testing.assert_close(found.image_embed, expected.image_embed[rows], rtol=0, atol=0)
    if expected.text is None or found.text is None:
        assert found.text is expected.text
    else:
        for name, value in vars(found.text).items():
            if value is not None:
                torch.testing.assert_close(value, getattr(expected.text, name)[rows], rtol=0, atol=0)


@pytest.mark.parametrize("text", [True, False])
def test_rows_come_back(text, tmp_path):
    first, second = batch(0, 4, text=text), batch(4, 3, text=text)
    embeddings = Embeddings(write(tmp_path, first, second))
    assert len(embeddings) == 7
    assert_rows(embeddings.batch([3, 0]), first, [3, 0])
    assert_rows(embeddings.batch([4, 6, 4]), second, [0, 2, 0])
    torch.testing.assert_close(
        torch.cat(list(embeddings.image_embeds())), torch.cat([first.image_embed, second.image_embed])
    )
    for row in (7, -1):
        with pytest.raises(IndexError, match="below 7"):
            embeddings.batch([row])


def test_half_precision_comes_back_as_float32(tmp_path):
    half = batch(0, 3)
    half.image_embed, half.text = half.image_embed.half(), half.text.to(dtype=torch.float16)
    found = Embeddings(write(tmp_path, half)).batch([1])
    assert found.image_embed.dtype == found.text.text_states.dtype == torch.float32
    assert found.text.text_mask.dtype == torch.bool
    torch.testing.assert_close(found.image_embed, half.image_embed[[1]].float(), rtol=0, atol=0)


def test_rows_are_found_by_key_and_caption(tmp_path):
    first, second = batch(0, 4), batch(4, 3)
    embeddings = Embeddings(write(tmp_path, first, second))
    assert_rows(embeddings.find([second.keys[1]], [second.captions[1]]), second, [1])
    with pytest.raises(ValueError, match="no embedding of key-1 with caption 'another'"):
        embeddings.find(["key-1"], ["another"])


def test_batches_of_embeddings_hold_every_row_once_an_epoch(tmp_path):
    batches = batches_of(Embeddings(write(tmp_path, batch(0, 4), batch(4, 4))), batch=2, size=16, seed=1)
    captions = [caption for number in range(4) for caption in batches(number).captions]
    assert len(captions) == len(set(captions)) == 8
    assert batches(2).captions == captions[4:6] != batches(6).captions


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, batch(0, 4), batch(4, 3))
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(BrokenSample, match=r"00001\.safetensors: the shard is missing"):
        Embeddings(tmp_path)


def test_a_short_shard_is_named(tmp_path):
    write(tmp_path, batch(0, 4))
    path = tmp_path / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BrokenSample, match=r"00000\.safetensors: the shard has \d+ bytes, the manifest says \d+"):
        Embeddings(tmp_path)


def test_a_shard_with_other_rows_is_named(tmp_path):
    write(tmp_path, batch(0, 4))
    entry = write_shard(tmp_path, 0, batch(0, 3))
    Manifest({}, [{**entry, "rows": 4}], complete=True).write(tmp_path)
    with pytest.raises(BrokenSample, match=r"holds \[3\] rows, the manifest says 4"):
        Embeddings(tmp_path)


def test_changed_values_show_in_the_hash(tmp_path):
    entry = write_shard(tmp_path, 0, batch(0, 4))
    path = tmp_path / "00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    check_shard(tmp_path, entry)  # sizes alone do not tell
    with pytest.raises(BrokenSample, match="hash"):
        check_shard(tmp_path, entry, content=True)


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "NaN"), (0.0, "rows of zeros")])
def test_embeddings_without_meaning_are_named(value, says, tmp_path):
    ill = batch(0, 4)
    ill.image_embed[2] = value
    entry = write_shard(tmp_path, 0, ill)
    with pytest.raises(BrokenSample, match=says):
        check_shard(tmp_path, entry, content=True)


def test_an_unfinished_folder_is_refused(tmp_path):
    write(tmp_path, batch(0, 4), complete=False)
    with pytest.raises(ValueError, match="not complete, 4 rows so far"):
        Embeddings(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "rows": 2, "made_of": {}, "shards": []}'])
def test_a_broken_manifest_is_refused(text, tmp_path):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="manifest"):
        read_manifest(tmp_path)


def test_a_manifest_of_another_format_is_refused(tmp_path):
    write(tmp_path, batch(0, 4))
    state = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(ValueError, match="format 2, this version reads 1"):
        read_manifest(tmp_path)
