"""A small tokenizer in CLIP's form: byte-level BPE, lower case, learned from captions."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from unclip_hub.data.vocabulary import KEY, Words


def train_tokenizer(captions: Iterable[str], *, context_length: int, vocab_size: int = 1024) -> CLIPTokenizer:
    """Learn at most ``vocab_size`` tokens; any text can be tokenised, words unseen in the captions byte by byte.

    As in CLIP the end token has the highest id and pads. The words themselves, if they are few, stay in the
    tokenizer's configuration, so that pipelines can warn of others.
    """
    form = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = form.normalizer, form.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ends = [byte + "</w>" for byte in alphabet]
    words = Words()
    learner.train_from_iterator(
        words.of(captions),
        trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=alphabet,
            special_tokens=ends,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].get) + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in learned["merges"]],  # pyright: ignore[reportArgumentType]
        model_max_length=context_length,
        **({} if words.known is None else {KEY: words.known}),  # pyright: ignore[reportArgumentType]
    )
