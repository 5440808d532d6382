# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawn scenes and colors."""

import numpy as np
import pytest

from modeling_mtaclip.data import generate_palette, load_segmentation_dataset, make_scene
from modeling_mtaclip.data.scenes import SCENE_CLASSES


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [tuple(np.asarray(part) for part in make_scene(seed)) for seed in range(24)]


def test_a_seed_gives_one_scene():
    first, again, other = make_scene(3), make_scene(3), make_scene(4)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert first[0].tobytes() != other[0].tobytes()
    assert (first[0].mode, first[1].mode, first[0].size) == ("RGB", "L", (160, 128))
    assert make_scene(3, 64, 96)[1].size == (96, 64)


def test_scenes_show_all_classes_and_ignore_only_borders(scenes):
    maps = np.stack([labels for _, labels in scenes])
    counts = np.bincount(maps.ravel(), minlength=256) / maps.size
    assert set(np.flatnonzero(counts)) == {*range(len(SCENE_CLASSES)), 255}
    assert counts[: len(SCENE_CLASSES)].min() > 0.005
    assert counts[255] < 0.06
    # Most scenes have most classes, so that no single class answers for the score.
    assert np.mean([len(np.unique(labels)) for labels in maps]) > 7


def test_classes_cannot_be_told_by_color_alone(scenes):
    codes = np.stack([image // 32 @ np.array([64, 8, 1]) for image, _ in scenes])
    maps = np.stack([labels for _, labels in scenes])
    tables = np.stack([np.bincount(codes[maps == label], minlength=512) for label in range(len(SCENE_CLASSES))])
    # Even with the best class for each of 512 colors, fitted on these very scenes, the intersections are small.
    best = tables.argmax(axis=0)
    hits = np.array([tables[label, best == label].sum() for label in range(len(tables))])
    unions = tables.sum(axis=1) + np.array([tables[:, best == label].sum() for label in range(len(tables))]) - hits
    assert np.mean(hits / unions) < 0.5


def test_scenes_are_a_data_set_whose_splits_differ():
    data = load_segmentation_dataset()
    assert data.class_names == list(SCENE_CLASSES)
    image, labels = data.read(data.splits["train"][0])
    assert image.size == labels.shape[::-1] == (160, 128)
    names = {name: set(split[:3]["name"]) for name, split in data.splits.items()}
    assert names["train"].isdisjoint(names["validation"])
    stream = load_segmentation_dataset("scenes", streaming=True)
    np.testing.assert_array_equal(stream.read(next(iter(stream.splits["train"])))[1], labels)


@pytest.mark.parametrize("number", [1, 8, 19, 150, 255])
def test_palettes_have_distinct_colors(number):
    palette = generate_palette(number)
    assert len(palette) == len(set(palette)) == number
    assert all(0 <= channel <= 255 and isinstance(channel, int) for color in palette for channel in color)
    assert (255, 255, 255) not in palette
    assert generate_palette(8) == palette[:8] or number < 8


def test_palettes_keep_their_distance_for_the_color_blind():
    palette = np.array(generate_palette(20)) / 255
    # Without red cones, red and green look alike: brightness and blue must differ (Viénot, Brettel, Mollon 1999).
    linear = palette**2.2
    seen = np.stack([0.11238 * linear[:, 0] + 0.88762 * linear[:, 1], linear[:, 2]], axis=-1) ** (1 / 2.2)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(20)
    assert distances.min() > 0.08
