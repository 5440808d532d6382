# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentation and training examples: what they do to pixels and labels, and that nothing but the seed matters."""

import colorsys
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from modeling_mtaclip.data import (
    Augmentation,
    EvaluationExamples,
    EvaluationStream,
    TrainingExamples,
    TrainingStream,
    collate_examples,
    load_segmentation_dataset,
)
from modeling_mtaclip.data.augmentation import distort_colours


PLAIN = {"horizontal_flip": False, "photometric_distortion": False, "image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
HEIGHT, WIDTH = 24, 40


def coded_example() -> tuple[Image.Image, np.ndarray]:
    """An image whose channels tell row, column and label of each pixel."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    labels = (rows // 4 + columns // 4) % 3
    return Image.fromarray(np.stack([rows * 5, columns * 5, labels * 100], axis=-1).astype(np.uint8)), labels


def augment(seed: int = 0, **options) -> tuple[torch.Tensor, torch.Tensor]:
    return Augmentation(**{"crop_size": (32, 32), **PLAIN, **options})(*coded_example(), random.Random(seed))


def codes(pixel_values: torch.Tensor) -> torch.Tensor:
    return (pixel_values * 255).round().long()


def test_crops_keep_pixels_and_labels_together():
    seen = set()
    for seed in range(20):
        pixels, labels = augment(seed, crop_size=(16, 16), scale_range=(1, 1), horizontal_flip=True, cat_max_ratio=1)
        row, column, label = codes(pixels)
        assert torch.equal(label // 100, labels)
        steps = (column[:, 1:] - column[:, :-1]).unique().tolist()
        assert steps in ([5], [-5])
        assert (row[1:] - row[:-1]).unique().tolist() == [5]
        seen.add((int(row[0, 0]), int(column.min()), steps[0]))
    assert len({flip for _, _, flip in seen}) == 2
    assert len(seen) > 15


def test_what_lies_outside_is_zero_and_255():
    pixels, labels = augment(scale_range=(1, 1), crop_size=(32, 64), image_mean=(0.5, 0.5, 0.5))
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (labels[:HEIGHT, :WIDTH] < 3).all()
    assert (labels[HEIGHT:] == 255).all()
    assert (labels[:, WIDTH:] == 255).all()
    assert (pixels[:, HEIGHT:] == 0).all()
    assert (pixels[:, :, WIDTH:] == 0).all()


def test_pixels_are_normalised():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels, _ = augment(scale_range=(1, 1), crop_size=(HEIGHT, WIDTH), image_mean=mean, image_std=std)
    expected = (np.asarray(coded_example()[0]) / 255 - mean) / std
    np.testing.assert_allclose(pixels.numpy().transpose(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        (None, 1.0, (24, 40)),
        (None, 0.5, (12, 20)),
        ({"shortest_edge": 48, "longest_edge": 1000}, 1.0, (48, 80)),
        ({"shortest_edge": 48, "longest_edge": 60}, 1.0, (36, 60)),
        # The scale multiplies the cap too, as in mmsegmentation.
        ({"shortest_edge": 48, "longest_edge": 60}, 2.0, (72, 120)),
    ],
)
def test_images_are_resized_with_their_aspect_ratio(size, scale, expected):
    _, labels = augment(size=size, scale_range=(scale, scale), crop_size=(128, 128))
    inside = labels != 255
    assert (int(inside.any(1).sum()), int(inside.any(0).sum())) == expected


def test_resized_labels_are_never_mixed():
    _, labels = augment(scale_range=(1.37, 1.37), crop_size=(64, 64))
    assert set(labels.unique().tolist()) == {0, 1, 2, 255}


def test_crops_filled_by_one_class_are_drawn_again():
    labels = np.zeros((32, 64), np.int64)
    labels[:, 56:] = 1
    image = Image.new("RGB", (64, 32))

    def share_with_both(ratio: float) -> float:
        cropped = Augmentation((32, 32), scale_range=(1, 1), cat_max_ratio=ratio, **PLAIN)
        crops = [cropped(image, labels, random.Random(seed))[1] for seed in range(200)]
        return sum((crop == 1).float().mean() > 0.2 for crop in crops) / len(crops)

    # Only the two rightmost places of 33 show more than 20 % of class 1; eleven draws find one of them half of
    # the time.
    once, often = share_with_both(1.0), share_with_both(0.8)
    assert once < 0.15
    assert often == pytest.approx(1 - (31 / 33) ** 11, abs=0.12)


class Choices:
    """Gives chosen values instead of random ones: each probability as it is, each range's value by its bounds."""

    def __init__(self, contrast_first: bool = False, **values: float) -> None:
        bounds = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
        self.coins = iter([contrast_first, *(name in values for name in bounds)])
        self.values = iter([(bounds[name], values[name]) for name in bounds if name in values])

    def random(self) -> float:
        return 0.0 if next(self.coins) else 1.0

    def uniform(self, low: float, high: float) -> float:
        bounds, value = next(self.values)
        assert bounds == (low, high)
        return value


def hsv_changed(pixel: np.ndarray, saturation: float, hue: float) -> list[float]:
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
    return [channel * 255 for channel in colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v)]


