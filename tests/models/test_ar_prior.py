"""The autoregressive prior: its codes, its cache, and what its sampling can be told."""

import pytest
import torch
from models.configs import BY_NAME, PRIOR_AUTOREGRESSIVE, D, L, refuses, text_mask
from torch.nn.functional import cosine_similarity, softmax
from torch.testing import assert_close

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.ar_prior import UNKNOWN, AutoregressivePrior
from unclip_hub.models.embedding_codec import EmbeddingCodec, cosine_codes


CASE = BY_NAME["autoregressive-prior"]
K, N = PRIOR_AUTOREGRESSIVE["num_components"], PRIOR_AUTOREGRESSIVE["num_buckets"]
SIMILARITIES = PRIOR_AUTOREGRESSIVE["num_similarity_buckets"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def captions(rows=2, seed=1):
    """Padded to different lengths."""
    g = seeded(seed)
    mask = torch.arange(L) < torch.tensor([[3], [L], [5]])[:rows]
    return Conditioning(
        text_embed=torch.randn(rows, D, generator=g, dtype=torch.float64),
        text_states=torch.randn(rows, L, D, generator=g, dtype=torch.float64),
        text_mask=mask,
    )


@pytest.fixture(scope="module")
def prior():
    """In float64, fitted to embeddings of a known spread, with logits that are far from certain."""
    made = CASE.model().double()
    made.codec.fit(spread_embeds())
    with torch.no_grad():
        for network in (made.code_out, made.similarity_out):
            for parameter in network.parameters():
                parameter.normal_(std=0.1, generator=seeded(4))
    return made


def spread_embeds(n=4000):
    """The d-th direction has a standard deviation of about 3 / d, and the mean is not 0."""
    embeds = torch.randn(n, D, generator=seeded(2), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(D, D, generator=seeded(3), dtype=torch.float64)).Q
    return 0.5 + (embeds * 3 / torch.arange(1, D + 1)) @ turn


def draw(prior, cond=None, null=None, *, seed=0, **options):
    return prior.sample(captions() if cond is None else cond, null, generator=seeded(seed), **options)


# the codec


def test_codes_are_in_order_of_decreasing_variance_and_as_many_in_every_bucket():
    codec = EmbeddingCodec(D, components=6, buckets=8).double()
    embeds = spread_embeds()
    codec.fit(embeds)
    variances = ((embeds - embeds.mean(0)) @ codec.basis.T).var(0)
    assert (variances[:-1] > variances[1:]).all() and variances[0] > 5
    shares = torch.stack([column.bincount(minlength=8) for column in codec.encode(embeds).T]) / len(embeds)
    assert_close(shares, torch.full((6, 8), 1 / 8), atol=0.03, rtol=0)


def test_more_codes_and_more_buckets_come_nearer_to_the_embedding():
    embeds = spread_embeds()
    fine, rough = (EmbeddingCodec(D, components=D, buckets=buckets).double() for buckets in (512, 4))
    fine.fit(embeds)
    rough.fit(embeds)
    errors = [(fine(fine.encode(embeds)[:, :k]) - embeds).norm(dim=1).mean() for k in (1, 4, 16, D)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.03 * errors[0]
    assert (rough(rough.encode(embeds)) - embeds).norm(dim=1).mean() > 10 * errors[-1]
    assert_close(fine.encode(fine(fine.encode(embeds))), fine.encode(embeds))


def test_the_expected_coordinates_are_those_of_the_codes_where_they_are_certain():
    codec = EmbeddingCodec(D, components=3, buckets=N)
    codec.fit(spread_embeds().float())
    codes = torch.randint(N, (2, 3), generator=seeded())
    certain = torch.nn.functional.one_hot(codes, N) * 1000.0
    assert_close(codec.embed(codec.expected(certain)), codec(codes))
    assert_close(codec.expected(torch.zeros(2, 3, N)), codec.levels.mean(1).expand(2, 3))


def test_the_codec_refuses_embeddings_of_another_width():
    with refuses("embeddings must be (n, 32), got (9, 31)"):
        EmbeddingCodec(D, components=3, buckets=4).fit(torch.randn(9, 31))


@pytest.mark.parametrize("cosine, code", [(-1.0, 0), (-0.01, 4), (0.01, 5), (1.0, 9)])
def test_cosines_have_equally_wide_buckets(cosine, code):
    assert cosine_codes(torch.tensor([cosine]), buckets=10).item() == code


# the network


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_components": D + 1}, "num_components must be within 1"),
        ({"num_buckets": 1}, "num_buckets must be at least 2, got 1"),
        ({"num_similarity_buckets": 0}, "num_similarity_buckets must be at least 2, got 0"),
    ],
)
def test_refuses_configurations_that_cannot_be(change, message):
    with refuses(message):
        AutoregressivePrior.from_config(PRIOR_AUTOREGRESSIVE | change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"proj_embedding": torch.randn(2, 31)}, "proj_embedding must be (2, 32), got (2, 31)"),
        ({"encoder_hidden_states": torch.randn(2, 6, 32)}, "encoder_hidden_states must be (2, 7, 32), got (2, 6, 32)"),
        ({"attention_mask": text_mask(11)}, "the text mask must be (2, 7), one per text token, got (2, 11)"),
        ({"similarity": None}, "a sequence is a caption, then its similarity, then codes"),
        ({"proj_embedding": None, "encoder_hidden_states": None}, "a sequence is a caption, then its similarity"),
        ({"codes": torch.zeros(2, K, dtype=torch.long)}, "expected at most 4 codes, got 5"),
    ],
)
def test_refuses_inputs_that_do_not_fit(change, message):
    with refuses(message):
        CASE.model()(**(CASE.inputs() | change))


