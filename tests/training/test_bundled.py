"""The bundled model's recipe, every stage in miniature, from nothing to a picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from unclip_hub import UnCLIPPipeline
from unclip_hub.data.scene_spec import Scope
from unclip_hub.data.sprites import SHAPES
from unclip_hub.training.bundled import STAGES, Build, Recipe
from unclip_hub.training.loop import TrainConfig
from unclip_hub.training.world import clip_batch, upsampler_batch


SHORT = TrainConfig(steps=2, lr=1e-3, log_every=1)
MINIATURE = Recipe(
    scope=Scope(shapes=SHAPES[:3]),
    pictures=64,
    clip=SHORT,
    clip_batch=4,
    decoder=SHORT,
    decoder_batch=2,
    decoder_widths=(32, 64),
    prior=SHORT,
    prior_batch=4,
    upsampler=SHORT,
    upsampler_batch=2,
    upsampler_crop=32,
)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Build:
    return Build(MINIATURE, output=tmp_path_factory.mktemp("build"), icons=None)


def test_every_stage_runs_and_the_result_opens(build):
    for stage in STAGES:
        getattr(build, stage)()
    folder = build.output / "model"
    pipe = UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.prior.dtype == torch.float32  # stored as float16, computed in float32
    assert pipe("a red circle", generator=torch.Generator().manual_seed(0)).images[0].size == (256, 256)
    again = Build(MINIATURE, output=build.output, icons=None)
    assert np.array_equal(again.world.pictures, build.world.pictures)
    assert again.world.scenes == build.world.scenes


def test_a_stage_says_which_one_must_run_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run the stage 'clip' first"):
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


def test_upsampler_crops_fit_their_small_pictures(build):
    batch = upsampler_batch(build.world, 0, size=2, crop=32, seed=0)
    assert batch.pixels.shape == (2, 3, 32, 32) and batch.low.shape == (2, 3, 8, 8)
    assert (torch.nn.functional.avg_pool2d(batch.pixels, 4) - batch.low).abs().max() < 1e-6


def test_tokenizer_reads_what_it_never_saw(build):
    tokens = build.tokenizer(["a zebra 🦓 !!"]).input_ids[0]
    assert tokens[0] == len(build.tokenizer) - 2 and tokens[-1] == len(build.tokenizer) - 1
    assert build.tokenizer.decode(tokens, skip_special_tokens=True).replace(" ", "") == "azebra🦓!!"
    assert isinstance(build.output, Path)
