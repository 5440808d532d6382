# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Training augmentation of the paper (mmsegmentation's), on torchvision's transforms.

The label map is resized and cropped first, so that of the image no more is resized than the crop.
Every example is a function of seed, epoch and index alone: workers, processes and resuming don't change it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from .reading import IGNORE_INDEX


MAX_CROP_REDRAWS = 10


@dataclass
class Augmentation:
    """What happens to a training image, in this order: resize, crop, flip, distortion, normalisation, padding.

    Attributes:
        crop_size (`Sequence[int]`): height and width of the result.
        size (`dict[str, int]`, *optional*): `shortest_edge` and `longest_edge` that the image is resized to, times the
            scale, aspect ratio kept; `None`: its own size, times the scale.
        scale_range (`Sequence[float]`): lowest and highest scale, drawn uniformly.
        cat_max_ratio (`float`): crops are drawn again, up to 10 times, while one class fills more than this share of
            the labelled pixels.
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

    def __call__(self, image: Image.Image, labels: np.ndarray, generator: random.Random) -> tuple[Tensor, Tensor]:
        """Augments one example.

        Args:
            image (`PIL.Image.Image`): RGB.
            labels (`np.ndarray` of shape `(height, width)`): int64 label map.
            generator (`random.Random`): source of all random choices.

        Returns:
            `tuple[Tensor, Tensor]`: float32 `(3, *crop_size)` and int64 `crop_size`; what lies outside the image is 0
            and 255.
        """
        size = self._draw_size(labels.shape, generator)
        # Label ids and 255 fit into a byte, which is quicker to move about.
        mask = _resize_nearest(labels.astype(np.uint8), size)
        top, left, height, width = self._draw_crop(mask, generator)
        pixels = _resize_crop(image, size, (top, left, height, width))
        mask = tv_tensors.Mask(torch.from_numpy(mask[None, top : top + height, left : left + width]))
        flip = self.horizontal_flip and generator.random() < 0.5
        if self.photometric_distortion:
            pixels = distort_colours(pixels, generator)
        pixels = tv_tensors.Image(pixels)
        if flip:
            pixels, mask = F.horizontal_flip(pixels), F.horizontal_flip(mask)
        pixels = F.to_dtype(pixels.contiguous(), torch.float32, scale=True)
        pixels = F.normalize(pixels, self.image_mean, self.image_std, inplace=True)
        padding = [0, 0, self.crop_size[1] - width, self.crop_size[0] - height]
        pixels, mask = F.pad(pixels, padding), F.pad(mask, padding, fill=IGNORE_INDEX)
        return pixels.as_subclass(Tensor).contiguous(), mask.as_subclass(Tensor)[0].long()

    def _draw_size(self, size: Sequence[int], generator: random.Random) -> list[int]:
        scale = generator.uniform(*self.scale_range)
        if self.size is not None:
            fit = self.size["shortest_edge"] / min(size)
            if self.size.get("longest_edge"):
                fit = min(fit, self.size["longest_edge"] / max(size))
            scale *= fit
        return [max(1, int(length * scale + 0.5)) for length in size]

    def _draw_crop(self, mask: np.ndarray, generator: random.Random) -> tuple[int, int, int, int]:
        height, width = (min(crop, length) for crop, length in zip(self.crop_size, mask.shape, strict=True))
        for _ in range(1 + MAX_CROP_REDRAWS):
            top = generator.randint(0, mask.shape[0] - height)
            left = generator.randint(0, mask.shape[1] - width)
            if self.cat_max_ratio >= 1 or (height, width) == mask.shape:
                break
            counts = np.bincount(mask[top : top + height, left : left + width].ravel(), minlength=IGNORE_INDEX + 1)
            counts[IGNORE_INDEX] = 0
            if counts.max() < min(self.cat_max_ratio * counts.sum(), counts.sum()):
                break
        return top, left, height, width


def _resize_nearest(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes a label map `(h, w)`; each pixel gets the label at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64) for old, new in zip(labels.shape, size, strict=True)
    )
    return labels[rows[:, None], columns]


def _resize_crop(image: Image.Image, size: Sequence[int], crop: Sequence[int]) -> Image.Image:
    """The `crop` (top, left, height, width) of the image resized to `size` (height, width).

    Equal to resizing the whole image, up to rounding, but only the pixels that are kept are computed.
    """
    top, left, height, width = crop
    scale_y, scale_x = image.height / size[0], image.width / size[1]
    box = (left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y)
    box = (*box[:2], min(box[2], image.width), min(box[3], image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def distort_colours(image: Image.Image, generator: random.Random) -> Image.Image:
    """Photometric distortion of SSD (arXiv 1512.02325) with mmsegmentation's ranges, on 8-bit values as there.

    With probability 1/2 each: brightness ±32/255, contrast and saturation × U(0.5, 1.5), hue ±36° (18 of OpenCV's 180
    steps); contrast comes before or after saturation and hue, which are those of HSV.

    Args:
        image (`PIL.Image.Image`): RGB.
        generator (`random.Random`): source of all random choices.
    """
    contrast_first = generator.random() < 0.5
    brightness = generator.uniform(-32, 32) if generator.random() < 0.5 else 0.0
    contrast, saturation = (generator.uniform(0.5, 1.5) if generator.random() < 0.5 else 1.0 for _ in range(2))
    hue = generator.uniform(-0.1, 0.1) if generator.random() < 0.5 else 0.0

    values = np.arange(256)
    before, after = _scaled(values, 1.0, brightness), values
    if contrast_first:
        before = _scaled(before, contrast)
    else:
        after = _scaled(values, contrast)
    image = _map_values(image, before, before, before)
    if saturation != 1 or hue:
        shifted_hue = (values + round(hue * 256)) % 256
        image = _map_values(image.convert("HSV"), shifted_hue, _scaled(values, saturation), values).convert("RGB")
    return _map_values(image, after, after, after)


def _scaled(values: np.ndarray, factor: float, shift: float = 0.0) -> np.ndarray:
    return (values * factor + shift).clip(0, 255).astype(np.int64)


def _map_values(image: Image.Image, *tables: np.ndarray) -> Image.Image:
    """Replaces the values of each channel by those of its table of 256."""
    if all(np.array_equal(table, np.arange(256)) for table in tables):
        return image
    return image.point(np.concatenate(tables).tolist())


__all__ = ["Augmentation", "distort_colours"]
