# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentation: what it does to pixels and labels."""

import colorsys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from modeling_mtaclip.data import (
    Augmentation,
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


def apply(
    augmentation: Augmentation, image: Image.Image, labels: np.ndarray, seed: int
) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    with random_choices(seed):
        return augmentation(F.to_image(image), tv_tensors.Mask(labels[None], dtype=torch.uint8))


def augment(seed: int = 0, **options) -> tuple[torch.Tensor, torch.Tensor]:
    augmentation = Augmentation(**{"crop_size": (32, 32), **PLAIN, **options})
    pixels, mask = apply(augmentation, *coded_example(), seed)
    assert (type(pixels), type(mask)) == (tv_tensors.Image, tv_tensors.Mask)
    return pixels.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)[0]


def test_pixels_are_normalized_and_what_lies_outside_is_zero_and_255():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels, labels = augment(scale_range=(1, 1), crop_size=(32, 64), image_mean=mean, image_std=std)
    assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
    image, expected_labels = coded_example()
    expected = np.zeros((32, 64, 3))
    expected[:HEIGHT, :WIDTH] = (np.asarray(image) / 255 - mean) / std
    np.testing.assert_allclose(pixels.numpy().transpose(1, 2, 0), expected, atol=1e-6)
    np.testing.assert_array_equal(labels, np.pad(expected_labels, ((0, 8), (0, 24)), constant_values=255))


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


def plainly_distorted(
    pixel: np.ndarray, brightness=0.0, contrast_before=1.0, saturation=1.0, hue=0.0, contrast_after=1.0
) -> np.ndarray:
    color = np.clip(np.clip(pixel / 255 + brightness, 0, 1) * contrast_before, 0, 1)
    h, s, v = colorsys.rgb_to_hsv(*color)
    return (
        np.clip(np.array(colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v)) * contrast_after, 0, 1) * 255
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"saturation": 0.5},
        {"saturation": 0.9, "hue": 0.05},
        {"saturation": 1.5, "hue": -0.1},
        {"hue": 0.1},
        {"brightness": 20 / 255, "contrast_before": 0.8},
        {"brightness": -20 / 255, "contrast_after": 1.4},
        {"saturation": 1.4, "contrast_before": 1.5},
        {"saturation": 1.4, "contrast_after": 1.5},
    ],
)
def test_distortion_is_linear_and_that_of_hsv(changes):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    # Black, white, gray, pure colors, and colors with two equal channels.
    pixels[0, :, :] = np.random.default_rng(1).choice([0, 128, 255], (24, 3))
    unchanged = {"brightness": 0.0, "contrast_before": 1.0, "saturation": 1.0, "hue": 0.0, "contrast_after": 1.0}
    image = F.to_dtype(F.to_image(pixels), torch.float32, scale=True)
    before = image.clone()
    result = PhotometricDistortion().transform(image, unchanged | changes).permute(1, 2, 0).numpy() * 255
    assert torch.equal(image, before)
    expected = np.apply_along_axis(plainly_distorted, 2, pixels, **changes)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-3)


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
    windows = np.lib.stride_tricks.sliding_window_view(whole_labels, (32, 32))
    seen = set()
    for seed in range(6):
        part, part_labels = apply(augmentation, image, labels, seed)
        part_labels = part_labels[0].numpy()
        places = [
            (top, left, is_flipped)
            for is_flipped, one_way in enumerate((part_labels, part_labels[:, ::-1]))
            for top, left in np.argwhere((windows == one_way).all((2, 3))).tolist()
        ]
        assert len(places) == 1
        ((top, left, is_flipped),) = places
        expected = whole[:, top : top + 32, left : left + 32]
        difference = (part - (expected.flip(-1) if is_flipped else expected)).abs() * 255
        # A few pixels are rounded to another of 255 levels.
        assert difference.max() < 1.01
        assert difference.mean() < 0.1
        seen.add(places[0])
    assert len(seen) == 6
    assert {is_flipped for *_, is_flipped in seen} == {0, 1}
