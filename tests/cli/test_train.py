"""`unclip train` from data to a model that opens, and what it refuses before it trains."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.cli import main
from unclip_hub.models.dvae import DVAE
from unclip_hub.models.upsampler import UNet2DModel


COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (40, 60, 220), "yellow": (250, 210, 40)}
QUICK = ["--set", "train.steps=4", "--set", "batch=4", "--set", "train.log_every=2", "--set", "train.warmup=1"]
QUICK += ["--set", "train.tracker=none"]  # trackio keeps its runs in the user's own folder
FEW = ["--proof-steps", "25"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Plain colours with a square on each, 260 px, captions beside them."""
    folder = tmp_path_factory.mktemp("photos")
    for i, (name, colour) in enumerate(COLOURS.items()):
        pixels = np.full((260, 270, 3), colour, np.uint8)
        pixels[20 : 60 + 30 * i, 30:90] = 255 - pixels[20 : 60 + 30 * i, 30:90]
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} wall\n")
    return folder


@pytest.fixture(scope="module")
def cached(photos, tmp_path_factory):
    """Their embeddings."""
    folder = tmp_path_factory.mktemp("cached")
    assert CliRunner().invoke(main, ["embed", str(photos), "-o", str(folder), "-q"]).exit_code == 0
    return folder


