# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Training augmentation of the paper (mmsegmentation's), of torchvision's transforms v2 on `tv_tensors`.

What torchvision lacks is a transform of its own here. All draw from torch's generator, as torchvision's do;
[`random_choices`] makes an example a function of a seed alone, whatever the workers, processes and resumed runs.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .catalog import IGNORE_INDEX


MAX_CROP_REDRAWS = 10
MAX_BRIGHTNESS = 32 / 255
CONTRAST_RANGE = SATURATION_RANGE = (0.5, 1.5)
# 18 of OpenCV's 180 steps, as a share of the circle.
MAX_HUE = 0.1


class ResizeByRatio(v2.Transform):
    """Resizes by a random ratio, after the image was fitted to `shortest_edge` and `longest_edge` of `size`."""

    def __init__(self, size: dict[str, int] | None, scale_range: Sequence[float]) -> None:
        super().__init__()
        self.size, self.scale_range = size, scale_range

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = F.get_size(flat_inputs[0])
        scale = _uniform(*self.scale_range)
        if self.size is not None:
            longest_edge = self.size.get("longest_edge") or math.inf
            scale *= min(self.size["shortest_edge"] / min(size), longest_edge / max(size))
        return {"size": [max(1, int(length * scale + 0.5)) for length in size]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        is_mask = isinstance(inpt, tv_tensors.Mask)
        mode = v2.InterpolationMode.NEAREST_EXACT if is_mask else v2.InterpolationMode.BILINEAR
        # As a tensor: torchvision 0.24 takes the corners of a `Mask`'s pixels, whatever the mode.
        return tv_tensors.wrap(F.resize(inpt.as_subclass(Tensor), params["size"], mode), like=inpt)


class CropOfSeveralClasses(v2.Transform):
    """Crops at a random place, drawn again while one class fills too much of it; small images stay as they are."""

    def __init__(self, size: Sequence[int], cat_max_ratio: float) -> None:
        super().__init__()
        self.size, self.cat_max_ratio = size, cat_max_ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(each for each in flat_inputs if isinstance(each, tv_tensors.Mask))
        size = F.get_size(mask)
        height, width = (min(crop, length) for crop, length in zip(self.size, size, strict=True))
        for _ in range(1 + MAX_CROP_REDRAWS):
            top, left = _integer(size[0] - height), _integer(size[1] - width)
            crop = {"top": top, "left": left, "height": height, "width": width}
            if self.cat_max_ratio >= 1 or [height, width] == size or self._has_several(F.crop(mask, **crop)):
                break
        return crop

    def _has_several(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.flatten(), minlength=IGNORE_INDEX + 1)
        counts[IGNORE_INDEX] = 0
        largest, labeled = int(counts.max()), int(counts.sum())
        return largest < min(self.cat_max_ratio * labeled, labeled)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class PhotometricDistortion(v2.Transform):
    """Photometric distortion of SSD (arXiv 1512.02325) with mmsegmentation's ranges, of float images in [0, 1].

    With probability 1/2 each: brightness ± 32/255, contrast and saturation × U(0.5, 1.5), hue ± 36°; contrast comes
    before or after saturation and hue, which are those of HSV. torchvision's `RandomPhotometricDistort` multiplies the
    brightness, changes the contrast around the mean and mixes with gray.
    """

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
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

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        pixels = _linear(inpt.as_subclass(Tensor), 1.0, params["brightness"])
        pixels = _linear(pixels, params["contrast_before"])
        if params["saturation"] != 1 or params["hue"]:
            pixels = change_saturation_and_hue(pixels, params["saturation"], params["hue"])
        return tv_tensors.wrap(_linear(pixels, params["contrast_after"]), like=inpt)


class PadToSize(v2.Transform):
    """Pads on the right and at the bottom to a size, images with 0 and masks with 255."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = F.get_size(inpt)
        fill = IGNORE_INDEX if isinstance(inpt, tv_tensors.Mask) else 0
        return F.pad(inpt, [0, 0, self.size[1] - width, self.size[0] - height], fill=fill)


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

    def __post_init__(self) -> None:
        self.transform = v2.Compose(
            [
                ResizeByRatio(self.size, self.scale_range),
                CropOfSeveralClasses(self.crop_size, self.cat_max_ratio),
                v2.RandomHorizontalFlip(0.5 if self.horizontal_flip else 0),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
                *([PhotometricDistortion()] if self.photometric_distortion else []),
                v2.Normalize(self.image_mean, self.image_std),
                PadToSize(self.crop_size),
            ]
        )

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Augments an RGB image `(3, height, width)` and a mask `(1, height, width)` of label ids and 255, both uint8.

        Returns:
            `tuple[tv_tensors.Image, tv_tensors.Mask]`: float32 `(3, *crop_size)` and int64 `(1, *crop_size)`.
        """
        return self.transform(image, mask)


def change_saturation_and_hue(image: Tensor, saturation: float, hue: float) -> Tensor:
    """Changes colors `(3, height, width)` in [0, 1] in HSV: a third of the time of torchvision's `adjust_hue`.

    In HSV, the distance of a pixel's hue from that of pure red, green and blue says how far the channel lies below the
    pixel's value: not at all up to a sixth of the circle, by the whole chroma from a third on. `hue` is added, as a
    share of the circle of at most 0.1; saturation ends at 1.
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


def _integer(highest: int) -> int:
    return int(torch.randint(highest + 1, ()))


def _coin() -> bool:
    return bool(torch.rand(()) < 0.5)


__all__ = ["Augmentation", "random_choices"]