@pytest.mark.parametrize(("saturation", "hue"), [(0.5, 0), (0.9, 0.05), (1.5, -0.1), (1.0, 0.1)])
def test_saturation_and_hue_are_those_of_hsv(saturation, hue):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    expected = np.apply_along_axis(hsv_changed, 2, pixels, saturation, hue)
    choices = Choices(saturation=saturation, hue=hue)
    result = np.asarray(distort_colours(Image.fromarray(pixels), choices), dtype=float)
    # Hue and saturation have 8 bits on the way; one step of hue is worth 6 levels.
    assert np.abs(result - expected).max() < 10
    assert np.abs(result - expected).mean() < 1.5


@pytest.mark.parametrize("contrast_first", [False, True])
def test_brightness_and_contrast_are_linear_and_cut_off(contrast_first):
    values = np.arange(256).repeat(3).reshape(16, 16, 3).astype(np.uint8)
    choices = Choices(contrast_first, brightness=20.0, contrast=1.4)
    result = distort_colours(Image.fromarray(values), choices)
    brighter = np.clip(values + 20.0, 0, 255)
    np.testing.assert_array_equal(np.asarray(result), np.clip(np.floor(brighter * 1.4), 0, 255))


def test_colours_vary_within_their_ranges():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    results = np.stack([np.asarray(distort_colours(grey, random.Random(seed))) for seed in range(300)])
    # Grey has neither hue nor saturation: only brightness (± 32) and contrast (0.5 … 1.5) act on it.
    assert (results == results[:, :1, :1, :1]).all()
    values = results[:, 0, 0, 0].astype(float)
    assert values.min() >= (100 - 32) * 0.5 - 2
    assert values.max() <= (100 + 32) * 1.5
    assert 0.15 < (values == 100).mean() < 0.35