def test_every_part_of_the_sequence_reaches_what_follows_it_and_nothing_before(prior):
    inputs = CASE.inputs(torch.float64)
    before = prior(**inputs)
    for name, first in {"proj_embedding": 0, "encoder_hidden_states": 0, "similarity": 0, "codes": 1}.items():
        other = 3 - inputs[name] % 2 if name in ("similarity", "codes") else torch.zeros_like(inputs[name])
        after = prior(**(inputs | {name: other}))
        changed = (after.logits - before.logits).abs().amax(dim=(0, 2)) > 1e-9
        assert changed.tolist() == [i >= first for i in range(K)], name
        same = torch.equal(after.similarity_logits, before.similarity_logits)
        assert same == (name in ("similarity", "codes"))


def test_an_unknown_similarity_is_none_of_the_known(prior):
    inputs = CASE.inputs(torch.float64)
    made = [prior(**(inputs | {"similarity": torch.full((2,), code)})).logits for code in range(UNKNOWN, SIMILARITIES)]
    assert min((made[0] - other).abs().max() for other in made[1:]) > 1e-4


def test_padding_does_not_matter_and_the_other_tokens_do(prior):
    cond, noise = captions(), torch.randn(2, L, D, dtype=torch.float64)
    inputs = CASE.inputs(torch.float64) | {"attention_mask": cond.text_mask}
    states = inputs["encoder_hidden_states"]
    before = prior(**inputs).logits
    elsewhere = torch.where(cond.text_mask[..., None], states, noise)
    assert_close(prior(**(inputs | {"encoder_hidden_states": elsewhere})).logits, before)
    there = torch.where(cond.text_mask[..., None], noise, states)
    after = prior(**(inputs | {"encoder_hidden_states": there})).logits
    assert (after - before).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("cuts", [(K,), (1, 1, 1, 1, 1), (3, 2)], ids=str)
def test_logits_from_the_cache_are_those_of_the_whole_sequence(prior, cuts, masked):
    inputs = CASE.inputs(torch.float64)
    mask = inputs["attention_mask"] if masked else None
    whole = prior(**(inputs | {"attention_mask": mask}))
    caption = {name: inputs[name] for name in ("proj_embedding", "encoder_hidden_states")}
    part = prior(**caption, attention_mask=mask, use_cache=True)
    assert part.logits.shape == (2, 0, N)
    assert_close(part.similarity_logits, whole.similarity_logits, atol=1e-12, rtol=0)
    tokens = torch.cat([inputs["similarity"][:, None], inputs["codes"]], dim=1)
    logits, at = [], 0
    for length in cuts:
        new = tokens[:, at : at + length]
        given = {"similarity": new[:, 0], "codes": new[:, 1:]} if at == 0 else {"codes": new}
        part = prior(**given, attention_mask=mask, cache=part.cache, use_cache=True)
        logits.append(part.logits)
        at += length
    assert_close(torch.cat(logits, dim=1), whole.logits, atol=1e-12, rtol=0)


# sampling


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 3.0},
        {"guidance_scale": 0.5, "top_p": 0.6, "temperature": 0.7, "similarity": 0.4},
        {"temperature": 0},
        {"components": 2, "similarity_share": 1.0},
    ],
    ids=str,
)
def test_a_sample_is_the_same_with_the_cache_and_without(prior, options):
    cond, null = captions(3), captions(1, seed=5)
    with_cache, without = (draw(prior, cond, null, use_cache=use, **options) for use in (True, False))
    assert_close(with_cache, without, atol=1e-12, rtol=0)


def test_a_row_is_the_same_alone_and_in_a_batch(prior):
    cond, null = captions(3), captions(3, seed=5)
    together = prior.sample(cond, null, generator=[seeded(i) for i in range(3)], guidance_scale=2.0)
    for i in range(3):
        one, away = (Conditioning(c.text_embed[i : i + 1], c.text_states[i : i + 1], c.text_mask[i : i + 1])
                     for c in (cond, null))  # fmt: skip
        alone = prior.sample(one, away, generator=[seeded(i)], guidance_scale=2.0)
        assert_close(alone, together[i : i + 1], atol=1e-12, rtol=0)


