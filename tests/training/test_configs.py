# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Every configuration file, and `--dry_run`."""

import re
from pathlib import Path

import pytest
import yaml

from modeling_mtaclip.conversion import make_backbone_config
from modeling_mtaclip.training import dry_run, parse_run_arguments, prepare_run
from modeling_mtaclip.training.arguments import CONFIG_FIELDS
from tests.training.conftest import options


CONFIGS = Path(__file__).parents[2] / "configs"
BACKBONES = ("clip_rn50", "clip_rn101", "clip_vit_b16", "swin_b")
PAPER_RUNS = [
    *(f"ade20k_{backbone}" for backbone in BACKBONES),
    *(f"cityscapes_{backbone}_{crop}" for backbone in BACKBONES for crop in ("512x1024", "1024x1024")),
]
OTHERS = ("toy", "camvid", "template", "ade20k_clip_rn50_ours")
AUTHORS = {
    "supervise_initial_prediction": False,
    "mask_loss_normalizer": "class_weights",
    "ignored_pixels": "background",
}


def parse(name):
    return parse_run_arguments([str(CONFIGS / f"{name}.yaml")])


def test_there_is_a_file_for_every_run_of_the_paper_and_each_has_its_own_folder():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {*PAPER_RUNS, *OTHERS}
    assert len({parse(name)[2].output_dir for name in names}) == len(names)
    text = yaml.safe_load((CONFIGS / "base" / "paper.yaml").read_text())
    assert {"seed", "bf16", "train_num_points", "hidden_size", "decoder_layers", "model_config"} <= text.keys()
    with pytest.raises(ValueError, match="Which data set"):
        prepare_run(*parse("camvid"))


@pytest.mark.parametrize("name", PAPER_RUNS)
def test_the_papers_runs_follow_the_authors(name):
    model, data, training = parse(name)
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


@pytest.mark.parametrize("name", ["clip_rn50", "swin_b"])
def test_the_papers_backbones_have_four_levels(name):
    model, _, _ = parse(f"ade20k_{name}")
    backbone = "swin" if name == "swin_b" else model.backbone
    assert len(make_backbone_config(backbone, model.backbone_config).out_features) == 4


def test_a_dry_run_takes_two_steps_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {"total_train_batch_size": 2, "per_device_train_batch_size": 1, "max_steps": 700}
    report = dry_run(*parse_run_arguments([*options(dataset_name="scenes", **more), "--use_cpu"]))
    for row in (
        r"parameters +\d+\.\d+ M trained, \d+\.\d+ M frozen",
        r"batch +2 = 1 per device x 1 processes x 2 accumulated",
        r"a checkpoint +\d+ MiB; \d+ MiB are free",
        r"a step +\d+\.\d+ s, mean loss of two \d+\.\d+",
        r"peak memory +\d+ MiB",
        r"an image +\d+\.\d+ s, mean IoU 0\.\d+",
        r"expected time +700 steps in \d+:\d\d:\d\d, each evaluation of 100 images \d+:\d\d",
    ):
        assert re.search(row, report), row
    assert not any(tmp_path.iterdir())
