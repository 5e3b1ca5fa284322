"""What must agree in a checkpoint: a file with its network, and the components with one another."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from math import inf
from typing import Any

from unclip_hub.hub.inspect import Problem
from unclip_hub.hub.weights import TensorInfo


Shapes = Mapping[str, tuple[int, ...]]
Configs = Mapping[str, Mapping[str, Any]]  # by component, defaults filled in
SHOWN = 3  # of more keys than these only the first are named

_SHARED = ("text_encoder", "tokenizer", "text_proj", "decoder", "decoder_scheduler")
REQUIRED = {
    "UnCLIPPipeline": (*_SHARED, "prior", "prior_scheduler"),
    "UnCLIPImageVariationPipeline": (*_SHARED, "image_encoder", "feature_extractor"),
}
UPSAMPLERS = {"super_res_first": "super_res_scheduler", "super_res_1024": "super_res_1024_scheduler"}


def compare(
    name: str, tensors: Mapping[str, TensorInfo], expected: Shapes, others: Mapping[str, Shapes]
) -> list[Problem]:
    """A component's file against the ``expected`` tensors; ``others`` are those that the other components expect."""
    got = {key: info.shape for key, info in tensors.items() if not key.endswith("position_ids")}
    expected = {key: shape for key, shape in expected.items() if not key.endswith("position_ids")}
    if got == expected:
        return []
    fits = [other for other, shapes in others.items() if got == shapes]
    if fits:
        what = f"its file does not fit its config.json, but fits {' and '.join(fits)}: files were swapped"
        return [Problem("error", name, what, f"put the files of {name} and {fits[0]} back in their places")]
    missing = [key for key in expected if key not in got]
    unexpected = [key for key in got if key not in expected]
    shapes = [
        f"{key} has shape {_shape(got[key])}, expected {_shape(expected[key])}"
        for key in expected
        if key in got and got[key] != expected[key]
    ]
    problems = []
    for key in [*missing] if len(missing) <= SHOWN else []:
        same_shape = [other for other in unexpected if got[other] == expected[key]]
        for old in get_close_matches(key, same_shape, n=1, cutoff=0.8):
            missing.remove(key)
            unexpected.remove(old)
            problems.append(Problem("error", name, f"{key} is missing, and {old} is not known", "rename it back"))
    statistics = [key for key in missing if key in ("clip_mean", "clip_std")]
    if statistics:
        missing = [key for key in missing if key not in statistics]
        remedy = "add the statistics of the prior's training set; mean 0 and std 1 if it was not normalised"
        problems.append(Problem("error", name, _listed(statistics, "missing"), remedy))
    other_version = "the file is damaged or belongs to another config.json: download both again"
    if missing:
        problems.append(Problem("error", name, _listed(missing, "missing"), other_version))
    if unexpected:
        problems.append(Problem("error", name, _listed(unexpected, "not known to its network"), other_version))
    if shapes:
        more = f" (and {len(shapes) - 1} more)" if len(shapes) > 1 else ""
        problems.append(Problem("error", name, shapes[0] + more, other_version))
    return problems


def absent(pipeline: str, present: Collection[str]) -> Iterator[Problem]:
    """Components that the pipeline of this name cannot do without."""
    if not pipeline.startswith("UnCLIP"):
        what = f"_class_name is {pipeline}, which is no pipeline of unclip_hub's"
        yield Problem("warning", "model_index.json", what, "open it with UnCLIPPipeline.from_pretrained")
    task = "UnCLIPPipeline" if "prior" in present else "UnCLIPImageVariationPipeline"
    for name in REQUIRED.get(pipeline, REQUIRED[task]):
        if name not in present:
            remedy = f"add {name}/ and its entry from the original, or pass {name}= to from_pretrained"
            yield Problem("error", name, "model_index.json has none", remedy)
    for network, scheduler in UPSAMPLERS.items():
        if network in present and scheduler not in present:
            remedy = f"add {scheduler}/ and its entry from the original, or pass {scheduler}= to from_pretrained"
            yield Problem("error", scheduler, f"model_index.json has none, but {network} needs it", remedy)


def agreement(configs: Configs) -> Iterator[Problem]:
    """Widths, lengths and sizes that have to be the same in several components."""
    for what, values in _same(configs).items():
        places = defaultdict(list)
        for where, value in values.items():
            if isinstance(value, int):
                places[value].append(where)
        if len(places) > 1:
            odd, *others = sorted(places, key=lambda value: len(places[value]))
            owners = list(dict.fromkeys(where.partition(".")[0] for where in places[odd]))
            alone = all(len(places[other]) > len(places[odd]) for other in others)
            remedy = (
                f"take {' and '.join(owners)} from the others' checkpoint" if alone else "take all from one checkpoint"
            )
            said = "; ".join(f"{value} in {', '.join(places[value])}" for value in (odd, *others))
            yield Problem("error", owners[0], f"{what} must agree: {said}", remedy)
    yield from _text(configs)
    yield from _pictures(configs)
    yield from _variance(configs)


