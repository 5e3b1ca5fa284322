"""OpenAI's CLIP and OpenCLIP, from every container they come in, equal to their own outputs."""

import gzip
import json
import shutil
from itertools import islice, product
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from clip_tokenizer import BPE_FILES, VOCAB_SIZE, load_tokenizer
from clip_towers import TowerOptions, text_config, vision_config
from containers import read_state
from convert_clip import convert, image_processor, main, open_clip_options
from folder import REPORT
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn.functional import normalize
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from unclip_hub.models.expected import expected as expected_tensors
from unclip_hub.models.loading import CLIPImageProcessor
from unclip_hub.models.loading import CLIPTextModelWithProjection as TextModel
from unclip_hub.models.loading import CLIPTokenizer as Tokenizer
from unclip_hub.models.loading import CLIPVisionModelWithProjection as VisionModel
from unclip_hub.training.tokenizer import train_tokenizer


pytestmark = pytest.mark.golden
GOLDEN = Path(__file__).parents[1] / "golden"
OPENAI, OPEN_CLIP = GOLDEN / "clip_openai", GOLDEN / "open_clip"
SHAPES = json.loads((GOLDEN / "original_shapes.json").read_text())
# largest difference of a float32 pass of the original from its float64 pass, rounded up
FLOOR = {
    "text_embeds": 2e-6,
    "image_embeds": 2e-6,
    "text_hidden": 3e-6,
    "vision_tokens": 3e-6,
    "logits_per_image": 4e-6,
}


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def converted(*arguments, to):
    result = run(*arguments, "--output", to)
    assert result.exit_code == 0, result.output
    return to


@torch.no_grad()
def outputs(folder, given):
    """What OpenAI's and OpenCLIP's code were recorded with."""
    text_encoder = TextModel.from_pretrained(folder / "text_encoder")
    text = text_encoder(given["tokens"].long())
    image = VisionModel.from_pretrained(folder / "image_encoder")(given["image"])
    scale = torch.tensor(text_encoder.config.logit_scale_init_value).exp()
    return {
        "text_embeds": text.text_embeds,
        "text_hidden": text.last_hidden_state,
        "image_embeds": image.image_embeds,
        "vision_tokens": image.last_hidden_state,
        "logits_per_image": scale * normalize(image.image_embeds) @ normalize(text.text_embeds).T,
    }


def assert_equals_the_original(folder, golden):
    got = outputs(folder, load_file(golden / "inputs.safetensors"))
    wanted = load_file(golden / "expected_outputs.safetensors")
    assert set(got) == set(wanted)
    differences = {name: (got[name] - wanted[name]).abs().max().item() for name in wanted}
    assert all(difference <= 10 * FLOOR[name] for name, difference in differences.items()), differences


def openai_state():
    return {key: value.clone() for key, value in read_state(OPENAI / "model.pt").items()}


def open_clip_state():
    return load_file(OPEN_CLIP / "open_clip_model.safetensors")


@pytest.mark.parametrize("container", ["TorchScript", "state dict", "older state dict"])
def test_openais_clip(tmp_path, container):
    source = OPENAI
    if container != "TorchScript":
        source = tmp_path / "source"
        source.mkdir()
        zipped = container == "state dict"
        torch.save(openai_state(), source / "ViT-L-14.pt", _use_new_zipfile_serialization=zipped)
    folder = converted(source, to=tmp_path / "out")
    assert_equals_the_original(folder, OPENAI)
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    assert (text["hidden_act"], text["eos_token_id"], text["num_attention_heads"]) == ("quick_gelu", 119, 1)
    keys = next(iter(json.loads((folder / REPORT).read_text())["files"].values()))["keys"]
    assert set(keys) == set(openai_state())


