"""Captions to token ids, as OpenAI's CLIP makes them."""

import html
import json
import unicodedata
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTokenizer


# what CLIP's cleaning with ftfy does to text that is not garbled: quotes made plain, and forms of letters made letters
_QUOTES = str.maketrans(dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("“”„‟", '"'))
_LIGATURES = range(0xFB00, 0xFB07)
_WIDTHS = range(0xFF01, 0xFFEF)


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
