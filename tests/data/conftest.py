# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Folders of images with label maps."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


NAMES = ["road", "sky", "tree"]
SIZE = (24, 32)


def label_map(seed: int = 0, values: Sequence[int] = (0, 1, 2, 255), dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(values, dtype), SIZE)


def save(picture: Image.Image | np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path)
    return path


def write(root: Path, *maps: np.ndarray, split: str = "train", classes: object = NAMES) -> Path:
    """Adds a split of these label maps with images of noise."""
    for index, labels in enumerate(maps):
        pixels = np.random.default_rng(index).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
        save(pixels, root / "images" / split / f"{index}.png")
        save(labels, root / "annotations" / split / f"{index}.png")
    (root / "classes.json").write_text(json.dumps(classes))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training examples, five validation examples, and two test images."""
    root = write(tmp_path, *map(label_map, range(6)))
    write(root, *map(label_map, range(5)), split="val")
    for index in range(2):
        save(Image.effect_noise(SIZE[::-1], 90).convert("RGB"), root / f"images/test/{index}.png")
    return root
