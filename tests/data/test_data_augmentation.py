# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentation: what it does to pixels and labels."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from modeling_mtaclip.data import Augmentation
from modeling_mtaclip.data.augmentation import distort, draw_distortion, random_choices


PLAIN = {"horizontal_flip": False, "photometric_distortion": False, "image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
NOISE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 9, (60, 90))


def augment(
    crop_size: tuple[int, int], seed: int = 0, labels: np.ndarray = LABELS, **options
) -> tuple[torch.Tensor, np.ndarray]:
    image = F.to_image(Image.fromarray(NOISE).resize(labels.shape[::-1]))
    with random_choices(seed):
        augmentation = Augmentation(crop_size, **(PLAIN | options))
        pixels, mask = augmentation(image, tv_tensors.Mask(labels[None], dtype=torch.uint8))
    assert (type(pixels), type(mask)) == (tv_tensors.Image, tv_tensors.Mask)
    assert (pixels.dtype, mask.dtype, *pixels.shape[1:]) == (torch.float32, torch.int64, *crop_size)
    return pixels.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)[0].numpy()


def test_pixels_are_normalized_and_what_lies_outside_is_zero_and_255():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels, labels = augment((64, 128), scale_range=(1, 1), image_mean=mean, image_std=std)
    expected = np.zeros((64, 128, 3))
    expected[:60, :90] = (NOISE / 255 - mean) / std
    np.testing.assert_allclose(pixels.numpy().transpose(1, 2, 0), expected, atol=1e-6)
    np.testing.assert_array_equal(labels, np.pad(LABELS, ((0, 4), (0, 38)), constant_values=255))


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
    inside = augment((128, 128), labels=LABELS[:24, :40], size=size, scale_range=(scale, scale))[1] != 255
    assert (inside.any(1).sum(), inside.any(0).sum()) == expected


def test_crops_filled_by_one_class_are_drawn_again():
    labels = np.zeros((32, 64), np.int64)
    labels[:, 56:] = 1

    def share_with_both(ratio: float) -> float:
        options = {"labels": labels, "scale_range": (1, 1), "cat_max_ratio": ratio}
        return np.mean([(augment((32, 32), seed, **options)[1] == 1).mean() > 0.2 for seed in range(200)])

    # Only the two rightmost places of 33 show more than 20 % of class 1; eleven draws find one of them half of
    # the time.
    assert share_with_both(1.0) < 0.15
    assert share_with_both(0.8) == pytest.approx(1 - (31 / 33) ** 11, abs=0.12)


def plainly_distorted(pixel, brightness=0.0, contrast_before=1.0, saturation=1.0, hue=0.0, contrast_after=1.0):
    h, s, v = colorsys.rgb_to_hsv(*np.clip(np.clip(pixel / 255 + brightness, 0, 1) * contrast_before, 0, 1))
    changed = np.array(colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v))
    return np.clip(changed * contrast_after, 0, 1)


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
    pixels = NOISE[:24, :24].copy()
    # Black, white, gray, pure colors, and colors with two equal channels.
    pixels[0] = np.random.default_rng(1).choice([0, 128, 255], (24, 3))
    image = F.to_dtype(F.to_image(pixels), torch.float32, scale=True)
    before = image.clone()
    result = distort(image, **changes).permute(1, 2, 0).numpy()
    assert torch.equal(image, before)
    np.testing.assert_allclose(result, np.apply_along_axis(plainly_distorted, 2, pixels, **changes), rtol=0, atol=4e-6)


def test_colors_vary_within_their_ranges():
    draws = []
    for seed in range(400):
        with random_choices(seed):
            draws.append(draw_distortion())
    ranges = {
        "brightness": (-32 / 255, 32 / 255, 0.5),
        "contrast_before": (0.5, 1.5, 0.25),
        "contrast_after": (0.5, 1.5, 0.25),
        "saturation": (0.5, 1.5, 0.5),
        "hue": (-0.1, 0.1, 0.5),
    }
    assert draws[0].keys() == ranges.keys()
    for name, (low, high, share) in ranges.items():
        drawn = np.array([each[name] for each in draws])
        changed = drawn[drawn != (low + high) / 2]
        assert len(changed) / len(drawn) == pytest.approx(share, abs=0.08)
        assert low <= changed.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < changed.max() <= high
    assert not any(each["contrast_before"] != 1 and each["contrast_after"] != 1 for each in draws)


@pytest.mark.parametrize(("scale", "size"), [(0.6, (36, 54)), (1.0, (60, 90)), (1.7, (102, 153))])
def test_crop_is_that_of_the_image_resized_by_pillow(scale, size):
    resized = np.array(Image.fromarray(NOISE).resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    # Each label is the one at the center of its pixel.
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, (60, 90), strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(LABELS[rows[:, None], columns], (32, 32))
    seen = set()
    for seed in range(6):
        pixels, labels = augment((32, 32), seed, scale_range=(scale, scale), cat_max_ratio=1, horizontal_flip=True)
        ((flipped, top, left),) = [
            (flipped, *place)
            for flipped, one_way in enumerate((labels, labels[:, ::-1]))
            for place in np.argwhere((windows == one_way).all((2, 3))).tolist()
        ]
        expected = resized[:, top : top + 32, left : left + 32]
        difference = np.abs(pixels.numpy() * 255 - (expected[..., ::-1] if flipped else expected))
        # A few pixels are rounded to another of 255 levels.
        assert difference.max() < 1.01
        assert difference.mean() < 0.1
        seen.add((flipped, top, left))
    assert len(seen) == 6
    assert {flipped for flipped, *_ in seen} == {0, 1}
