"""Canaries: what unclip_hub uses of diffusers and transformers without a promise from them.

One failing here means that a release moved something: mend the place that the test names before the cap is raised.
"""

import inspect
import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers.configuration_utils import ConfigMixin
from diffusers.pipelines import pipeline_loading_utils

import unclip_hub
import unclip_hub.pipelines.base
from unclip_hub.hub import class_names


# the one place that says which releases of diffusers the tests were run with, oldest and newest
TESTED = ("0.42.0", "0.42.1")
ROOT = Path(__file__).parents[2]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def test_the_declared_range_is_the_tested_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (declared,) = [line for line in project["dependencies"] if line.startswith("diffusers")]
    oldest, newest = (numbers(one) for one in TESTED)
    assert declared == f"diffusers>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"


def test_the_installed_release_is_within_the_tested_range():
    oldest, newest = (numbers(one) for one in TESTED)
    installed = numbers(version("diffusers"))
    assert oldest <= installed <= newest, f"diffusers {version('diffusers')}: run all tests, then extend TESTED"


# pipelines/base.py: the index is remapped where it is read and written


def test_indexes_are_read_through_one_hook(tmp_path):
    """load_config and download both read model_index.json through ``_dict_from_json_file``, and nothing else does."""
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "UnCLIPPipeline", "prior": ["diffusers", "PriorTransformer"]})
    )
    read = unclip_hub.UnCLIPPipeline.load_config(tmp_path)
    assert read["prior"] == ["unclip_hub", "PriorTransformer"]
    assert "cls._dict_from_json_file(" in inspect.getsource(diffusers.DiffusionPipeline.download)
    assert "cls._dict_from_json_file(" in inspect.getsource(ConfigMixin.load_config.__func__)


def test_indexes_are_written_through_one_hook(tmp_path):
    class Probe(diffusers.DiffusionPipeline):
        def __init__(self):
            super().__init__()
            self.register_to_config(setting=1)

        def to_json_string(self):
            return "written by the hook"

    Probe().save_pretrained(tmp_path)
    assert (tmp_path / "model_index.json").read_text() == "written by the hook"


def test_a_library_that_is_an_attribute_of_diffusers_pipelines_is_loaded_from():
    assert diffusers.pipelines.unclip_hub is unclip_hub
    for name in (*class_names.ON_DISK, *class_names.LOADERS.values()):
        found, candidates = pipeline_loading_utils.get_class_obj_and_candidates(
            "unclip_hub", name, pipeline_loading_utils.ALL_IMPORTABLE_CLASSES, diffusers.pipelines, True
        )
        assert found is getattr(unclip_hub, name) and set(candidates.values()) == {found}
    for where in (
        diffusers.DiffusionPipeline.from_pretrained,
        pipeline_loading_utils._get_custom_components_and_folders,
    ):
        assert re.search(r"hasattr\((diffusers\.)?pipelines, ", inspect.getsource(where)), where


def test_text_proj_of_karlos_repository_is_found_by_plain_diffusers():
    module = diffusers.pipelines.unclip
    assert issubclass(module.UnCLIPTextProjModel, diffusers.ModelMixin)


def test_diffusers_records_the_module_and_class_of_what_is_registered():
    from pipelines import tiny

    pipe = unclip_hub.UnCLIPPipeline(**tiny.components())
    assert tuple(pipe.config["prior"]) == ("unclip_hub.models.prior_transformer", "PriorTransformer")
    assert tuple(pipe.config["text_encoder"]) == ("transformers", "CLIPTextModelWithProjection")
    assert tuple(pipe.config["super_res_1024"]) == (None, None)


def test_our_pipelines_pass_through_diffusers_bookkeeping():
    """Components are told from settings by ``_optional_components``; the stage of a run is ours to name."""
    expected, optional = unclip_hub.UnCLIPPipeline._get_signature_keys(unclip_hub.UnCLIPPipeline)
    assert {"prior", "super_res_1024", "feature_extractor"} <= set(expected)
    assert list(optional) == ["sampling_defaults"]
    for name in ("_execution_device", "maybe_free_model_hooks", "progress_bar", "register_modules"):
        assert hasattr(diffusers.DiffusionPipeline, name), name


# pipelines/exchange.py


@pytest.mark.parametrize("name", ["UnCLIPPipeline", "UnCLIPImageVariationPipeline"])
def test_from_pipe_goes_by_annotations(name):
    ours, theirs = getattr(unclip_hub, name), getattr(diffusers, name)
    for cls in (ours, theirs):
        for component in ("text_proj", "decoder", "super_res_first"):
            accepted = cls._get_signature_types()[component]
            assert {one.__module__.split(".")[0] for one in accepted} >= {"diffusers", "unclip_hub"}, (cls, component)


# models/loading.py


def test_loading_info_has_the_three_lists(tmp_path):
    model = diffusers.UNet2DModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    model.save_pretrained(tmp_path / "diffusers")
    _, info = diffusers.UNet2DModel.from_pretrained(tmp_path / "diffusers", output_loading_info=True)
    lists = {"missing_keys", "unexpected_keys", "mismatched_keys"}
    assert lists <= set(info)
    config = transformers.CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, projection_dim=8, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.CLIPTextModelWithProjection(config).save_pretrained(tmp_path / "transformers")
    _, info = transformers.CLIPTextModelWithProjection.from_pretrained(
        tmp_path / "transformers", output_loading_info=True
    )
    assert lists <= set(info)


def test_transformers_still_has_the_processor_that_needs_no_torchvision():
    assert transformers.CLIPImageProcessorPil().size == {"shortest_edge": 224}


# models/: attention through diffusers' dispatcher


def test_names_of_the_attention_dispatcher():
    from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _AttentionBackendRegistry,
        dispatch_attention_fn,
    )

    assert AttentionBackendName.FLEX == "flex"
    assert isinstance(_AttentionBackendRegistry.get_active_backend()[0], AttentionBackendName)
    used = {"query", "key", "value", "attn_mask", "is_causal", "backend", "parallel_config"}
    assert used <= set(inspect.signature(dispatch_attention_fn).parameters)
    assert {"set_processor", "set_attention_backend", "fuse_projections"} <= set(dir(AttentionModuleMixin))
    assert "attn_processors" in dir(AttentionMixin)


def test_a_mask_of_two_dimensions_broadcasts_as_expected():
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    query = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True, True, True, False, False], [True] * 5])
    got = dispatch_attention_fn(query, query, query, attn_mask=keep[:, None, None])
    alone = dispatch_attention_fn(query[:1], query[:1, :3], query[:1, :3])
    torch.testing.assert_close(got[:1], alone)


def test_processors_are_told_their_backend_by_attribute():
    from pipelines import tiny

    prior = tiny.components()["prior"]
    prior.set_attention_backend("native")
    assert {p._attention_backend for p in prior.attn_processors.values()} == {"native"}
    prior.reset_attention_backend()
    assert {p._attention_backend for p in prior.attn_processors.values()} == {None}


# sampling.py: how a scheduler of diffusers is recognised


def test_step_arguments_by_which_schedulers_are_told_apart():
    steps = {cls: inspect.signature(getattr(diffusers, cls).step).parameters for cls in SCHEDULERS}
    assert "prev_timestep" in steps["UnCLIPScheduler"]
    assert not any("prev_timestep" in parameters for cls, parameters in steps.items() if cls != "UnCLIPScheduler")
    assert "generator" in steps["DDPMScheduler"] and "generator" not in steps["HeunDiscreteScheduler"]


SCHEDULERS = ["UnCLIPScheduler", "DDPMScheduler", "DDIMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]
