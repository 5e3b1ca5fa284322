"""Captions to token ids, as OpenAI's CLIP makes them."""

import html
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTokenizer


# what CLIP's cleaning with ftfy does to text that is not garbled: quotes made plain, and forms of letters made letters
_QUOTES = str.maketrans(dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("“”„‟", '"'))
_LIGATURES = range(0xFB00, 0xFB07)
_WIDTHS = range(0xFF01, 0xFFEF)
_WEIGHTED = re.compile(r"\(([^():]+):([^():]*)\)")

Span = tuple[int, int, float]  # first character, the one after the last, weight


def tokenize(
    tokenizer: CLIPTokenizer, captions: list[str], *, length: int
) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"], list[str]]:
    """Token ids and their mask, ``length`` of them per caption; and, for each caption cut off, what was lost.

    The end token stays last. As in OpenAI's code HTML entities are undone, and the padding token is padding only where
    it pads: Karlo's is "!", which tokenizers would also find in captions and split "!!" at.
    """
    read = _without_padding_token(tokenizer, str(tokenizer.pad_token), len(tokenizer))
    found = [_ids(tokenizer, read, clean(caption)) for caption in captions]
    lost = [str(tokenizer.decode(ids[length - 1 : -1])) for ids in found if len(ids) > length]
    kept = [ids if len(ids) <= length else ids[: length - 1] + ids[-1:] for ids in found]
    padding = tokenizer.pad_token_id
    return (
        torch.tensor([ids + [padding] * (length - len(ids)) for ids in kept]),
        torch.tensor([[True] * len(ids) + [False] * (length - len(ids)) for ids in kept]),
        lost,
    )


def parse_weights(caption: str) -> tuple[str, list[Span]]:
    """A caption with words in the form ``(red:1.4)``, cleaned: without the form, and which words weigh how much.

    Brackets without a colon are ordinary text.

    Raises:
        ValueError: what follows the colon is no finite number of at least 0, or weighted words hold others.
    """
    rest, plain, spans = clean(caption), "", []
    while (found := _WEIGHTED.search(rest)) is not None:
        try:
            weight = float(found[2])
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            raise ValueError(f"a weighted prompt holds (words:number) with a number of at least 0, got {found[0]!r}")
        plain += rest[: found.start()]
        spans.append((len(plain), len(plain) + len(found[1]), weight))
        plain, rest = plain + found[1], rest[found.end() :]
    plain += rest
    if _WEIGHTED.search(plain):
        raise ValueError(f"weighted words must not hold weighted words, got {caption!r}")
    return plain, spans


def token_weights(
    tokenizer: CLIPTokenizer, captions: list[str], spans: Sequence[Sequence[Span]], *, length: int
) -> Float[Tensor, "b l"]:
    """The weight of each token that ``tokenize`` makes of plain captions: 1, or that of the span it begins in."""
    weights = torch.ones(len(captions), length)
    for row, (caption, words) in enumerate(zip(captions, spans, strict=True)):
        offsets = tokenizer(caption, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        for place, (first, last) in enumerate(offsets[: length - 1]):
            inside = [weight for start, end, weight in words if start <= first < end and last > first]
            weights[row, place] = inside[0] if inside else 1.0
    return weights


def clean(caption: str) -> str:
    """The caption before tokenisation: ``basic_clean`` of OpenAI's CLIP, but for the repair of garbled encodings."""
    plain = "".join(
        unicodedata.normalize("NFKC", c) if ord(c) in _LIGATURES or ord(c) in _WIDTHS else c
        for c in caption.translate(_QUOTES)
    )
    return html.unescape(html.unescape(plain)).strip()


def _ids(tokenizer: CLIPTokenizer, read: Tokenizer | None, caption: str) -> list[int]:
    return list(tokenizer(caption, verbose=False).input_ids) if read is None else read.encode(caption).ids


@lru_cache(maxsize=8)
def _without_padding_token(tokenizer: CLIPTokenizer, pad_token: str, size: int) -> Tokenizer | None:
    """The tokenizer's backend with a padding token of its own struck off its special tokens; None if it has none.

    ``size`` tells apart a tokenizer before and after tokens were added.
    """
    if pad_token in (tokenizer.bos_token, tokenizer.eos_token):
        return None
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != pad_token]
    return Tokenizer.from_str(json.dumps(state | {"truncation": None, "padding": None}))
