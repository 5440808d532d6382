# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawn scenes and colors."""

import numpy as np
import pytest

from modeling_mtaclip.data import generate_palette, load_segmentation_dataset, make_scene
from modeling_mtaclip.data.scenes import SCENE_CLASSES


NUMBER = len(SCENE_CLASSES)


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray]:
    images, maps = zip(*(make_scene(seed) for seed in range(24)), strict=True)
    return np.stack(images), np.stack(maps)


def test_a_seed_gives_one_scene_and_splits_share_none():
    data = load_segmentation_dataset()
    stream = load_segmentation_dataset("scenes", streaming=True)
    assert data.class_names == list(SCENE_CLASSES)
    for source in (data, stream):
        image, labels = source.read(next(iter(source.splits["train"])))
        np.testing.assert_array_equal(image, make_scene(0)[0])
        np.testing.assert_array_equal(labels, make_scene(0)[1])
    assert image.tobytes() != make_scene(1)[0].tobytes()
    assert (image.mode, image.size, make_scene(3, 64, 96)[1].size) == ("RGB", (160, 128), (96, 64))
    assert set(data.splits["train"][:3]["name"]).isdisjoint(data.splits["validation"][:3]["name"])


def test_scenes_show_all_classes_and_ignore_only_borders(scenes):
    _, maps = scenes
    counts = np.bincount(maps.ravel(), minlength=256) / maps.size
    assert set(np.flatnonzero(counts)) == {*range(NUMBER), 255}
    assert counts[:NUMBER].min() > 0.005
    assert counts[255] < 0.06
    # Most scenes have most classes, so that no single class answers for the score.
    assert np.mean([len(np.unique(labels)) for labels in maps]) > 7


def test_classes_cannot_be_told_by_color_alone(scenes):
    images, maps = scenes
    codes = images // 32 @ np.array([64, 8, 1])
    # Even with the best class for each of 512 colors, fitted on these very scenes, the intersections are small.
    tables = np.stack([np.bincount(codes[maps == label], minlength=512) for label in range(NUMBER)])
    chosen = tables.argmax(axis=0) == np.arange(NUMBER)[:, None]
    hits = (tables * chosen).sum(axis=1)
    unions = tables.sum(axis=1) + (tables.sum(axis=0) * chosen).sum(axis=1) - hits
    assert np.mean(hits / unions) < 0.5


def test_palettes_have_distinct_colors_that_the_color_blind_can_tell():
    palette = generate_palette(255)
    assert len(set(palette)) == 255
    assert {type(channel) for color in palette for channel in color} == {int}
    assert generate_palette(8) == palette[:8]
    assert (255, 255, 255) not in palette
    # Without red cones, red and green look alike: brightness and blue must differ (Viénot, Brettel, Mollon 1999).
    linear = (np.array(palette[:20]) / 255) ** 2.2
    seen = np.stack([0.11238 * linear[:, 0] + 0.88762 * linear[:, 1], linear[:, 2]], axis=-1) ** (1 / 2.2)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(20)
    assert distances.min() > 0.08
