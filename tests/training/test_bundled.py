"""The bundled model's recipe, every stage in miniature, from nothing to a picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unclip_hub import UnCLIPPipeline
from unclip_hub.data.scene_spec import Scope
from unclip_hub.data.sprites import SHAPES
from unclip_hub.training.bundled import STAGES, Build, Recipe, read_layout
from unclip_hub.training.loop import TrainConfig
from unclip_hub.training.presets import new_decoder, new_image_encoder, new_upsampler
from unclip_hub.training.world import clip_batch, text_batch


SHORT = TrainConfig(steps=2, lr=1e-3, log_every=1)
MINIATURE = Recipe(
    scope=Scope(shapes=SHAPES[:3]),
    pictures=64,
    clip=SHORT,
    clip_batch=4,
    text=SHORT,
    text_batch=4,
    decoder=SHORT,
    decoder_text=SHORT,
    decoder_batch=2,
    decoder_widths=(32, 64),
    prior=SHORT,
    prior_batch=4,
)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Build:
    output = tmp_path_factory.mktemp("build")
    for name, size in (("upsampler", 256), ("upsampler_1024", 1024)):  # as `unclip train upsampler` leaves them
        (output / name).mkdir()
        weights = new_upsampler("tiny", size=size).state_dict()
        torch.save({f"upsampler.{key}": value for key, value in weights.items()}, output / name / "ema.pt")
    return Build(MINIATURE, output=output, icons=None)


def test_every_stage_runs_and_the_result_opens(build):
    for stage in STAGES:
        getattr(build, stage)()
    folder = build.output / "model"
    pipe = UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.prior.dtype == torch.float32  # stored as float16, computed in float32
    assert pipe("a red circle", generator=torch.Generator().manual_seed(0)).images[0].size == (256, 256)
    large = pipe("a red circle", super_res_num_inference_steps=2, output_size=1024).images[0]
    assert large.size == (1024, 1024)
    again = Build(MINIATURE, output=build.output, icons=None)
    assert np.array_equal(again.world.pictures, build.world.pictures)
    assert again.world.scenes == build.world.scenes


def test_pictures_of_other_scenes_are_not_taken_for_these(build):
    with pytest.raises(ValueError, match=r"holds pictures of .* choose another folder"):
        Build(replace(MINIATURE, pictures=32), output=build.output, icons=None)


def test_a_stage_says_which_one_must_run_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train 'clip' first"):
        Build(MINIATURE, output=tmp_path, icons=None).decoder()


def test_batches_depend_on_the_step_alone(build):
    options = {"size": 3, "negatives": 2, "patches": 8, "tokenizer": build.tokenizer, "seed": 1}
    first, again = (clip_batch(build.world, 5, **options) for _ in range(2))
    assert torch.equal(first.ids, again.ids) and torch.equal(first.pixels, again.pixels)
    assert first.negative_ids.shape[0] == 6
    assert not torch.equal(first.pixels, clip_batch(build.world, 6, **options).pixels)


def test_patch_labels_mark_where_things_stand(build):
    batch = clip_batch(build.world, 0, size=8, negatives=1, patches=8, tokenizer=build.tokenizer, seed=0)
    covered = (batch.patch_labels > 0).float().mean(1)
    assert (covered > 0.03).all() and (covered < 0.6).all()


def test_a_build_goes_on_from_another(build):
    folder = build.output / "model"
    again = Build(MINIATURE, output=build.output, icons=None, start=folder)
    encoder = again._started(new_image_encoder("tiny"), "image_encoder")
    stored = UnCLIPPipeline.from_pretrained(folder).image_encoder.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in encoder.state_dict().items())


@torch.no_grad()
def test_image_tokens_begin_as_the_probe_s_word_on_their_region():
    torch.manual_seed(0)
    _, text_proj = new_decoder("tiny")
    classes, embeds = 5, torch.randn(300, 192)
    probe = {"weight": torch.randn(64 * classes, 192) / 14, "bias": torch.zeros(64 * classes)}
    read_layout(text_proj, probe, embeds)
    nothing = torch.zeros(300, 192)
    states, _ = text_proj(
        image_embeddings=embeds,
        prompt_embeds=nothing,
        text_encoder_hidden_states=nothing[:, None],
        do_classifier_free_guidance=False,
    )
    tokens = states[:, :16]  # (b, n, e)
    names = tokens.mean(0)
    assert (tokens - names).std() == pytest.approx(1, rel=0.05)
    assert torch.corrcoef(names).fill_diagonal_(0).abs().max() < 0.4, "regions have names of their own"
    said = (probe["weight"].view(4, 2, 4, 2, classes, 192) @ embeds.T).mean((1, 3)).flatten(0, 1)  # (n, classes, b)
    spread = torch.linalg.matrix_rank((tokens - names).flatten(0, 1), rtol=1e-3)
    assert spread == classes, "what is said of every region is one code of the classes"
    solved = torch.linalg.lstsq((tokens - names)[:, 3], (said - said.mean(2, keepdim=True))[3].T)
    assert ((tokens - names)[:, 3] @ solved.solution - (said - said.mean(2, keepdim=True))[3].T).abs().max() < 1e-3


def test_text_batches_are_of_embeddings(build):
    embeds = torch.randn(len(build.world), 192)
    options = {"size": 3, "negatives": 2, "tokenizer": build.tokenizer, "seed": 1}
    batch = text_batch(build.world, 5, image_embeds=embeds, **options)
    pictures = clip_batch(build.world, 5, patches=8, **options)
    assert batch.pixels is None and torch.equal(batch.ids, pictures.ids)
    indices = np.random.default_rng([1, 5, 0]).integers(len(build.world), size=3)
    assert torch.equal(batch.image_embeds, embeds[indices])
    assert torch.equal(pictures.pixels, build.world.pixels(indices))


def test_tokenizer_reads_what_it_never_saw(build):
    tokens = build.tokenizer(["a zebra 🦓 !!"]).input_ids[0]
    assert tokens[0] == len(build.tokenizer) - 2 and tokens[-1] == len(build.tokenizer) - 1
    assert build.tokenizer.decode(tokens, skip_special_tokens=True).replace(" ", "") == "azebra🦓!!"
    assert isinstance(build.output, Path)