@pytest.mark.parametrize("container", ["safetensors", "bin", "training checkpoint", "text tower of its own"])
def test_open_clip(tmp_path, container):
    source, state = tmp_path / "source", open_clip_state()
    source.mkdir()
    shutil.copy(OPEN_CLIP / "open_clip_config.json", source)
    if container == "safetensors":
        shutil.copy(OPEN_CLIP / "open_clip_model.safetensors", source)
    elif container == "bin":
        torch.save(state, source / "open_clip_pytorch_model.bin")
    elif container == "training checkpoint":
        state = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "name": "tiny", "state_dict": state, "optimizer": {}}, source / "epoch_3.pt")
    else:
        towers = ("visual.", "logit_scale")
        state = {key if key.startswith(towers) else f"text.{key}": value for key, value in state.items()}
        save_file(state, source / "open_clip_model.safetensors")
    folder = converted(source, to=tmp_path / "out")
    assert_equals_the_original(folder, OPEN_CLIP)
    vision = json.loads((folder / "image_encoder" / "config.json").read_text())
    assert (vision["hidden_act"], vision["num_attention_heads"], vision["intermediate_size"]) == ("gelu", 3, 160)
    assert CLIPImageProcessor.from_pretrained(folder / "feature_extractor").crop_size["height"] == 32


