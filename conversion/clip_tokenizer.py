"""CLIP's byte-pair vocabulary, which no checkpoint holds: from a folder, from OpenAI's file, or from the Hub."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from command import Source
from folder import OutputFolder
from huggingface_hub import snapshot_download
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from unclip_hub.hub.weights import AGAIN, BrokenFile


PUBLISHED = "openai/clip-vit-large-patch14"  # all of OpenAI's and nearly all of OpenCLIP's models share its vocabulary
VOCAB_SIZE = 49408
BPE_FILES = ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")  # in the packages of CLIP's code
_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"]
_SMALLEST = 10


def add_tokenizer(folder: OutputFolder, source: Source, *, given: str | None, text_config: Mapping[str, Any]) -> None:
    """Write ``tokenizer/`` for the text encoder of this configuration.

    The tokenizer is ``given`` (a folder, one of `BPE_FILES`, or a repository on the Hub), or lies with the checkpoint,
    or is the Hub's. Without any the folder stays without one, and a note says so.

    Raises:
        ValueError: the one given cannot be read, or does not fit the text encoder.
    """
    vocab_size, length = text_config["vocab_size"], text_config["max_position_embeddings"]
    where = given or _beside(source)
    if where is None and vocab_size != VOCAB_SIZE:
        folder.note(f"no tokenizer: CLIP's has {VOCAB_SIZE} tokens, this text encoder {vocab_size}; {_REMEDY}")
        return
    try:
        tokenizer = load_tokenizer(where or PUBLISHED, length=length)
    except ValueError as error:
        if where is not None:
            raise
        folder.note(f"no tokenizer: {error}; {_REMEDY}")
        return
    if len(tokenizer) != vocab_size:
        raise ValueError(f"the tokenizer of {where} has {len(tokenizer)} tokens, the text encoder {vocab_size}")
    folder.add_tokenizer("tokenizer", tokenizer)


def load_tokenizer(where: str, *, length: int) -> CLIPTokenizer:
    """CLIP's tokenizer, padding with token 0 as CLIP's code does.

    Raises:
        ValueError: there is none.
    """
    if Path(where).is_file():
        tokenizer = _from_bpe(Path(where))
    else:
        try:
            # not from_pretrained's own download, which asks an unreachable Hub for every file, for minutes
            folder = where if Path(where).is_dir() else snapshot_download(where, allow_patterns=_FILES)
            tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
        except Exception as error:  # of three libraries and the network
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"{where} gives no tokenizer ({reason})") from error
    if len(tokenizer) < _SMALLEST:  # transformers makes one of next to nothing
        raise ValueError(f"{where} holds no vocabulary of CLIP's: {len(tokenizer)} tokens")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.model_max_length = length
    return tokenizer


def _beside(source: Source) -> str | None:
    if source.folder is None:
        return None
    for folder in (source.folder / "tokenizer", source.folder):
        if (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file():
            return str(folder)
    return next((str(source.folder / name) for name in BPE_FILES if (source.folder / name).is_file()), None)


def _from_bpe(path: Path) -> CLIPTokenizer:
    """OpenAI's list of merges: the first line is a header, and only as many as the vocabulary holds count."""
    if path.suffix == ".json":
        raise BrokenFile(f"{path.name} is one file of a tokenizer", remedy="give the folder that it lies in")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").split("\n")[1 : VOCAB_SIZE - 512 - 2 + 1]
        merges = [(first, second) for first, second in (line.split() for line in lines)]
    except (OSError, EOFError, ValueError):
        raise BrokenFile(f"{path.name} is not {' or '.join(BPE_FILES)}", remedy=AGAIN) from None
    alphabet = _alphabet()
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *(first + second for first, second in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)  # pyright: ignore[reportArgumentType]


def _alphabet() -> list[str]:
    """The bytes as printable characters, in the order of OpenAI's code: first those that print as themselves."""
    characters = sorted(ByteLevel.alphabet())
    return [c for c in characters if ord(c) < 256] + [c for c in characters if ord(c) >= 256]


_REMEDY = f"--tokenizer takes a folder, a repository on the Hub, or {BPE_FILES[0]} of CLIP's code"
