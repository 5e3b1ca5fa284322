"""Prompt weighting: words that count more, or less, than the others of a caption."""

from dataclasses import replace
from typing import Any

from unclip_hub.conditioning import Conditioning
from unclip_hub.pipelines.captions import parse_weights, token_weights


def context_length(pipe: Any) -> int:
    """How many tokens the text encoder reads, start and end among them."""
    return min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings)


def encode_weighted(pipe: Any, prompts: list[str]) -> Conditioning:
    """Captions with words in the form ``(red:1.4)``, as CLIP sees them without it, those words w times as strong.

    Token by token the text's states move along the line from the empty caption's states: w = 0 takes a word's own
    states away. That alone would hardly be seen, as prior and decoder are led by the one embedding of the whole
    caption. So that embedding moves too, along its difference from the embedding of the caption without those words,
    and keeps its length: w = 0 points where the caption without them does. A caption without the form is unchanged.
    """
    parsed = [parse_weights(prompt) for prompt in prompts]
    plain, spans = [caption for caption, _ in parsed], [words for _, words in parsed]
    cond = pipe.encode_text(plain)
    if not any(spans):
        return cond
    empty = pipe.encode_text("")
    weights = token_weights(pipe.tokenizer, plain, spans, length=context_length(pipe)).to(cond.text_states)[..., None]
    states = cond.text_states + (weights - 1) * (cond.text_states - empty.text_states)
    embeds = cond.text_embed.clone()
    for row, (caption, words) in enumerate(parsed):
        if not words:
            continue
        without = pipe.encode_text([caption[:start] + caption[end:] for start, end, _ in words]).text_embed
        factors = without.new_tensor([weight - 1 for _, _, weight in words])
        own = cond.text_embed[row]
        moved = own + (factors[:, None] * (own - without)).sum(0)
        embeds[row] = moved * (own.norm() / moved.norm())
    return replace(cond, text_embed=embeds, text_states=states)
