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
            Image.new(mode, (64, 32), color).save(path)
    (tmp_path / "classes.json").write_text(json.dumps(["road", "sky"]))
    return tmp_path


def test_pictures_show_an_image_above_its_label_map_with_the_options_of_a_run(script, folder, tmp_path):
    options = {"dataset_name": folder, "output_dir": tmp_path / "out", "shortest_edge": 0, "report_to": "none"}
    options |= {"photometric_distortion": False, "num_pictures": 3}
    command = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    (path,) = script.main([*command, "--crop_size", "32", "64", "--scale_range", "1", "1"])
    assert path == tmp_path / "out" / "augmentation_0.png"
    pixels = np.asarray(Image.open(path))
    top = int((pixels == (200, 30, 60)).all(-1).any(1).argmax())
    color_of_sky = load_segmentation_dataset(str(folder)).palette[1]
    for first, color in ((top, (200, 30, 60)), (top + 32, color_of_sky)):
        columns = (pixels[first : first + 32] == color).all(-1).all(0)
        assert columns.sum() == 64 * (1 + script.NUM_EPOCHS)
