"""Adapters of a whole pipeline, in one file."""

import copy
from functools import cache

import pytest
import torch
from pipelines import tiny
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from unclip_hub.models.lora import TARGETS, save_lora
from unclip_hub.pipelines.text_to_image import UnCLIPPipeline


FILE = "pytorch_lora_weights.safetensors"
STEPS = {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2}


@cache
def components():
    """Once: every tokenizer that is trained is another."""
    return tiny.components()


def pipeline():
    return tiny.in_float64(UnCLIPPipeline(**components()))


def draw(pipe):
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a house", generator=generator, output_type="np", **STEPS).images)


def add(pipe, *names, adapter_name="default", seed=0, rank=2):
    """Random adapters, strong enough to be seen."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    for name in names:
        network = getattr(pipe, name)
        config = LoraConfig(
            r=rank, lora_alpha=3 * rank, target_modules=list(TARGETS[type(network)]), init_lora_weights=False
        )
        network.add_adapter(config, adapter_name=adapter_name)
        for key, p in network.named_parameters():
            if f".{adapter_name}." in key:
                nn.init.normal_(p, std=0.1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two adapters on disk, of different networks and ranks, and the pictures: plain, with one, with the other."""
    folder = tmp_path_factory.mktemp("lora")
    pictures = {"plain": draw(pipeline())}
    for name, (parts, rank) in {
        "style": (("prior", "text_proj", "decoder", "super_res_first", "super_res_last"), 2),
        "cat": (("decoder",), 3),
    }.items():
        pipe = pipeline()
        add(pipe, *parts, adapter_name=name, seed=rank, rank=rank)
        pictures[name] = draw(pipe)
        pipe.save_lora_weights(folder / name)
    return folder, pictures


def test_what_is_saved_loads_as_it_was(files):
    folder, pictures = files
    assert [path.name for path in (folder / "style").iterdir()] == [FILE]
    for name in ("style", "cat"):
        pipe = pipeline()
        pipe.load_lora_weights(folder / name)
        assert_close(draw(pipe), pictures[name])
        assert (pictures[name] - pictures["plain"]).abs().max() > 1e-3
        assert pipe.get_active_adapters() == ["default_0"]


def test_every_component_keeps_its_own_prefix(files):
    state = load_file(files[0] / "style" / FILE)
    parts = {"prior", "text_proj", "decoder", "super_res_first", "super_res_last"}
    assert {key.partition(".")[0] for key in state} == parts
    assert {key.partition(".")[0] for key in load_file(files[0] / "cat" / FILE)} == {"decoder"}


def test_a_file_and_a_state_dict_load_like_the_folder(files):
    folder, pictures = files
    pipe = pipeline()
    pipe.load_lora_weights(str(folder / "cat" / FILE))
    assert_close(draw(pipe), pictures["cat"])
    pipe = pipeline()
    pipe.load_lora_weights(load_file(folder / "cat" / FILE), adapter_name="bare")
    assert pipe.get_list_adapters() == {"decoder": ["bare"]}
    # tensors alone do not say what alpha was: it is then the rank
    pipe.set_adapters("bare", 3.0)
    assert_close(draw(pipe), pictures["cat"])


def test_scale_zero_is_the_pipeline_without(files):
    folder, pictures = files
    pipe = pipeline()
    pipe.load_lora_weights(folder / "style", adapter_name="style")
    pipe.set_adapters("style", 0.0)
    assert_close(draw(pipe), pictures["plain"])
    pipe.set_adapters("style", 0.5)
    half = draw(pipe)
    assert (half - pictures["plain"]).abs().max() > 1e-4 and (half - pictures["style"]).abs().max() > 1e-4
    pipe.set_adapters("style")
    assert_close(draw(pipe), pictures["style"])
    pipe.disable_lora()
    assert_close(draw(pipe), pictures["plain"])


def test_two_adapters_are_mixed_and_taken_apart(files):
    folder, pictures = files
    pipe = pipeline()
    for name in ("style", "cat"):
        pipe.load_lora_weights(folder / name, adapter_name=name)
    for name, weights in {"style": [1.0, 0.0], "cat": [0.0, 1.0]}.items():
        pipe.set_adapters(["style", "cat"], weights)
        assert_close(draw(pipe), pictures[name])
        pipe.set_adapters(name)
        assert_close(draw(pipe), pictures[name])
    pipe.set_adapters(["style", "cat"])
    both = draw(pipe)
    assert all((both - pictures[name]).abs().max() > 1e-4 for name in ("style", "cat"))
    pipe.delete_adapters("cat")
    pipe.set_adapters("style")
    assert_close(draw(pipe), pictures["style"])


