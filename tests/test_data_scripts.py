# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The script that draws augmented examples."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_mtaclip.data import load_segmentation_dataset


def load_script(repository_dir: Path, name: str):
    specification = importlib.util.spec_from_file_location(name, repository_dir / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script(repository_dir: Path):
    return load_script(repository_dir, "show_augmentation")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for kind, mode, color in (("images", "RGB", (200, 30, 60)), ("annotations", "L", 1)):
            path = tmp_path / kind / split / "a.png"
            path.parent.mkdir(parents=True)
            Image.new(mode, (48, 40), color).save(path)
    (tmp_path / "classes.json").write_text(json.dumps(["road", "sky"]))
    return tmp_path


def test_picture_is_drawn_with_the_options_of_a_run(script, folder, tmp_path):
    options = ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "out"), "--crop_size", "32", "64"]
    picture = script.main([*options, "--shortest_edge", "0", "--report_to", "none"])
    assert picture == tmp_path / "out" / "augmentation.png"
    assert np.asarray(Image.open(picture).convert("RGB")).std() > 0


def test_panels_show_image_above_label_map(script, folder):
    data = load_segmentation_dataset(str(folder))
    augmentation = script.Augmentation(
        (40, 48), scale_range=(1, 1), photometric_distortion=False, image_mean=(0, 0, 0), image_std=(1, 1, 1)
    )
    pixels = np.asarray(script.draw_examples(data, augmentation, num_examples=3, seed=0))
    top = int((pixels == (200, 30, 60)).all(-1).any(1).argmax())
    for first, color in ((top, (200, 30, 60)), (top + 40 + script.GAP, data.palette[1])):
        columns = (pixels[first : first + 40] == color).all(-1).all(0)
        assert columns.sum() == 48 * (1 + script.NUM_EPOCHS)