def _same(configs: Configs) -> dict[str, dict[str, Any]]:
    """Name of a quantity → where it stands → its value; None where there is none."""
    text, prior, proj = (configs.get(name, {}) for name in ("text_encoder", "prior", "text_proj"))
    decoder, first, last = (configs.get(name, {}) for name in ("decoder", "super_res_first", "super_res_last"))
    image, tokenizer = configs.get("image_encoder", {}), configs.get("tokenizer", {})
    crop = configs.get("feature_extractor", {}).get("crop_size")
    time_width = 4 * decoder["block_out_channels"][0] if decoder else None
    length, context = tokenizer.get("model_max_length"), text.get("max_position_embeddings", inf)
    length = length if isinstance(length, int) else inf
    shorter = "tokenizer.model_max_length" if length < context else "text_encoder.max_position_embeddings"
    return {
        "CLIP's width": {
            "text_encoder.projection_dim": text.get("projection_dim"),
            "text_encoder.hidden_size": text.get("hidden_size"),
            "prior.embedding_dim": prior.get("embedding_dim"),
            "prior.embedding_proj_dim": prior.get("embedding_proj_dim"),
            "prior.clip_embed_dim": prior.get("clip_embed_dim"),
            "text_proj.clip_embeddings_dim": proj.get("clip_embeddings_dim"),
            "image_encoder.projection_dim": image.get("projection_dim"),
        },
        "the width of the decoder's context": {
            "text_proj.cross_attention_dim": proj.get("cross_attention_dim"),
            "decoder.cross_attention_dim": decoder.get("cross_attention_dim"),
        },
        "the width of the decoder's time embedding": {
            "text_proj.time_embed_dim": proj.get("time_embed_dim"),
            "decoder.time_embedding_dim": decoder.get("time_embedding_dim") or time_width,
        },
        "the number of text tokens": {
            shorter: min(length, context),  # what the pipeline pads captions to
            "prior.num_embeddings": prior.get("num_embeddings"),
        },
        "the image encoder's picture size": {
            "feature_extractor.crop_size": crop.get("height") if isinstance(crop, Mapping) else crop,
            "image_encoder.image_size": image.get("image_size"),
        },
        "the upsampler's size": {
            "super_res_first.sample_size": first.get("sample_size"),
            "super_res_last.sample_size": last.get("sample_size"),
        },
        "the upsampler's channels (twice the decoder's)": {
            "decoder.in_channels * 2": 2 * decoder["in_channels"] if decoder else None,
            "super_res_first.in_channels": first.get("in_channels"),
            "super_res_last.in_channels": last.get("in_channels"),
        },
    }


def _text(configs: Configs) -> Iterator[Problem]:
    if not {"tokenizer", "text_encoder"} <= set(configs):
        return
    tokenizer, text = configs["tokenizer"], configs["text_encoder"]
    if tokenizer["vocab_size"] != text["vocab_size"]:
        what = f"it has {tokenizer['vocab_size']} tokens, the text encoder's vocabulary {text['vocab_size']}"
        level = "error" if tokenizer["vocab_size"] > text["vocab_size"] else "warning"
        yield Problem(level, "tokenizer", what, "take both from the same checkpoint")
    ends = tokenizer["eos_token_id"], text["eos_token_id"]
    if None not in ends and ends[0] != ends[1] and ends[1] != 2:  # 2: transformers then pools at the highest id
        what = (
            f"eos_token_id is {ends[1]}, but the tokenizer ends with {ends[0]}: every caption has the same embedding"
        )
        yield Problem("error", "text_encoder", what, f"set eos_token_id to {ends[0]} in its config.json")


def _pictures(configs: Configs) -> Iterator[Problem]:
    chain = [name for name in ("decoder", *UPSAMPLERS) if name in configs]
    for name in chain:
        size = configs[name].get("sample_size")
        if not isinstance(size, int):
            what = f"sample_size must be a number of pixels, got {size!r}"
            yield Problem("error", name, what, "set it in its config.json to the size that it was trained at")
            return
    for small, large in zip(chain, chain[1:], strict=False):
        sizes = configs[small]["sample_size"], configs[large]["sample_size"]
        if sizes[1] <= sizes[0]:
            what = f"it must enlarge the pictures of {small}: they are {sizes[0]} px, its sample_size is {sizes[1]}"
            yield Problem("error", large, what, "take both from the same checkpoint")
    if configs.get("decoder", {}).get("class_embed_type", "identity") != "identity":
        what = "class_embed_type must be 'identity': otherwise it cannot take the image embedding"
        yield Problem("error", "decoder", what, "this is not unCLIP's decoder: take another")


def _variance(configs: Configs) -> Iterator[Problem]:
    """A scheduler with a learned variance needs twice the channels; one without it leaves them unused."""
    pairs = {"decoder": "decoder_scheduler", "prior": "prior_scheduler", **UPSAMPLERS}
    for network, name in pairs.items():
        if network not in configs:
            continue
        config, scheduler = configs[network], configs.get(name, {})
        learned = str(scheduler.get("variance_type")).startswith("learned")
        channels = None if network == "prior" else config["in_channels"] // (2 if network in UPSAMPLERS else 1)
        out = config.get("out_channels")
        if channels is not None and out not in (channels, 2 * channels):
            what = f"out_channels must be {channels}, or {2 * channels} with a learned variance, got {out}"
            yield Problem("error", network, what, "this network is none of this stage: take another")
        elif learned and (channels is None or out == channels):
            remedy = 'set variance_type to "fixed_small_log" in its scheduler_config.json'
            yield Problem(
                "error", name, f"variance_type is {scheduler['variance_type']}, but {network} has none", remedy
            )


def tasks(configs: Configs) -> dict[str, str]:
    """What the components that are sound can do, in words."""
    sizes = [configs[name].get("sample_size") for name in ("decoder", *UPSAMPLERS) if name in configs]
    size = " -> ".join(f"{size} px" for size in sizes)
    words = {}
    for task, name in (("text to image", "UnCLIPPipeline"), ("variations", "UnCLIPImageVariationPipeline")):
        lacking = [needed for needed in REQUIRED[name] if needed not in configs]
        words[task] = f"no: missing or broken: {', '.join(lacking)}" if lacking else size
    return words


def _listed(keys: list[str], what: str) -> str:
    more = f" and {len(keys) - SHOWN} more are" if len(keys) > SHOWN else " are" if len(keys) > 1 else " is"
    return f"{', '.join(keys[:SHOWN])}{more} {what}"


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