def test_fusing_keeps_the_pictures_and_unloading_brings_the_plain_ones_back(files):
    folder, pictures = files
    pipe = pipeline()
    plain = {name: set(network.state_dict()) for name, network in pipe._networks().items()}
    pipe.load_lora_weights(folder / "style")
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1
    assert_close(draw(pipe), pictures["style"])
    pipe.unfuse_lora()
    assert_close(draw(pipe), pictures["style"])
    pipe.unload_lora_weights()
    assert {name: set(network.state_dict()) for name, network in pipe._networks().items()} == plain
    assert_close(draw(pipe), pictures["plain"])


def test_one_of_several_adapters_is_saved_by_its_name(files, tmp_path):
    folder, pictures = files
    pipe = pipeline()
    for name in ("style", "cat"):
        pipe.load_lora_weights(folder / name, adapter_name=name)
    with pytest.raises(ValueError, match="expected adapter_name, one of cat, style"):
        pipe.save_lora_weights(tmp_path)
    pipe.save_lora_weights(tmp_path, adapter_name="cat")
    saved, before = load_file(tmp_path / FILE), load_file(folder / "cat" / FILE)
    assert saved.keys() == before.keys() and all(torch.equal(saved[key], before[key]) for key in saved)


def test_names_are_given_in_turn_and_not_twice(files):
    folder, _ = files
    pipe = pipeline()
    pipe.load_lora_weights(folder / "cat")
    pipe.load_lora_weights(folder / "style")
    assert set(pipe.get_list_adapters()["decoder"]) == {"default_0", "default_1"}
    with pytest.raises(ValueError, match="the adapter name 'default_0' is taken"):
        pipe.load_lora_weights(folder / "cat", adapter_name="default_0")


def test_a_trained_tasks_adapter_opens_in_a_pipeline(files, tmp_path):
    """What a training saves under its components' names."""
    pipe = pipeline()
    networks = {"decoder": copy.deepcopy(pipe.decoder)}
    add(type("Holder", (), networks), "decoder")
    save_lora(networks, tmp_path)
    pipe.load_lora_weights(tmp_path)
    assert (draw(pipe) - files[1]["plain"]).abs().max() > 1e-3


@pytest.mark.parametrize("fault", ["stranger", "layer", "width", "half", "kind", "nothing"])
def test_an_adapter_of_something_else_is_refused_and_leaves_the_pipeline_alone(files, tmp_path, fault):
    folder, pictures = files
    state = load_file(folder / "style" / FILE)
    key, value = next((key, value) for key, value in state.items() if "decoder" in key and "lora_A" in key)
    match fault:
        case "stranger":
            state["unet.conv.lora_A.weight"] = value.clone()
            message = "the adapter must be of prior, text_proj, .*, got one of unet"
        case "layer":
            state["decoder.nowhere.lora_A.weight"] = value.clone()
            message = "the adapter is of another network: decoder has no layer nowhere"
        case "width":
            state[key] = value[:, :5].contiguous()
            message = "the adapter is of another network: decoder.* is for width 5, got"
        case "half":
            del state[key]
            message = "the adapter is not whole: decoder.* has only one of lora_A and lora_B"
        case "kind":
            state["decoder.conv_in.weight"] = value.clone()
            message = "decoder.conv_in.weight is no tensor of a LoRA adapter"
        case "nothing":
            state = {}
            message = "got one of nothing"
    save_file(state, tmp_path / FILE)
    pipe = pipeline()
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {}
    assert not any(".lora_" in key for network in pipe._networks().values() for key in network.state_dict())


def test_an_option_that_does_not_exist_is_a_type_error(files):
    with pytest.raises(TypeError, match="no option weights_name; it has weight_name"):
        pipeline().load_lora_weights(files[0] / "cat", weights_name="x")
    with pytest.raises(OSError, match=FILE):
        pipeline().load_lora_weights(files[0])
