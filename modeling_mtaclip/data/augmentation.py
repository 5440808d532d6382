# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Training augmentation of the paper (mmsegmentation's), with torchvision's transforms v2 on `tv_tensors`.

All draws are from torch's generator; [`random_choices`] makes an example a function of a seed alone, whatever the
workers, processes and resumed runs.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .catalog import IGNORE_INDEX


MAX_CROP_REDRAWS = 10
MAX_BRIGHTNESS = 32 / 255
CONTRAST_RANGE = SATURATION_RANGE = (0.5, 1.5)
# 18 of OpenCV's 180 steps, as a share of the circle.
MAX_HUE = 0.1


@dataclass
class Augmentation:
    """What happens to a training image, in this order: resize, crop, flip, distortion, normalization, padding.

    Attributes:
        crop_size (`Sequence[int]`): height and width of the result; outside the image it is 0 and 255.
        size (`dict[str, int]`, *optional*): `shortest_edge` and `longest_edge` that the image is resized to, times the
            scale, aspect ratio kept; `None`: its own size, times the scale.
        scale_range (`Sequence[float]`): lowest and highest scale, drawn uniformly.
        cat_max_ratio (`float`): crops are drawn again, up to 10 times, while one class fills more than this share of
            the labeled pixels.
        horizontal_flip (`bool`): whether half of the images are mirrored.
        photometric_distortion (`bool`): whether brightness, contrast, saturation and hue vary.
        image_mean, image_std (`Sequence[float]`): of the three channels in [0, 1].
    """

    crop_size: Sequence[int]
    size: dict[str, int] | None = None
    scale_range: Sequence[float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    horizontal_flip: bool = True
    photometric_distortion: bool = True
    image_mean: Sequence[float] = (0.485, 0.456, 0.406)
    image_std: Sequence[float] = (0.229, 0.224, 0.225)

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Augments an RGB image `(3, height, width)` and a mask `(1, height, width)` of label ids and 255, both uint8,
        into float32 `(3, *crop_size)` and int64 `(1, *crop_size)`.
        """
        size = self._draw_size(F.get_size(image))
        # As a tensor: torchvision 0.24 takes the corners of a `Mask`'s pixels, whatever the mode.
        labels = F.resize(mask.as_subclass(Tensor), size, InterpolationMode.NEAREST_EXACT)
        image, mask = F.resize(image, size), tv_tensors.wrap(labels, like=mask)
        crop = self._draw_crop(mask)
        image, mask = F.crop(image, *crop), F.crop(mask, *crop)
        if _coin() and self.horizontal_flip:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        image, mask = F.to_dtype(image, torch.float32, scale=True), F.to_dtype(mask, torch.int64)
        if self.photometric_distortion:
            image = tv_tensors.wrap(distort(image.as_subclass(Tensor), **draw_distortion()), like=image)
        image = F.normalize(image, self.image_mean, self.image_std)
        padding = [0, 0, self.crop_size[1] - crop[3], self.crop_size[0] - crop[2]]
        return F.pad(image, padding), F.pad(mask, padding, fill=IGNORE_INDEX)

    def _draw_size(self, size: list[int]) -> list[int]:
        scale = _uniform(*self.scale_range)
        if self.size is not None:
            longest_edge = self.size.get("longest_edge") or math.inf
            scale *= min(self.size["shortest_edge"] / min(size), longest_edge / max(size))
        return [max(1, int(length * scale + 0.5)) for length in size]

    def _draw_crop(self, mask: tv_tensors.Mask) -> tuple[int, int, int, int]:
        """Top, left, height and width; small images stay as they are."""
        size = F.get_size(mask)
        height, width = (min(crop, length) for crop, length in zip(self.crop_size, size, strict=True))
        for _ in range(1 + MAX_CROP_REDRAWS):
            top, left = (int(torch.randint(last + 1, ())) for last in (size[0] - height, size[1] - width))
            crop = top, left, height, width
            if self.cat_max_ratio >= 1 or [height, width] == size or self._has_several(F.crop(mask, *crop)):
                break
        return crop

    def _has_several(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.flatten(), minlength=IGNORE_INDEX + 1)
        counts[IGNORE_INDEX] = 0
        largest, labeled = int(counts.max()), int(counts.sum())
        return largest < min(self.cat_max_ratio * labeled, labeled)


def draw_distortion() -> dict[str, float]:
    """Arguments of [`distort`]: each change with probability 1/2, contrast before or after saturation and hue."""
    contrast_first = _coin()
    brightness = _uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS) if _coin() else 0.0
    contrast = _uniform(*CONTRAST_RANGE) if _coin() else 1.0
    return {
        "brightness": brightness,
        "contrast_before": contrast if contrast_first else 1.0,
        "saturation": _uniform(*SATURATION_RANGE) if _coin() else 1.0,
        "hue": _uniform(-MAX_HUE, MAX_HUE) if _coin() else 0.0,
        "contrast_after": 1.0 if contrast_first else contrast,
    }


def distort(
    image: Tensor,
    brightness: float = 0.0,
    contrast_before: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    contrast_after: float = 1.0,
) -> Tensor:
    """Photometric distortion of SSD (arXiv 1512.02325) with mmsegmentation's ranges.

    torchvision's `RandomPhotometricDistort` multiplies the brightness, changes the contrast around the mean and mixes
    with gray instead; its hue takes three times as long.

    Args:
        image (`Tensor` of shape `(3, height, width)`): colors in [0, 1], which isn't changed.
        brightness, hue (`float`): what is added; the hue as a share of the circle, of at most 0.1.
        contrast_before, saturation, contrast_after (`float`): factors.
    """
    pixels = _linear(_linear(image, 1.0, brightness), contrast_before)
    if saturation != 1 or hue:
        pixels = _change_saturation_and_hue(pixels, saturation, hue)
    return _linear(pixels, contrast_after)


def _change_saturation_and_hue(image: Tensor, saturation: float, hue: float) -> Tensor:
    """In HSV, the distance of a pixel's hue from that of pure red, green and blue says how far the channel lies below
    the pixel's value: not at all up to a sixth of the circle, by the whole chroma from a third on.
    """
    red, green, blue = image
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    position = torch.where(
        value == red, green - blue, torch.where(value == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    )
    position = position / chroma.clamp_min(torch.finfo(image.dtype).tiny) + 6 * hue
    pure = torch.tensor([0, 2, 4], dtype=image.dtype, device=image.device).view(3, 1, 1)
    # Of six sixths; the longer way around the circle becomes the shorter one.
    distance = 3 - (3 - (position - pure).abs_()).abs_()
    return value - torch.minimum(chroma * saturation, value) * (distance - 1).clamp_(0, 1)


@contextmanager
def random_choices(seed: int) -> Iterator[None]:
    """Within it, torch's generator of the CPU starts from a seed; afterward it goes on as if nothing was drawn."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield


def _linear(pixels: Tensor, factor: float, offset: float = 0.0) -> Tensor:
    return pixels if (factor, offset) == (1, 0) else (pixels * factor + offset).clamp_(0, 1)


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _coin() -> bool:
    return bool(torch.rand(()) < 0.5)


__all__ = ["Augmentation", "random_choices"]