def unclip(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def generated(folder):
    pipe = UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    options = {f"{stage}_num_inference_steps": 1 for stage in ("prior", "decoder", "super_res")}
    return pipe("a red wall", generator=torch.Generator().manual_seed(0), output_type="pt", **options).images


def changed(folder, name, file="diffusion_pytorch_model.safetensors"):
    before, after = (load_file(f"{root}/{name}/{file}") for root in (BUNDLED_MODEL, folder))
    return any(not torch.equal(before[key].float(), after[key].float()) for key in before)


@pytest.mark.parametrize(
    ("network", "parts"),
    [("prior", ["prior"]), ("decoder", ["decoder", "text_proj"]), ("upsampler", ["super_res_first"])],
)
def test_a_trained_network_takes_its_place_in_the_base_model(photos, tmp_path, network, parts):
    crop = ["--set", "crop=32"] if network == "upsampler" else []
    ran = unclip(network, "--data", photos, "--output", tmp_path / "run", *QUICK, *FEW, *crop)
    assert ran.exit_code == 0, ran.output
    model = tmp_path / "run" / "model"
    assert generated(model).isfinite().all()
    assert all(changed(model, part) for part in parts)
    others = {"prior", "decoder", "text_proj", "super_res_first"} - set(parts)
    assert not any(changed(model, part) for part in others)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "One batch, 25 steps: loss" in report and "| steps | 4 |" in report and str(photos) in report
    for line in report.splitlines():
        if line.startswith("!["):
            assert Image.open(tmp_path / "run" / line.partition("(")[2][:-1]).size[0] > 100
    assert ("samples.png" in report) == (network != "prior")
    assert ("best linear filter" in report) == (network == "decoder")


def test_a_second_upsampler_goes_on_from_the_first(photos, tmp_path):
    (tmp_path / "large").mkdir()
    for file in photos.glob("*.png"):
        Image.open(file).resize((1024, 1024)).save(tmp_path / "large" / file.name)
        (tmp_path / "large" / f"{file.stem}.txt").write_text("a wall\n")
    other = ["--set", "crop=32", "--set", "size=1024", "--set", "start=first", "--set", "train.lr=1e-5"]
    other += ["--proof-steps", "2"]
    ran = unclip("upsampler", "--data", tmp_path / "large", "--output", tmp_path / "run", *QUICK, *other)
    assert ran.exit_code == 0, ran.output
    first, second = (
        UNet2DModel.from_pretrained(root, subfolder=name).state_dict()
        for root, name in ((BUNDLED_MODEL, "super_res_first"), (tmp_path / "run" / "model", "super_res_1024"))
    )
    away = max((first[key] - second[key]).abs().max().item() for key in first)
    assert 0 < away < 1e-3
    pipe = UnCLIPPipeline.from_pretrained(tmp_path / "run" / "model")
    assert pipe.super_res_1024 is not None and pipe.super_res_1024.config["sample_size"] == 1024
    assert pipe.super_res_1024_scheduler is not None and not changed(tmp_path / "run" / "model", "super_res_first")


def test_an_upsampler_learns_from_pictures_that_the_decoder_has_redrawn(photos, tmp_path):
    whole = ["--set", "crop=256", "--set", "degradation=redrawn", "--set", "start=base", "--set", "train.steps=1"]
    ran = unclip(
        "upsampler", "--data", photos, "--output", tmp_path / "run", *QUICK, *whole, "--set", "batch=2", *FEW[:1], "1"
    )
    assert ran.exit_code == 0, ran.output
    assert changed(tmp_path / "run" / "model", "super_res_first")
    assert not changed(tmp_path / "run" / "model", "decoder")


def test_clip_learns_its_own_tokens_and_stands_alone(photos, tmp_path):
    vocabulary = ["--set", "vocabulary=600"]
    ran = unclip("clip", "--data", photos, "--output", tmp_path / "run", *QUICK, *FEW, *vocabulary)
    assert ran.exit_code == 0, ran.output
    index = json.loads((tmp_path / "run" / "model" / "model_index.json").read_text())
    assert {"text_encoder", "image_encoder", "tokenizer", "feature_extractor"} <= set(index)
    assert "decoder" not in index


def test_a_dvae_stands_alone_and_shows_pictures_beside_what_its_codes_are_worth(photos, tmp_path):
    small = ["--set", "size=16", "--set", "train.steps=2", "--proof-steps", "0"]
    ran = unclip("dvae", "--data", photos, "--output", tmp_path / "run", *QUICK, *small)
    assert ran.exit_code == 0, ran.output
    dvae = DVAE.from_pretrained(tmp_path / "run" / "model", subfolder="dvae")
    with torch.no_grad():
        assert dvae.decode(dvae.encode(torch.zeros(1, 3, 16, 24))).shape == (1, 3, 16, 24)
    assert Image.open(tmp_path / "run" / "samples.png").size[1] >= 32
    stats = json.loads((tmp_path / "run" / "stats.jsonl").read_text().splitlines()[-1])
    assert {"reconstruction", "kl", "error", "perplexity", "codes", "temperature"} <= set(stats)
    again = ["--base", tmp_path / "run" / "model", "--set", "start=base", "--proof-steps", "1"]
    ran = unclip("dvae", "--data", photos, "--output", tmp_path / "more", *QUICK, *small[:-2], *again)
    assert ran.exit_code == 0 and "nothing conditions this network" in ran.output, ran.output


def test_adapters_go_to_a_file_that_the_pipeline_loads(photos, tmp_path):
    lora = ["--set", "start=base", "--set", "lora_rank=3", "--set", "train.lr=1e-2", "--proof-steps", "0"]
    ran = unclip("prior", "--data", photos, "--output", tmp_path / "run", *QUICK, *lora)
    assert ran.exit_code == 0, ran.output
    assert not (tmp_path / "run" / "model").exists()
    pipe = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
    pipe.set_progress_bar_config(disable=True)

    def embeds():
        return pipe.sample_prior(
            pipe.encode_text("a red wall"), num_inference_steps=1, generator=torch.Generator().manual_seed(0)
        )

    with torch.no_grad():
        before = embeds()
        pipe.load_lora_weights(tmp_path / "run" / "lora")
        assert (embeds() - before).abs().max() > 1e-4


def test_the_same_command_again_changes_nothing_and_other_settings_are_refused(photos, tmp_path):
    command = ["prior", "--data", photos, "--output", tmp_path / "run", *QUICK, "--proof-steps", "0"]
    assert unclip(*command).exit_code == 0
    weights = tmp_path / "run" / "model" / "prior" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert unclip(*command).exit_code == 0
    assert weights.read_bytes() == before
    refused = unclip(*command, "--set", "train.lr=0.5")
    assert refused.exit_code == 1 and "is of a run with other settings" in refused.output
    assert weights.read_bytes() == before


def test_embeddings_computed_before_give_the_same_prior(photos, tmp_path):
    assert CliRunner().invoke(main, ["embed", str(photos), "-o", str(tmp_path / "cached"), "-q"]).exit_code == 0
    for data, output in ((photos, "pictures"), (tmp_path / "cached", "cached")):
        fine = ["--set", "start=base", "--set", "train.precision=no", "--proof-steps", "0"]
        ran = unclip("prior", "--data", data, "--output", tmp_path / output, *QUICK, *fine)
        assert ran.exit_code == 0, ran.output
    losses = [
        json.loads((tmp_path / output / "stats.jsonl").read_text().splitlines()[-1])["loss"]
        for output in ("pictures", "cached")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)  # the rows come in another order


def test_a_dry_run_counts_dalles_dvae():
    ran = unclip("dvae", "--data", "x", "--output", "x", "--config", "paper", "--dry-run")
    assert ran.exit_code == 0, ran.output
    assert "97.6 million parameters" in ran.output  # of OpenAI's two halves


@pytest.mark.parametrize("kind", ["autoregressive", "one_step", "flow", "gaussian"])
def test_every_kind_of_prior_takes_its_place_and_samples_as_it_was_trained(cached, tmp_path, kind):
    if kind == "gaussian":
        options = ["--set", "batch=2"]
    else:
        options = [*QUICK, "--set", "train.steps=2", "--proof-steps", "0"]
    ran = unclip("prior", "--kind", kind, "--data", cached, "--output", tmp_path / "run", *options)
    assert ran.exit_code == 0, ran.output
    model = tmp_path / "run" / "model"
    pipe = UnCLIPPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    steps = {f"{stage}_num_inference_steps": 1 for stage in ("decoder", "super_res")}
    called = []

    def count(pipe, step, t, tensors):
        called.append(pipe.stage)
        return tensors

    generator = torch.Generator().manual_seed(0)
    images = pipe("a red wall", generator=generator, output_type="pt", callback_on_step_end=count, **steps).images
    assert images.isfinite().all()
    assert called.count("prior") == (4 if kind == "flow" else 0)
    assert (pipe.prior_scheduler is None) == (kind != "flow")
    assert not any(changed(model, part) for part in ("decoder", "text_proj", "super_res_first"))
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"kind={kind}" in report and "baseline" in report or kind == "gaussian"
    if kind == "gaussian":
        assert "| fitted to | 4 embeddings |" in report and not (tmp_path / "run" / "checkpoints").exists()


def test_a_kind_is_a_priors_and_a_base_must_be_of_it(photos, tmp_path):
    refused = unclip("decoder", "--kind", "flow", "--data", photos, "--output", tmp_path / "run")
    assert refused.exit_code == 1 and "--kind is a prior's, decoder has only one" in refused.output
    other = ["--kind", "one_step", "--set", "start=base"]
    refused = unclip("prior", *other, "--data", photos, "--output", tmp_path / "run")
    assert refused.exit_code == 1 and "prior is a PriorTransformer, expected a OneStepPrior" in refused.output


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("autoregressive", r"\d\.\d million parameters, 256,000 views"),
        ("one_step", r"1\.5 million parameters, 256,000 views"),
        ("flow", r"1\.6 million parameters, 256,000 views"),
        ("gaussian", r"0\.1 million parameters, one pass over the data"),
    ],
)
def test_a_dry_run_knows_every_kind_of_prior(kind, said):
    ran = unclip("prior", "--kind", kind, "--data", "x", "--output", "x", "--dry-run")
    assert ran.exit_code == 0, ran.output
    assert re.search(said, ran.output) and "memory, one process" in ran.output


