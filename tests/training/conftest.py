# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A small drawn data set in a folder, the options of a tiny run, and one that is over."""

import json
from pathlib import Path

import pytest
import torch

from modeling_mtaclip.data.scenes import SCENE_CLASSES, make_scene
from modeling_mtaclip.training import Run, parse_run_arguments, prepare_run
from modeling_mtaclip.training.arguments import new_model_options


# A model that takes milliseconds a step, with every part that a real one has.
TINY_OPTIONS = {
    "backbone": "resnet",
    "backbone_config": json.dumps(
        {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    ),
    "text_hidden_size": 64,
    "text_layers": 1,
    "num_queries": 10,
    "hidden_size": 32,
    "mask_feature_size": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_prompt_contexts": 2,
    "prompt_length": 2,
    "train_num_points": 64,
    "shortest_edge": 0,
    "crop_size": "64 64",
    "per_device_train_batch_size": 2,
    "warmup_steps": 0,
    "max_grad_norm": 1,
    "learning_rate": 1e-3,
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "num_pictures": 2,
    "num_threads": 1,
    "dataloader_num_workers": 0,
}
SEVERAL_VALUES = ("crop_size", "scale_range", "image_mean", "image_std")


def options(**overrides: object) -> list[str]:
    """Command-line options of a tiny run, with some of them replaced; `None` leaves one out."""
    merged = {name: value for name, value in (TINY_OPTIONS | overrides).items() if value is not None}
    if "model_name_or_path" in merged:
        merged = {
            name: value for name, value in merged.items() if name not in new_model_options() or name in overrides
        }
    arguments = []
    for name, value in merged.items():
        values = str(value).split() if name in SEVERAL_VALUES else [value]
        arguments += [f"--{name}", *map(str, values)]
    return arguments


def prepare(folder: Path, **overrides: object) -> Run:
    """A tiny run on the data set in `folder/data`, with results in `folder/out`."""
    arguments = options(**({"dataset_name": folder / "data", "output_dir": folder / "out"} | overrides))
    return prepare_run(*parse_run_arguments([*arguments, "--report_to", "none"]))


def draw_folder(folder: Path, num_train: int = 8, num_validation: int = 3) -> Path:
    """Writes drawn scenes as a folder data set."""
    for split, first, number in (("train", 0, num_train), ("val", 100, num_validation)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for seed in range(first, first + number):
            image, annotation = make_scene(seed, 64, 80 + 16 * (seed % 2))
            image.save(folder / "images" / split / f"{seed}.png")
            annotation.save(folder / "annotations" / split / f"{seed}.png")
    (folder / "classes.json").write_text(json.dumps(list(SCENE_CLASSES)))
    return folder


@pytest.fixture
def folder_data(tmp_path: Path) -> Path:
    """A folder data set of 8 training and 3 validation scenes."""
    return draw_folder(tmp_path / "data")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps with an evaluation after every second step, which is over."""
    folder = tmp_path_factory.mktemp("finished")
    draw_folder(folder / "data", num_validation=5)
    torch.manual_seed(0)
    run = prepare(folder, check_data="none")
    run.execute()
    return run
