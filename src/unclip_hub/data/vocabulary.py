"""The words that a model with a small vocabulary was trained on, kept with its tokenizer."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from typing import Any


KEY = "known_words"  # of the tokenizer's configuration
LARGEST = 4096  # words; of a larger vocabulary nothing is kept
_WORD = re.compile(r"\w+|[^\s!-/:-@\[-`{-~]")  # a word, or one character that is neither ASCII punctuation nor space


class Words:
    """Collects the words of captions as they pass by."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def of(self, captions: Iterable[str]) -> Iterator[str]:
        """The captions themselves."""
        for caption in captions:
            if len(self.seen) <= LARGEST:
                self.seen.update(words_of(caption))
            yield caption

    @property
    def known(self) -> list[str] | None:
        """All words, sorted; None if there are too many for a list to mean something."""
        return sorted(self.seen) if len(self.seen) <= LARGEST else None


def words_of(caption: str) -> list[str]:
    """The words of a caption in lower case; a character outside of words, such as an emoji, is one of its own."""
    return _WORD.findall(caption.lower())


def unknown_words(tokenizer: Any, captions: Iterable[str]) -> dict[str, list[str]]:
    """Each word that is not among the tokenizer's ``known_words``, with at most three known ones that look like it.

    A tokenizer without that entry, as those of large models are, knows every word.
    """
    known = tuple(tokenizer.init_kwargs.get(KEY) or ())
    if not known:
        return {}
    held = set(known)
    unknown = dict.fromkeys(word for caption in captions for word in words_of(caption) if word not in held)
    return {word: list(_near(word, known)) for word in unknown}


@lru_cache(maxsize=1 << 16)
def _near(word: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Milliseconds of search, and a training meets the same words in every batch."""
    return tuple(get_close_matches(word, known, n=3, cutoff=0.6))