@pytest.mark.parametrize(("scale", "size"), [(0.6, (36, 54)), (1.0, (60, 90)), (1.7, (102, 153))])
def test_crop_is_that_of_the_plain_order_of_steps(scale, size):
    """Resizing the whole image and its labels with torchvision first, then cropping and mirroring."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    labels = rng.integers(0, 9, (60, 90))
    augmentation = Augmentation(
        (32, 32), scale_range=(scale, scale), cat_max_ratio=1, **(PLAIN | {"horizontal_flip": True})
    )
    mirrored = set()
    for seed in range(6):
        part, part_labels = augmentation(image, labels, random.Random(seed))
        choices = random.Random(seed)
        choices.uniform(0, 1)
        top, left = (choices.randint(0, length - 32) for length in size)
        flip = choices.random() < 0.5
        mirrored.add(flip)
        whole = F.to_dtype(F.to_image(F.resize(image, size)), torch.float32, scale=True)
        whole_labels = F.resize(tv_tensors.Mask(labels[None]), size, F.InterpolationMode.NEAREST_EXACT)
        whole, whole_labels = (F.crop(each, top, left, 32, 32) for each in (whole, whole_labels))
        if flip:
            whole, whole_labels = F.horizontal_flip(whole), F.horizontal_flip(whole_labels)
        assert torch.equal(part_labels, whole_labels[0].as_subclass(torch.Tensor))
        # Of this noise, a few pixels are rounded to another of 255 levels.
        difference = (part - whole).abs() * 255
        assert difference.max() < 2.01
        assert difference.mean() < 0.1
    assert mirrored == {False, True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 5)):
        for index in range(number):
            for kind, shape, high in (("images", (40, 48, 3), 256), ("annotations", (40, 48), 3)):
                path = tmp_path / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(path)
    (tmp_path / "classes.json").write_text(json.dumps(["road", "sky", "tree"]))
    return tmp_path


def training_examples(folder: Path, **options) -> TrainingExamples:
    return TrainingExamples(load_segmentation_dataset(str(folder)), "train", Augmentation((32, 32)), **options)


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    if first.keys() != second.keys() or first.get("names") != second.get("names"):
        return False
    return all(torch.equal(first[key], second[key]) for key in first if key != "names")


def test_examples_depend_on_seed_epoch_and_index_alone(folder):
    examples, others = training_examples(folder, seed=3), training_examples(folder, seed=3)
    state = torch.get_rng_state(), random.getstate()
    first = [examples[index] for index in range(6)]
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    torch.manual_seed(99)
    assert all(equal(others[index], first[index]) for index in reversed(range(6)))
    assert first[0]["pixel_values"].shape == (3, 32, 32)
    assert first[0]["labels"].shape == (32, 32)
    assert first[0]["point_seeds"].shape == ()
    assert first[0]["point_seeds"].dtype == torch.int64
    others.set_epoch(1)
    assert not equal(others[0], first[0])
    others.set_epoch(0)
    assert equal(others[0], first[0])
    assert not equal(training_examples(folder, seed=4)[0], first[0])


def test_workers_change_nothing_and_learn_of_the_epoch(folder):
    examples = training_examples(folder)
    workers = DataLoader(
        examples, batch_size=2, num_workers=2, collate_fn=collate_examples, persistent_workers=True, prefetch_factor=1
    )
    alone = DataLoader(examples, batch_size=2, collate_fn=collate_examples)
    seen = []
    for epoch in (0, 1):
        examples.set_epoch(epoch)
        batches = list(workers)
        assert all(equal(batch, other) for batch, other in zip(batches, alone, strict=True))
        seen.append(batches[0]["pixel_values"])
    assert seen[0].shape == (2, 3, 32, 32)
    assert not torch.equal(*seen)


def test_bad_file_is_replaced_and_counted(folder, caplog):
    (folder / "images/train/2.png").write_bytes(b"damaged")
    examples = training_examples(folder, max_bad_share=0.2)
    replaced = examples[2]
    assert examples.num_bad == 1
    assert equal(examples[2], replaced)
    assert examples.num_bad == 1
    (folder / "annotations/train/3.png").unlink()
    with pytest.raises(RuntimeError, match=r"2 of 6 training examples can't be used, and 1 may be.*train/3\.png"):
        examples[3]


def test_max_samples_takes_the_first(folder):
    assert len(training_examples(folder, max_samples=2)) == 2
    assert len(training_examples(folder, max_samples=200)) == 6
    data = load_segmentation_dataset(str(folder))
    assert [example["name"] for example in EvaluationExamples(data, "validation", 2)] == ["val/0.png", "val/1.png"]


def test_evaluation_examples_are_as_in_the_files(folder):
    example = EvaluationExamples(load_segmentation_dataset(str(folder)), "validation")[3]
    np.testing.assert_array_equal(np.asarray(example["image"]), Image.open(folder / "images/val/3.png"))
    np.testing.assert_array_equal(example["annotation"], Image.open(folder / "annotations/val/3.png"))
    assert example["annotation"].dtype == np.int64


def training_stream(folder: Path, **options) -> TrainingStream:
    data = load_segmentation_dataset(str(folder), streaming=True)
    return TrainingStream(data, "train", Augmentation((32, 32)), **options)


def by_seed(examples) -> dict[int, dict[str, torch.Tensor]]:
    return {int(example["point_seeds"]): example for example in examples}


def test_stream_gives_every_example_once_whatever_the_workers(folder):
    stream = training_stream(folder)
    alone = by_seed(stream)
    shared = by_seed(DataLoader(stream, batch_size=None, num_workers=2))
    assert len(alone) == 6
    assert alone.keys() == shared.keys()
    assert all(equal(alone[seed], shared[seed]) for seed in alone)
    stream.set_epoch(1)
    assert by_seed(stream).keys().isdisjoint(alone)
    assert len(list(training_stream(folder, max_samples=2))) == 2


def test_stream_leaves_out_bad_files(folder, monkeypatch):
    (folder / "images/train/2.png").write_bytes(b"damaged")
    assert len(list(training_stream(folder))) == 5
    monkeypatch.setattr("modeling_mtaclip.data.examples.MIN_STREAM_LENGTH", 1)
    with pytest.raises(RuntimeError, match=r"1 of \d training examples can't be used.*train/2\.png"):
        list(training_stream(folder))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_stream_gives_all_examples_in_order(folder, num_workers):
    stream = EvaluationStream(load_segmentation_dataset(str(folder), streaming=True), "validation")
    names = [example["name"] for example in DataLoader(stream, batch_size=None, num_workers=num_workers)]
    # Each worker gives all of them.
    assert sorted(names) == sorted([f"val/{index}.png" for index in range(5)] * max(1, num_workers))
    if num_workers == 0:
        assert names == sorted(names)
