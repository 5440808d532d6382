# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Training augmentation of the paper (mmsegmentation's), on torchvision's transforms.

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


MAX_CROP_DRAWS = 10


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
        # Label ids and 255 fit into a byte, which is quicker to move about.
        pixels, mask = tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8))[None])
        size = self._draw_size(labels.shape, generator)
        pixels, mask = F.resize(pixels, size, antialias=True), F.resize(mask, size)
        top, left, height, width = self._draw_crop(mask[0], generator)
        pixels, mask = F.crop(pixels, top, left, height, width), F.crop(mask, top, left, height, width)
        if self.horizontal_flip and generator.random() < 0.5:
            pixels, mask = F.horizontal_flip(pixels), F.horizontal_flip(mask)
        if self.photometric_distortion:
            pixels = distort_colours(pixels, generator)
        pixels = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), self.image_mean, self.image_std)
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

    def _draw_crop(self, mask: Tensor, generator: random.Random) -> tuple[int, int, int, int]:
        height, width = (min(crop, length) for crop, length in zip(self.crop_size, mask.shape, strict=True))
        for _ in range(MAX_CROP_DRAWS):
            top = generator.randint(0, mask.shape[0] - height)
            left = generator.randint(0, mask.shape[1] - width)
            if self.cat_max_ratio >= 1 or (height, width) == tuple(mask.shape):
                break
            crop = mask[top : top + height, left : left + width]
            counts = crop[crop != IGNORE_INDEX].bincount()
            if (counts > 0).sum() > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return top, left, height, width


def distort_colours(image: Tensor, generator: random.Random) -> Tensor:
    """Photometric distortion of SSD (arXiv 1512.02325) with mmsegmentation's ranges.

    With probability 1/2 each: brightness ±32/255, contrast and saturation × U(0.5, 1.5), hue ±36° (18 of OpenCV's 180
    steps); contrast comes before or after the others.

    Args:
        image (`Tensor` of shape `(3, H, W)`): uint8.
        generator (`random.Random`): source of all random choices.
    """
    contrast_first = generator.random() < 0.5
    brightness = generator.uniform(-32, 32) if generator.random() < 0.5 else 0.0
    contrast, saturation = (generator.uniform(0.5, 1.5) if generator.random() < 0.5 else 1.0 for _ in range(2))
    hue = generator.uniform(-0.1, 0.1) if generator.random() < 0.5 else 0.0

    def scaled(pixels: Tensor, factor: float, shift: float) -> Tensor:
        return (pixels.float() * factor + shift).clamp_(0, 255).to(torch.uint8)

    image = scaled(image, 1.0, brightness) if brightness else image
    if contrast_first and contrast != 1:
        image = scaled(image, contrast, 0.0)
    image = _scale_saturation(image, saturation) if saturation != 1 else image
    image = F.adjust_hue(image, hue) if hue else image
    if not contrast_first and contrast != 1:
        image = scaled(image, contrast, 0.0)
    return image


def _scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiplies the saturation of HSV, at most to 1; hue and value stay.

    torchvision's own `adjust_saturation` mixes with grey instead, which changes the value.
    """
    pixels = image.float()
    value = pixels.amax(dim=0, keepdim=True)
    saturation = 1 - pixels.amin(dim=0, keepdim=True) / value.clamp(min=1)
    factors = torch.minimum(torch.full_like(saturation, factor), 1 / saturation.clamp(min=1e-3))
    return (value - (value - pixels) * factors).round_().clamp_(0, 255).to(torch.uint8)


__all__ = ["Augmentation", "distort_colours"]
