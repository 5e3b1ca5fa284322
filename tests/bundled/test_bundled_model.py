"""The model that comes with the package: complete, small, the recorded numbers, and pictures that do what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import Scene, Scope, Thing
from unclip_hub.data.sprites import build_bank
from unclip_hub.evaluation.sprite_matching import SpriteMatcher, judge


GOLDEN = Path(__file__).parents[1] / "golden" / "bundled_stages.json"
FEW = {"prior_num_inference_steps": 3, "decoder_num_inference_steps": 3, "super_res_num_inference_steps": 2}


def load() -> UnCLIPPipeline:
    loaded = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def pipe() -> UnCLIPPipeline:
    return load()


def stages(pipe) -> dict[str, torch.Tensor]:
    """A few numbers of every stage: the ends of the embeddings, the pictures averaged over an 8 × 8 grid."""
    cond = pipe.encode_text("a large green circle in a forest")
    made = pipe(
        "a large green circle in a forest", generator=torch.Generator().manual_seed(7), output_type="pt", **FEW
    )
    pool = torch.nn.functional.adaptive_avg_pool2d
    return {
        "text_embed": cond.text_embed[0, :12],
        "text_states": cond.text_states[0, :3, :4].flatten(),
        "image_embed": made.image_embeds[0, :12],
        "small_image": pool(made.small_images, 8)[0].flatten(),
        "image": pool(made.images, 8)[0].flatten(),
    }


@pytest.mark.golden
def test_every_stage_gives_the_recorded_numbers(pipe):
    """To record anew after replacing the weights: `python tests/bundled/test_bundled_model.py`."""
    recorded = json.loads(GOLDEN.read_text())
    for name, values in stages(pipe).items():
        assert_close(
            values, torch.tensor(recorded[name]), atol=5e-3, rtol=5e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_it_fits_into_a_wheel():
    files = [path for path in Path(BUNDLED_MODEL).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                assert {weights.get_slice(key).get_dtype() for key in weights.keys()} <= {"F16", "I64"}


def test_it_computes_in_float32(pipe):
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {model.dtype for model in models} == {torch.float32}


def test_pictures_show_what_the_captions_say(pipe):
    """12 large shapes in the middle, read by a scorer that was never trained: background, colour and shape."""
    backgrounds = ("white", "black", "sea", "forest", "sunset", "desert")
    kinds = [("circle", "red"), ("square", "blue"), ("star", "yellow"), ("heart", "pink")]
    scenes = [Scene(backgrounds[i % 6], (Thing(*kinds[i % 4], size="large", position="centre"),)) for i in range(12)]
    phrases = dict(
        zip(backgrounds, ("on white", "on black", "at sea", "in a forest", "at sunset", "in a desert"), strict=True)
    )
    captions = [f"a large {s.things[0].colour} {s.things[0].noun} {phrases[s.background]}" for s in scenes]
    made = pipe(captions, generator=[torch.Generator().manual_seed(i) for i in range(12)], output_type="np")
    matcher = SpriteMatcher(build_bank(Scope().nouns))
    verdicts = [
        judge(matcher.see((image * 255).round().astype(np.uint8)), scene)
        for image, scene in zip(made.images, scenes, strict=True)
    ]
    right = {name: sum(bool(verdict[name]) for verdict in verdicts) for name in ("background", "colour", "object")}
    assert right["background"] >= 11 and right["colour"] >= 10 and right["object"] >= 8, right


def test_at_1024_px_it_is_the_same_picture_with_sharper_edges(pipe):
    options = FEW | {"output_type": "pt"}
    picture, large = (
        pipe(
            "a large red square on white", generator=torch.Generator().manual_seed(7), output_size=size, **options
        ).images
        for size in (256, 1024)
    )
    assert large.shape == (1, 3, 1024, 1024)
    assert (torch.nn.functional.avg_pool2d(large, 4) - picture).abs().mean() < 0.01
    smooth = torch.nn.functional.interpolate(picture, scale_factor=4, mode="bicubic")
    steepest = [images.diff(dim=-1).abs().flatten().topk(2000).values.mean() for images in (large, smooth)]
    assert steepest[0] > 1.5 * steepest[1], steepest


if __name__ == "__main__":
    recorded = {name: [round(float(x), 5) for x in values] for name, values in stages(load()).items()}
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
