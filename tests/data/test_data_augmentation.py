# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentation and training examples: what they do to pixels and labels, and that nothing but the seed matters."""

import colorsys
import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from modeling_mtaclip.data import (
    Augmentation,
    SegmentationExamples,
    SegmentationStream,
    TrainingCollator,
    load_segmentation_dataset,
)
from modeling_mtaclip.data.augmentation import (
    CropOfSeveralClasses,
    PadToSize,
    PhotometricDistortion,
    ResizeByRatio,
    random_choices,
)


PLAIN = {"horizontal_flip": False, "photometric_distortion": False, "image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
HEIGHT, WIDTH = 24, 40


def coded_example() -> tuple[Image.Image, np.ndarray]:
    """An image whose channels tell row, column and label of each pixel."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    labels = (rows // 4 + columns // 4) % 3
    return Image.fromarray(np.stack([rows * 5, columns * 5, labels * 100], axis=-1).astype(np.uint8)), labels


def tensors(image: Image.Image, labels: np.ndarray) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    return F.to_image(image), tv_tensors.Mask(labels[None], dtype=torch.uint8)


def apply(
    augmentation: Augmentation, image: Image.Image, labels: np.ndarray, seed: int
) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    with random_choices(seed):
        return augmentation(*tensors(image, labels))


def augment(seed: int = 0, **options) -> tuple[torch.Tensor, torch.Tensor]:
    augmentation = Augmentation(**{"crop_size": (32, 32), **PLAIN, **options})
    pixels, mask = apply(augmentation, *coded_example(), seed)
    assert (type(pixels), type(mask)) == (tv_tensors.Image, tv_tensors.Mask)
    return pixels.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)[0]


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


def test_pixels_are_normalized():
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
        crops = [apply(cropped, image, labels, seed)[1] for seed in range(200)]
        return sum((crop == 1).float().mean() > 0.2 for crop in crops) / len(crops)

    # Only the two rightmost places of 33 show more than 20 % of class 1; eleven draws find one of them half of
    # the time.
    once, often = share_with_both(1.0), share_with_both(0.8)
    assert once < 0.15
    assert often == pytest.approx(1 - (31 / 33) ** 11, abs=0.12)


def distorted(pixels: np.ndarray, **changes: float) -> np.ndarray:
    """Pixels `(h, w, 3)` in 0 … 255 after chosen changes."""
    unchanged = {"brightness": 0.0, "contrast_before": 1.0, "saturation": 1.0, "hue": 0.0, "contrast_after": 1.0}
    image = F.to_dtype(F.to_image(pixels), torch.float32, scale=True)
    before = image.clone()
    result = PhotometricDistortion().transform(image, unchanged | changes)
    assert torch.equal(image, before)
    return result.permute(1, 2, 0).numpy() * 255


def hsv_changed(pixel: np.ndarray, saturation: float, hue: float) -> list[float]:
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
    return [channel * 255 for channel in colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v)]


@pytest.mark.parametrize(("saturation", "hue"), [(0.5, 0), (0.9, 0.05), (1.5, -0.1), (1.0, 0.1)])
def test_saturation_and_hue_are_those_of_hsv(saturation, hue):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    # Black, white, gray, pure colors, and colors with two equal channels.
    pixels[0, :, :] = np.random.default_rng(1).choice([0, 128, 255], (24, 3))
    expected = np.apply_along_axis(hsv_changed, 2, pixels, saturation, hue)
    np.testing.assert_allclose(distorted(pixels, saturation=saturation, hue=hue), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("place", ["contrast_before", "contrast_after"])
def test_brightness_and_contrast_are_linear_and_cut_off(place):
    values = np.arange(256).repeat(3).reshape(16, 16, 3).astype(np.uint8)
    result = distorted(values, brightness=20 / 255, **{place: 0.8})
    np.testing.assert_allclose(result, np.clip(values + 20.0, 0, 255) * 0.8, rtol=0, atol=1e-3)
    np.testing.assert_allclose(distorted(values, **{place: 1.4}), np.clip(values * 1.4, 0, 255), rtol=0, atol=1e-3)


def test_contrast_comes_before_or_after_saturation():
    pixels = np.full((1, 1, 3), (200, 100, 50), np.uint8)
    before, after = (
        distorted(pixels, saturation=1.4, **{place: 1.5})[0, 0] for place in ("contrast_before", "contrast_after")
    )
    np.testing.assert_allclose(before, hsv_changed(np.array([255, 150, 75]), 1.4, 0), rtol=0, atol=1e-3)
    np.testing.assert_allclose(after, np.minimum(np.array(hsv_changed(pixels[0, 0], 1.4, 0)) * 1.5, 255), atol=1e-3)


def test_colors_vary_within_their_ranges():
    distortion, draws = PhotometricDistortion(), []
    for seed in range(400):
        with random_choices(seed):
            draws.append(distortion.make_params([]))
    ranges = {
        "brightness": (-32 / 255, 32 / 255, 0.5),
        "contrast_before": (0.5, 1.5, 0.25),
        "contrast_after": (0.5, 1.5, 0.25),
        "saturation": (0.5, 1.5, 0.5),
        "hue": (-0.1, 0.1, 0.5),
    }
    assert draws[0].keys() == ranges.keys()
    for name, (low, high, share) in ranges.items():
        unchanged = (low + high) / 2
        drawn = np.array([each[name] for each in draws])
        changed = drawn[drawn != unchanged]
        assert len(changed) / len(drawn) == pytest.approx(share, abs=0.08)
        assert low <= changed.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < changed.max() <= high
    assert not any(each["contrast_before"] != 1 and each["contrast_after"] != 1 for each in draws)


def test_steps_are_those_of_torchvision_in_the_order_of_the_paper():
    steps = Augmentation((8, 8)).transform.transforms
    assert all(isinstance(step, v2.Transform) for step in steps)
    assert [type(step) for step in steps] == [
        ResizeByRatio,
        CropOfSeveralClasses,
        v2.RandomHorizontalFlip,
        v2.ToDtype,
        PhotometricDistortion,
        v2.Normalize,
        PadToSize,
    ]


def plain_resize(image: Image.Image, labels: np.ndarray, size: Sequence[int]) -> tuple[torch.Tensor, np.ndarray]:
    """Resized by Pillow, and each label by the one at the center of its pixel."""
    resized = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, labels.shape, strict=True)
    )
    return torch.from_numpy(resized).permute(2, 0, 1) / 255, labels[rows[:, None], columns]


@pytest.mark.parametrize(("scale", "size"), [(0.6, (36, 54)), (1.0, (60, 90)), (1.7, (102, 153))])
def test_crop_is_that_of_the_image_resized_by_pillow(scale, size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    labels = rng.integers(0, 9, (60, 90))
    augmentation = Augmentation(
        (32, 32), scale_range=(scale, scale), cat_max_ratio=1, **(PLAIN | {"horizontal_flip": True})
    )
    whole, whole_labels = plain_resize(image, labels, size)
    seen = set()
    for seed in range(6):
        part, part_labels = apply(augmentation, image, labels, seed)
        places = [
            (top, left, step)
            for top in range(size[0] - 31)
            for left in range(size[1] - 31)
            for step in (1, -1)
            if np.array_equal(whole_labels[top : top + 32, left : left + 32][:, ::step], part_labels[0])
        ]
        assert len(places) == 1
        ((top, left, step),) = places
        expected = whole[:, top : top + 32, left : left + 32]
        difference = (part - (expected if step == 1 else expected.flip(-1))).abs() * 255
        # A few pixels are rounded to another of 255 levels.
        assert difference.max() < 1.01
        assert difference.mean() < 0.1
        seen.add(places[0])
    assert len(seen) == 6
    assert {step for _, _, step in seen} == {1, -1}


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


def training_examples(folder: Path, **options) -> SegmentationExamples:
    return SegmentationExamples(load_segmentation_dataset(str(folder)), "train", Augmentation((32, 32)), **options)


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
    collate_examples = TrainingCollator(3)
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


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0), (0.01, 1), (0.34, 2)])
def test_bad_files_are_replaced_and_counted(folder, share, allowed):
    examples = training_examples(folder, max_bad_share=share)
    for index in range(allowed):
        (folder / f"images/train/{index}.png").write_bytes(b"damaged")
    for index in range(allowed):
        replaced = examples[index]
        assert replaced["names"] not in {f"train/{bad}.png" for bad in range(allowed)}
        assert equal(examples[index], replaced)
    assert examples.num_bad == allowed
    (folder / "annotations/train/3.png").unlink()
    message = rf"{allowed + 1} of 6 training examples can't be used, and {allowed} may be.*train/3\.png"
    with pytest.raises(RuntimeError, match=message):
        examples[3]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_without_any_usable_file_ends_the_run(folder, streaming):
    for path in (folder / "images/train").iterdir():
        path.write_bytes(b"damaged")
    examples = (training_stream if streaming else training_examples)(folder, max_bad_share=1)
    with pytest.raises(RuntimeError, match=r"6 of 6 training examples|None of 6 training examples"):
        next(iter(examples))


def test_max_samples_takes_the_first(folder):
    assert len(training_examples(folder, max_samples=2)) == 2
    assert len(training_examples(folder, max_samples=200)) == 6
    data = load_segmentation_dataset(str(folder))
    assert [example["name"] for example in SegmentationExamples(data, "validation", max_samples=2)] == [
        "val/0.png",
        "val/1.png",
    ]


def test_evaluation_examples_are_as_in_the_files(folder):
    example = SegmentationExamples(load_segmentation_dataset(str(folder)), "validation")[3]
    np.testing.assert_array_equal(np.asarray(example["image"]), Image.open(folder / "images/val/3.png"))
    np.testing.assert_array_equal(example["annotation"], Image.open(folder / "annotations/val/3.png"))
    assert example["annotation"].dtype == np.int64


def training_stream(folder: Path, **options) -> SegmentationStream:
    data = load_segmentation_dataset(str(folder), streaming=True)
    return SegmentationStream(data, "train", Augmentation((32, 32)), **options)


def by_seed(examples) -> dict[int, dict[str, torch.Tensor]]:
    return {int(example["point_seeds"]): example for example in examples}


def test_every_pass_over_a_stream_gives_every_example_once(folder):
    stream = training_stream(folder)
    alone = by_seed(islice(stream, 18))
    assert len(alone) == 18
    names = [example["names"] for example in islice(stream, 18)]
    for first in (0, 6, 12):
        assert sorted(names[first : first + 6]) == [f"train/{index}.png" for index in range(6)]
    # Two processes with two workers each: together the same examples.
    shares = [by_seed(islice(training_stream(folder, rank=rank, world_size=2), 3)) for rank in range(2)]
    assert set(shares[0]) | set(shares[1]) == set(list(alone)[:6])
    assert all(equal(alone[seed], example) for share in shares for seed, example in share.items())
    by_workers = islice(DataLoader(stream, batch_size=None, num_workers=2), 6)
    assert {example["names"] for example in by_workers} == set(names)
    few = training_stream(folder, max_samples=2)
    assert sorted(example["names"] for example in islice(few, 4)) == ["train/0.png"] * 2 + ["train/1.png"] * 2
    assert {example["names"] for example in islice(DataLoader(few, batch_size=None, num_workers=3), 6)} == {
        "train/0.png",
        "train/1.png",
    }


def test_stream_leaves_out_bad_files(folder, monkeypatch):
    (folder / "images/train/2.png").write_bytes(b"damaged")
    stream = training_stream(folder)
    names = [example["names"] for example in islice(stream, 10)]
    assert sorted(names) == sorted(f"train/{index}.png" for index in (0, 1, 3, 4, 5) for _ in range(2))
    assert stream.num_bad == 1
    list(islice(DataLoader(stream, batch_size=None, num_workers=2), 10))
    assert stream.num_bad == 1
    (folder / "images/train/3.png").write_bytes(b"damaged")
    monkeypatch.setattr("modeling_mtaclip.data.examples.MIN_STREAM_LENGTH", 1)
    with pytest.raises(RuntimeError, match=r"2 of \d training examples can't be used.*train/[23]\.png"):
        list(islice(training_stream(folder), 10))
    with pytest.raises(RuntimeError, match=r"1 of \d training examples can't be used"):
        list(islice(training_stream(folder, max_bad_share=0), 10))


@pytest.mark.parametrize("max_samples", [None, 4])
@pytest.mark.parametrize(("num_workers", "world_size"), [(0, 1), (2, 1), (0, 2), (2, 3)])
def test_evaluation_stream_gives_each_example_once(folder, max_samples, num_workers, world_size):
    data = load_segmentation_dataset(str(folder), streaming=True)
    names = []
    for rank in range(world_size):
        stream = SegmentationStream(data, "validation", max_samples=max_samples, rank=rank, world_size=world_size)
        names += [example["name"] for example in DataLoader(stream, batch_size=None, num_workers=num_workers)]
    assert sorted(names) == [f"val/{index}.png" for index in range(max_samples or 5)]


@pytest.mark.parametrize("streaming", [False, True])
def test_evaluation_leaves_out_bad_files_and_counts_them(folder, streaming):
    (folder / "images/val/1.png").write_bytes(b"damaged")
    data = load_segmentation_dataset(str(folder), streaming=streaming)
    examples = (SegmentationStream if streaming else SegmentationExamples)(data, "validation")
    for num_workers in (0, 2):
        loader = DataLoader(examples, batch_size=2, num_workers=num_workers, collate_fn=list)
        names = [example["name"] for batch in loader for example in batch]
        assert sorted(names) == ["val/0.png", "val/2.png", "val/3.png", "val/4.png"]
        assert examples.num_bad == 1


def test_batches_know_the_classes_of_their_images():
    labels = torch.tensor([[[0, 2], [255, 2]], [[1, 1], [1, 255]]])
    examples = [{"labels": each, "names": "a"} for each in labels]
    batch = TrainingCollator(3)(examples)
    assert torch.equal(batch["labels"], labels)
    assert batch["image_classes"].tolist() == [[0, 2], [1, -1]]
    assert batch["names"] == ["a", "a"]
    with pytest.raises(ValueError, match="contain the values \\[2\\]"):
        TrainingCollator(2)(examples)
