# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Every configuration file, what a run lacks, and `--dry_run`."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from modeling_mtaclip.conversion import make_backbone_config
from modeling_mtaclip.data import DATASETS
from modeling_mtaclip.training import dry_run, parse_run_arguments, prepare_run
from modeling_mtaclip.training.arguments import CONFIG_FIELDS
from modeling_mtaclip.training.dry_run import ADDRESSES, missing_data, missing_weights
from tests.training.conftest import options


CONFIGS = sorted(path.name for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))
PAPER_RUNS = [
    *(f"ade20k_{backbone}" for backbone in ("clip_rn50", "clip_rn101", "clip_vit_b16", "swin_b")),
    *(
        f"cityscapes_{backbone}_{crop}"
        for backbone in ("clip_rn50", "clip_rn101", "clip_vit_b16", "swin_b")
        for crop in ("512x1024", "1024x1024")
    ),
]
OTHERS = {"toy.yaml", "camvid.yaml", "template.yaml", "ade20k_clip_rn50_ours.yaml"}
AUTHORS = {
    "supervise_initial_prediction": False,
    "mask_loss_normalizer": "class_weights",
    "ignored_pixels": "background",
}


def parse(repository_dir, name, *arguments):
    return parse_run_arguments([str(repository_dir / "configs" / name), *arguments])


def test_there_is_a_file_for_every_run_of_the_paper_and_each_has_its_own_folder(repository_dir):
    assert set(CONFIGS) == {*(f"{name}.yaml" for name in PAPER_RUNS), *OTHERS}
    folders = {parse(repository_dir, name)[2].output_dir for name in CONFIGS}
    assert len(folders) == len(CONFIGS)


@pytest.mark.parametrize("name", PAPER_RUNS)
def test_the_papers_runs_follow_the_authors(repository_dir, name):
    model, data, training = parse(repository_dir, f"{name}.yaml")
    assert model.model_config == AUTHORS
    # The defaults of the options are the recipe.
    defaults = parse_run_arguments(["--dataset_name", "x"])
    for option in CONFIG_FIELDS:
        assert getattr(model, option) == getattr(defaults[0], option), option
    recipe = ("learning_rate", "weight_decay", "backbone_lr_factor", "max_grad_norm", "warmup_steps")
    for option in (*recipe, "warmup_start_factor", "lr_scheduler_type", "seed", "bf16"):
        assert getattr(training, option) == getattr(defaults[2], option), option
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    inference = training.inference_options
    if name.startswith("ade20k"):
        side = 640 if "swin" in name else 512
        assert (data.size, data.crop_size) == ({"shortest_edge": side, "longest_edge": 4 * side}, [side, side])
        assert (inference.mode, inference.window) == ("slide", (side, side))
    else:
        crop = [int(side) for side in name.split("_")[-1].split("x")]
        assert (data.size, data.crop_size) == ({"shortest_edge": 1024, "longest_edge": 2048}, crop)
        assert inference.mode == "whole"
    assert data.dataset_name == name.split("_")[0]
    assert training.max_steps == {"ade20k": 160_000, "cityscapes": 90_000}[data.dataset_name]
    assert training.sync_batch_norm == ("clip_rn" in name)
    assert (data.scale_range, data.cat_max_ratio, data.photometric_distortion) == ([0.5, 2.0], 0.75, True)


def test_files_say_what_they_need_in_the_open(repository_dir):
    text = yaml.safe_load((repository_dir / "configs" / "base" / "paper.yaml").read_text())
    assert {"seed", "bf16", "train_num_points", "hidden_size", "decoder_layers", "model_config"} <= text.keys()
    with pytest.raises(ValueError, match="Which data set"):
        prepare_run(*parse(repository_dir, "camvid.yaml"))


@pytest.mark.parametrize("name", ["clip_rn50", "swin_b"])
def test_the_papers_backbones_have_four_levels(repository_dir, name):
    model, _, _ = parse(repository_dir, f"ade20k_{name}.yaml")
    backbone = "swin" if name == "swin_b" else model.backbone
    assert len(make_backbone_config(backbone, model.backbone_config).out_features) == 4


def test_what_is_missing_is_named_with_the_way_to_it(repository_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, data, training = parse(repository_dir, "ade20k_clip_rn50.yaml", "--dry_run")
    with pytest.raises(ValueError, match="needs what is not on this machine") as error:
        dry_run(model, data, training)
    for option in ("text_encoder", "backbone_weights"):
        assert f"- {option} weights/RN50.pt: download {ADDRESSES['RN50.pt']}" in str(error.value)
    assert "- data_dir data/ADEChallengeData2016: download " in str(error.value)
    assert DATASETS["ade20k"].download in str(error.value)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "RN50.pt").touch()
    (tmp_path / "data" / "ADEChallengeData2016").mkdir(parents=True)
    assert [*missing_weights(model), *missing_data(data)] == []


def test_hub_models_count_as_there_when_they_are_in_the_cache(repository_dir, monkeypatch):
    monkeypatch.setattr(
        sys.modules["modeling_mtaclip.training.dry_run"],
        "try_to_load_from_cache",
        lambda repository, name: "a path" if repository == "openai/clip-vit-base-patch16" else None,
    )
    arguments = ["--dataset_name", "scenes", "--text_encoder", "openai/clip-vit-base-patch16"]
    model, _, _ = parse_run_arguments([*arguments, "--backbone", "resnet18", "--backbone_weights", "pretrained"])
    (weights,) = missing_weights(model)
    assert "timm/resnet18.a1_in1k: download it from the Hub" in weights
    assert list(missing_weights(parse(repository_dir, "ade20k_clip_vit_b16.yaml")[0])) == []


def test_a_dry_run_takes_two_steps_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    more = {"total_train_batch_size": 2, "per_device_train_batch_size": 1, "max_steps": 700}
    report = dry_run(*parse_run_arguments([*options(dataset_name="scenes", **more), "--use_cpu"]))
    assert re.search(r"parameters +\d+\.\d+ M trained, \d+\.\d+ M frozen\n    backbone ", report)
    assert re.search(r"two steps +\d+\.\d+ s and \d+\.\d+ s, mean loss \d+\.\d+", report)
    assert re.search(r"one image +\d+\.\d+ s, mean IoU 0\.\d+", report)
    assert re.search(r"peak memory +\d+ MiB", report)
    assert "700 steps in " in report
    assert "2 = 1 per device x 1 processes x 2 accumulated" in report
    assert "1 MiB are free: NOT ENOUGH" in report
    assert not any(tmp_path.iterdir())
