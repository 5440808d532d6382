# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Every configuration file, tried with `--dry_run`: as it is up to the sizes, which are made tiny."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from modeling_mtaclip.conversion import make_backbone_config
from modeling_mtaclip.training import dry_run, parse_run_arguments
from modeling_mtaclip.training.building import CONFIG_FIELDS
from modeling_mtaclip.training.sources import ADDRESSES, find_sources, stand_in_for_weights
from tests.training.conftest import draw_folder, options


CONFIGS = sorted(path.name for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))
PAPER_RUNS = [
    "ade20k_clip_rn50",
    "ade20k_clip_rn101",
    "ade20k_clip_vit_b16",
    "ade20k_swin_b",
    *(
        f"cityscapes_{backbone}_{crop}"
        for backbone in ("clip_rn50", "clip_rn101", "clip_vit_b16", "swin_b")
        for crop in ("512x1024", "1024x1024")
    ),
]
# Fields that make the backbones of the files tiny.
TINY_BACKBONES = {
    "clip_rn": {"width": 8, "layers": [1, 1, 1, 1]},
    "clip_vit": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 64},
    "swin": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64},
    "mine": {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
}
TINY = {
    "backbone": None,
    "backbone_config": None,
    "shortest_edge": 64,
    "longest_edge": 128,
    "total_train_batch_size": 2,
    "per_device_train_batch_size": 1,
    "dataloader_num_workers": 0,
    "max_steps": None,
    "learning_rate": None,
    "warmup_steps": None,
    "max_grad_norm": None,
    "eval_steps": None,
    "save_steps": None,
}


def read(repository_dir, name):
    return yaml.safe_load((repository_dir / "configs" / name).read_text())


def tiny_options(name, folder_data):
    overrides = dict(TINY)
    if name in ("toy.yaml", "camvid.yaml"):
        overrides["longest_edge"] = 2048
    if name == "template.yaml":
        overrides |= {"dataset_name": folder_data, "backbone": "resnet"}
        return options(**(overrides | {"backbone_config": json.dumps(TINY_BACKBONES["mine"])}))
    kind = next((kind for kind in TINY_BACKBONES if kind in name), None)
    if kind is not None:
        overrides["backbone_config"] = json.dumps(TINY_BACKBONES[kind])
    return options(**overrides)


@pytest.fixture(scope="module")
def drawn_data(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("drawn") / "data")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_passes_a_dry_run(repository_dir, drawn_data, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = read(repository_dir, name)
    report = dry_run(
        *parse_run_arguments([str(repository_dir / "configs" / name), *tiny_options(name, drawn_data), "--use_cpu"])
    )
    assert re.search(r"parameters +\d+\.\d+ M trained, \d+\.\d+ M frozen", report)
    assert re.search(r"two steps +\d+\.\d+ s and \d+\.\d+ s, mean loss \d+\.\d+", report)
    assert re.search(r"one image +\d+\.\d+ s, mean IoU 0\.\d+", report)
    assert re.search(r"peak memory +\d+ MiB", report)
    assert f"{config['max_steps']} steps in " in report
    assert "2 = 1 per device x 1 processes x 2 accumulated" in report
    for option in ("text_encoder", "backbone_weights", "data_dir"):
        assert (f"{option:<17}" in report) == (option in config)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", PAPER_RUNS)
def test_the_papers_runs_have_the_papers_recipe(repository_dir, name):
    model, data, training = parse_run_arguments([str(repository_dir / "configs" / f"{name}.yaml")])
    defaults = parse_run_arguments(["--dataset_name", "x"])
    # The defaults of the options are the recipe; the text encoder's size is for stand-ins only.
    for option in CONFIG_FIELDS:
        assert getattr(model, option) == getattr(defaults[0], option), option
    recipe = ("learning_rate", "weight_decay", "backbone_lr_factor", "max_grad_norm", "warmup_steps")
    recipe += ("warmup_start_factor", "lr_scheduler_type", "lr_scheduler_kwargs")
    for option in recipe:
        assert getattr(training, option) == getattr(defaults[2], option), option
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    if name.startswith("ade20k"):
        side = 640 if "swin" in name else 512
        assert (data.size, data.crop_size) == ({"shortest_edge": side, "longest_edge": 4 * side}, [side, side])
    else:
        crop = [int(side) for side in name.split("_")[-1].split("x")]
        assert (data.size, data.crop_size) == ({"shortest_edge": 1024, "longest_edge": 2048}, crop)
    assert data.dataset_name == name.split("_")[0]
    assert training.max_steps == {"ade20k": 160_000, "cityscapes": 90_000}[data.dataset_name]
    assert (data.scale_range, data.cat_max_ratio, data.photometric_distortion) == ([0.5, 2.0], 0.75, True)


def test_there_is_a_file_for_every_run_of_the_paper():
    assert set(CONFIGS) == {*(f"{name}.yaml" for name in PAPER_RUNS), "toy.yaml", "camvid.yaml", "template.yaml"}


@pytest.mark.parametrize("name", PAPER_RUNS)
def test_the_papers_backbones_have_four_levels(repository_dir, name):
    model, data, _ = parse_run_arguments([str(repository_dir / "configs" / f"{name}.yaml")])
    arguments = stand_in_for_weights(model, find_sources(model, data))
    config = make_backbone_config(arguments.backbone, arguments.backbone_config)
    assert len(config.out_features) == 4


def test_what_is_there_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B-16.pt").touch()
    model, data, _ = parse_run_arguments(
        ["--dataset_name", "ade20k", "--backbone_weights", "weights/RN50.pt", "--text_encoder", "ViT-B-16.pt"]
    )
    sources = {source.option: source for source in find_sources(model, data)}
    assert {option: source.is_there for option, source in sources.items()} == {
        "backbone_weights": False,
        "text_encoder": True,
        "data_dir": False,
    }
    assert sources["backbone_weights"].how_to_get == f"download {ADDRESSES['RN50.pt']} to weights/RN50.pt"
    replaced = stand_in_for_weights(model, list(sources.values()))
    assert (replaced.backbone_weights, replaced.text_encoder) == (None, "ViT-B-16.pt")


def test_hub_models_count_as_there_when_they_are_in_the_cache(monkeypatch):
    monkeypatch.setattr(
        "modeling_mtaclip.training.sources.try_to_load_from_cache",
        lambda repository, name: "a path" if repository == "openai/clip-vit-base-patch16" else None,
    )
    arguments = ["--dataset_name", "scenes", "--text_encoder", "openai/clip-vit-base-patch16"]
    model, data, _ = parse_run_arguments([*arguments, "--backbone", "resnet18", "--backbone_weights", "pretrained"])
    text, weights = find_sources(model, data)
    assert text.is_there
    assert (weights.value, weights.is_there) == ("timm/resnet18.a1_in1k", False)
    assert weights.how_to_get == "would be downloaded from the Hub"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_name_or_path", "some/model", "--dataset_name", "scenes"], "its sizes are not known"),
        (["--dataset_name", "some/data"], "'some/data' is not on this machine, and its classes are not known"),
    ],
)
def test_what_nothing_can_stand_in_for_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        dry_run(*parse_run_arguments(arguments))


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    report = dry_run(*parse_run_arguments([*options(dataset_name="scenes", output_dir=tmp_path), "--use_cpu"]))
    assert "1 MiB are free: NOT ENOUGH" in report
