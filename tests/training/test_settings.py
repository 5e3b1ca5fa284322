"""Settings of a training: shipped files, YAML, changes by key, and what does not fit."""

import re

import pytest
import yaml

from unclip_hub.training import settings
from unclip_hub.training.settings import NETWORKS, SHIPPED, read_settings, shipped


FILES = sorted(SHIPPED.glob("*.yaml"))


def test_without_anything_they_are_the_networks_defaults():
    for name, cls in NETWORKS.items():
        assert read_settings(name) == cls()


def test_changes_keep_what_they_do_not_name():
    changed = read_settings("prior", changes=["train.lr=1e-4", "batch=7", "train.betas=[0.8, 0.95]"])
    assert (changed.train.lr, changed.batch, changed.train.betas) == (1e-4, 7, (0.8, 0.95))
    assert changed.train.ema == settings.Prior().train.ema == 0.995  # not TrainConfig's own default


def test_changes_come_after_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("batch: 5\ntrain: {steps: 10, lr: 0.5, precision: no}\n")
    read = read_settings("decoder", config=str(file), changes=["train.steps=20"])
    assert (read.batch, read.train.steps, read.train.lr, read.train.precision) == (5, 20, 0.5, "no")


def test_a_kind_of_prior_has_settings_of_its_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("kind: one_step\ncontrastive: 0.5\n")
    read = read_settings("prior", config=str(file), changes=["batch=7"])
    assert read == settings.OneStepPrior(contrastive=0.5, batch=7) and read.kind == "one_step"
    assert read_settings("prior", config="flow").objective.schedule == "flow"
    assert read_settings("prior", config="flow", changes=["kind=gaussian", "kind=flow"]).kind == "flow"
    for kind, cls in settings.PRIORS.items():
        assert read_settings("prior", changes=[f"kind={kind}"]) == cls() and cls.kind == kind


def test_no_is_a_word():
    assert read_settings("prior", changes=["train.precision=no"]).train.precision == "no"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_shipped_files_are_read_and_headed_by_their_command(file):
    network, name = file.stem.split("-")
    read = read_settings(network, config=name)
    given = yaml.safe_load(file.read_text())
    assert all(getattr(read, key) == given[key] for key in {"kind", "preset", "batch"} & set(given))
    head = file.read_text().splitlines()[0]
    assert re.match(rf"# .*\btrain {network} --data \S.* --output \S+ --config {name}\b", head)
    assert re.search("Time: .*Score: |Not run here", " ".join(file.read_text().splitlines()[1:3]), re.DOTALL)


def test_every_network_has_the_bundled_models_settings():
    assert all("tiny" in shipped(network) for network in NETWORKS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"config": "huge"},
            r"no settings 'huge': expected a YAML file or one of autoregressive, flow, gaussian, .*tiny",
        ),
        ({"changes": ["lr"]}, "--set takes key=value, for example train.lr=1e-4, got 'lr'"),
        ({"changes": ["lr=1"]}, "--set lr=1: there is no setting 'lr', expected one of preset, start"),
        ({"changes": ["train.learning_rate=1"]}, "there is no setting 'learning_rate', expected one of steps, lr"),
        ({"changes": ["train=3"]}, "--set train=3: expected keys and values, got 3"),
        ({"changes": ["train.steps=many"]}, "`train.steps`: Couldn't parse 'many' into an int"),
        ({"changes": ["train.steps=0"]}, "steps must be at least 1, got 0"),
        ({"changes": ["objective.weighting=heavy"]}, "weighting must be one of .*, got 'heavy'"),
        ({"changes": ["kind=magic"]}, "kind must be one of diffusion, autoregressive, .*, got 'magic'"),
        ({"changes": ["kind=one_step", "drop_caption=0"]}, "no setting 'drop_caption', expected one of preset"),
        ({"changes": ["kind=gaussian", "batches=-1"]}, "batch at least 1 and batches at least 0, got 256 and -1"),
        ({"changes": ["objective.schedule=flow"]}, "schedule 'flow' and kind 'flow' need each other, got 'flow'"),
        ({"config": "flow", "changes": ["objective.schedule=linear"]}, "need each other, got 'linear'"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        read_settings("prior", **options)