def test_a_dry_run_counts_the_papers_decoder():
    ran = unclip("decoder", "--data", "x", "--output", "x", "--config", "paper", "--dry-run")
    assert ran.exit_code == 0, ran.output
    assert "2252.9 million parameters" in ran.output and "optimizer 18.02 GB" in ran.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prior", "--data", "nowhere"], "no data in 'nowhere': there is no such file or folder"),
        (["prior", "--data", "scenes", "--set", "start=middle"], "start must be 'scratch' or 'base', got 'middle'"),
        (["prior", "--data", "scenes", "--base", "nowhere"], "no model 'nowhere'"),
        (["upsampler", "--data", "scenes:256", "--set", "degradation=rain"], "degradation must be one of blur_noise"),
        (["upsampler", "--data", "scenes", "--set", "start=here"], "'scratch' or 'base' or 'first', got 'here'"),
        (
            ["upsampler", "--data", "scenes:256", "--set", "degradation=redrawn"],
            "redraws whole pictures: expected a crop of 256, got 128",
        ),
        (
            ["upsampler", "--data", "scenes", "--set", "degradation=redrawn", "--set", "size=1024"],
            "decoder draws 64 px, expected a quarter of the upsampler's, 256",
        ),
        (
            ["upsampler", "--data", "scenes:64", "--set", "train.steps=1"],
            "is 64x64, expected edges of at least 256 px",
        ),
        (["dvae", "--data", "scenes", "--set", "start=base"], "start is 'base', but the base model has no dvae"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(tmp_path, arguments, message):
    ran = unclip(*arguments, "--output", tmp_path / "run")
    assert ran.exit_code == 1 and message in ran.output, ran.output
    assert not (tmp_path / "run" / "model").exists()