def test_fewer_components_are_the_same_idea_only_coarser(prior):
    whole = prior.codec.encode(draw(prior))
    for k in range(1, K):
        part = draw(prior, components=k)
        assert_close(part, prior.codec(whole[:, :k]))
    assert len(whole.unique(dim=0)) == 2


def test_codes_come_as_often_as_their_probabilities_say(prior):
    """Of the first code, over many rows of one caption and similarity."""
    cond, n = captions().take(1), 4000
    similarity = torch.tensor([cosine_codes(torch.tensor([0.3]), buckets=SIMILARITIES)])
    logits = prior(cond.text_embed, cond.text_states, cond.text_mask, similarity=similarity).logits[0, 0]
    ordered = softmax(logits / 2, -1).sort(descending=True)
    kept = ordered.values[: int((ordered.values.cumsum(0) < 0.8).sum()) + 1]
    expected = torch.zeros(N, dtype=torch.float64).scatter(0, ordered.indices[: len(kept)], kept / kept.sum())
    options = {"similarity": 0.3, "temperature": 2.0, "top_p": 0.8, "components": 1}
    codes = prior.codec.encode(draw(prior, cond.expand(n), **options))[:, 0]
    assert 1 < len(kept) < N
    assert_close(codes.bincount(minlength=N) / n, expected.float(), atol=0.03, rtol=0)


def test_temperature_zero_takes_the_likeliest_and_needs_no_luck(prior):
    assert torch.equal(draw(prior, temperature=0), draw(prior, temperature=0, seed=1))
    assert_close(draw(prior, temperature=1e-4, similarity=0.1), draw(prior, temperature=0, similarity=0.1))
    assert not torch.equal(draw(prior), draw(prior, seed=1))


def test_guidance_leads_away_from_the_null_caption(prior):
    cond, null = captions(), captions(1, seed=5)
    plain = draw(prior, cond, similarity=0.2)
    assert torch.equal(draw(prior, cond, null, similarity=0.2, guidance_scale=1), plain)
    assert not torch.allclose(draw(prior, cond, null, similarity=0.2, guidance_scale=4.0), plain)
    unknown = torch.full((2,), UNKNOWN)
    away = null.expand(2)
    expected = prior(away.text_embed, away.text_states, away.text_mask, similarity=unknown).logits[:, 0].argmax(-1)
    made = draw(prior, cond, null, guidance_scale=0, temperature=0, components=1)
    assert_close(prior.codec.encode(made)[:, 0], expected)


def test_a_similarity_is_asked_for_or_drawn_from_the_top_of_its_distribution(prior):
    cond, given = captions().take(1).expand(500), []
    assert not torch.equal(draw(prior, cond, similarity=0.9), draw(prior, cond, similarity=-0.9))
    hook = prior.register_forward_pre_hook(lambda m, args, kw: given.append(kw.get("similarity")), with_kwargs=True)
    for share in (1.0, 0.5, 0.1):
        draw(prior, cond, similarity_share=share, components=1)
    hook.remove()
    every, half, tenth = (codes.double() for codes in given if codes is not None)
    assert every.min() < every.median() <= half.min() and half.median() <= tenth.min()
    assert every.mean() + 0.1 < half.mean() < tenth.mean() - 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"similarity": 1.5}, "similarity must be a cosine, -1 to 1, got 1.5"),
        ({"similarity_share": 0.0}, "similarity_share must be above 0 and at most 1, got 0.0"),
        ({"components": K + 1}, f"components must be within 1 … {K}, got {K + 1}"),
        ({"guidance_scale": 2.0}, "guidance with scale 2.0 needs what to lead away from, got null=None"),
        ({"generator": [seeded()]}, "generator must be one generator or a list of 2, one per row, got 1"),
    ],
)
def test_refuses_options_that_mean_nothing(prior, options, message):
    with refuses(message):
        prior.sample(captions(), **options)


def test_an_option_that_it_does_not_have_is_a_type_error(prior):
    with pytest.raises(TypeError, match="num_inference_steps"):
        prior.sample(captions(), num_inference_steps=3)


def test_samples_are_kept_by_saving_and_close_in_half_precision(prior, tmp_path):
    prior.save_pretrained(tmp_path)
    loaded = AutoregressivePrior.from_pretrained(tmp_path, dtype=torch.float64)
    assert_close(draw(loaded), draw(prior))
    half = AutoregressivePrior.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cond = captions()
    made = half.sample(cond, temperature=0, similarity=0.3)
    expected = draw(prior, cond, temperature=0, similarity=0.3)
    assert made.dtype == torch.float32
    assert cosine_similarity(made.double(), expected).min() > 0.9
