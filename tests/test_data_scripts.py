# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The script that draws augmented examples."""

import runpy

import numpy as np
import pytest
from PIL import Image

from modeling_mtaclip.data import load_segmentation_dataset
from tests.data.conftest import save, write


@pytest.mark.parametrize("shortest_edge", [0, 16])
def test_pictures_show_an_image_above_its_label_map_with_the_options_of_a_run(repository_dir, tmp_path, shortest_edge):
    color = (200, 30, 60)
    folder = write(tmp_path, np.ones((32, 64), np.uint8))
    save(Image.new("RGB", (64, 32), color), folder / "images/train/0.png")
    script = runpy.run_path(str(repository_dir / "scripts/show_augmentation.py"))
    options = {"dataset_name": folder, "output_dir": tmp_path / "out", "shortest_edge": shortest_edge}
    options |= {"photometric_distortion": False, "num_pictures": 3, "report_to": "none"}
    command = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    (path,) = script["main"]([*command, "--crop_size", "32", "64", "--scale_range", "1", "1"])
    assert path == tmp_path / "out" / "augmentation_0.png"
    pixels = np.asarray(Image.open(path))
    top = int((pixels == color).all(-1).any(1).argmax())
    color_of_sky = load_segmentation_dataset(str(folder)).palette[1]
    for first, expected in ((top, color), (top + 32, color_of_sky)):
        columns = (pixels[first : first + 16] == expected).all(-1).all(0)
        assert columns.sum() == 64 + (64 if shortest_edge == 0 else 32) * script["NUM_EPOCHS"]