@pytest.mark.parametrize("change", ["activation", "heads", "projection", "queries"])
def test_a_wrong_conversion_would_be_seen(tmp_path, change):
    """Every trap of the format moves some output by far more than the tolerance."""
    folder = converted(OPEN_CLIP, to=tmp_path / "out")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config |= {"activation": {"hidden_act": "quick_gelu"}, "heads": {"num_attention_heads": 4}}.get(change, {})
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    weights = folder / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    if change == "projection":
        state["text_projection.weight"] = state["text_projection.weight"].T.contiguous()
    if change == "queries":
        names = [f"text_model.encoder.layers.0.self_attn.{name}_proj.weight" for name in "qk"]
        state |= {names[0]: state[names[1]], names[1]: state[names[0]]}
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(AssertionError):
        assert_equals_the_original(folder, OPEN_CLIP)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("visual.layer1.0.conv1.weight", "a ModifiedResNet"),
        ("visual.trunk.blocks.0.attn.qkv.weight", "an image tower of timm"),
        ("text.transformer.encoder.layer.0.output.dense.weight", "a text tower of transformers"),
        ("text_model.embeddings.token_embedding.weight", "transformers' own keys"),
        ("logit_bias", "SigLIP"),
        ("visual.transformer.resblocks.0.ls_1.gamma", "layer scale"),
        ("text_decoder.resblocks.0.ln_1.weight", "CoCa"),
    ],
)
def test_other_kinds_of_clip_are_refused_by_name(tmp_path, key, what):
    torch.save(openai_state() | {key: torch.zeros(1)}, tmp_path / "RN50.pt")
    result = run(tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 1 and what in result.output and key in result.output
    assert not (tmp_path / "out").exists()


def test_what_is_no_clip_or_not_whole():
    state = openai_state()
    with pytest.raises(ValueError, match="it has no token_embedding.weight"):
        convert({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="it has keys that are not known, visual.extra"):
        convert(state | {"visual.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="it has no visual.proj"):
        convert({key: value for key, value in state.items() if key != "visual.proj"})


def test_weights_that_do_not_tell_their_heads_need_a_configuration(tmp_path):
    save_file(open_clip_state(), tmp_path / "open_clip_model.safetensors")
    result = run(tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 1 and "give OpenCLIP's open_clip_config.json with --config" in result.output
    config = OPEN_CLIP / "open_clip_config.json"
    assert_equals_the_original(converted(tmp_path, "--config", config, to=tmp_path / "out"), OPEN_CLIP)


@pytest.mark.parametrize(
    ("where", "value", "what"),
    [
        (("embed_dim",), 41, "embed_dim is 41, the weights have 40"),
        (("text_cfg", "layers"), 3, "text_cfg.layers is 3, the weights have 2"),
        (("vision_cfg", "image_size"), 40, "vision_cfg.image_size is 40, the weights have 32"),
        (("vision_cfg", "pool_type"), "avg", "vision_cfg.pool_type must be 'tok'"),
        (("text_cfg", "no_causal_mask"), True, "text_cfg.no_causal_mask must be False"),
        (("text_cfg", "heads"), 7, "cannot be shared by 7 heads"),
    ],
)
def test_configurations_that_do_not_fit(where, value, what):
    config = json.loads((OPEN_CLIP / "open_clip_config.json").read_text())
    part = config["model_cfg"]
    for name in where[:-1]:
        part = part[name]
    part[where[-1]] = value
    with pytest.raises(ValueError, match=what):
        open_clip_options(config, open_clip_state())


def test_preprocessing_is_the_configurations():
    made = image_processor(20, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"})
    assert (list(made.image_mean), list(made.image_std), int(made.resample)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 2)
    with pytest.raises(ValueError, match="resize_mode must be 'shortest', got 'squash'"):
        image_processor(20, {"resize_mode": "squash"})


@pytest.mark.parametrize(
    ("name", "options", "projection", "size"),
    [
        ("openai_clip_vit_l14", TowerOptions(text_heads=12, vision_heads=16, hidden_act="quick_gelu"), 768, 224),
        ("open_clip_bigg14", TowerOptions(text_heads=20, vision_heads=16, hidden_act="gelu"), 1280, 224),
    ],
)
def test_the_published_sizes_without_their_weights(name, options, projection, size):
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}
    made = convert(state)
    for component, cls, config in (
        ("text_encoder", CLIPTextModelWithProjection, text_config(state, options)),
        ("image_encoder", CLIPVisionModelWithProjection, vision_config(state, options)),
    ):
        shapes, full = expected_tensors(cls, config)
        assert {key: tuple(tensor.shape) for key, tensor in made[component].items()} == shapes
        assert full["projection_dim"] == projection and full.get("image_size", size) == size


# the tokenizer


@pytest.fixture(scope="module")
def merges():
    """A list of merges of OpenAI's length and form: a header, then pairs, of which the surplus does not count."""
    pairs = islice(product(sorted(ByteLevel.alphabet()), repeat=2), VOCAB_SIZE - 512 - 2 + 100)
    return "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in pairs)]) + "\n"


@pytest.mark.parametrize("name", BPE_FILES)
def test_openais_list_of_merges_is_enough(tmp_path, merges, name):
    content = merges.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    made = load_tokenizer(str(tmp_path / name), length=77)
    assert (len(made), made.bos_token_id, made.eos_token_id) == (VOCAB_SIZE, VOCAB_SIZE - 2, VOCAB_SIZE - 1)
    assert (made.pad_token, made.pad_token_id, made.model_max_length) == ("!", 0, 77)
    assert made.convert_tokens_to_ids(["a", "a</w>"]) == [64, 320]


def test_a_list_that_is_cut_off(tmp_path):
    (tmp_path / BPE_FILES[0]).write_bytes(gzip.compress(b"#version\na b\n" * 50)[:-20])
    with pytest.raises(ValueError, match=f"{BPE_FILES[0]} is not"):
        load_tokenizer(str(tmp_path / BPE_FILES[0]), length=77)


def test_a_tokenizer_at_hand_is_taken_if_it_fits(tmp_path):
    captions = ["a red circle", "two green cats"] * 3
    tokenizer = train_tokenizer(captions, context_length=20, vocab_size=600)
    source = tmp_path / "source"
    source.mkdir()
    state = openai_state()
    state["token_embedding.weight"] = torch.randn(len(tokenizer), 64)
    torch.save(state, source / "model.pt")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = converted(source, "--tokenizer", tmp_path / "tokenizer", to=tmp_path / "out")
    loaded = Tokenizer.from_pretrained(folder / "tokenizer")
    assert loaded("two red cats").input_ids == tokenizer("two red cats").input_ids
    assert (loaded.pad_token_id, loaded.model_max_length) == (0, 20)
    (folder / "tokenizer" / "tokenizer.json").unlink()  # older readers have the other two files
    assert (
        Tokenizer.from_pretrained(folder / "tokenizer")("two red cats").input_ids == loaded("two red cats").input_ids
    )
    shutil.copytree(tmp_path / "tokenizer", source / "tokenizer")
    assert (converted(source, to=tmp_path / "beside") / "tokenizer").is_dir()
    wrong = run(OPENAI, "--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "wrong")
    assert wrong.exit_code == 1 and f"has {len(tokenizer)} tokens, the text encoder 120" in wrong.output


def test_without_any_tokenizer_a_note_says_so(tmp_path):
    result = run(OPENAI, "--output", tmp_path / "out")
    assert "no tokenizer: CLIP's has 49408 tokens, this text encoder 120" in result.output
    assert not (tmp_path / "out" / "tokenizer").exists()
    missing = run(OPENAI, "--tokenizer", tmp_path / "absent", "--output", tmp_path / "other")
    assert missing.exit_code == 1 and "gives no tokenizer" in missing.output
