# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor, on torchvision (tensors on any device) and on PIL: one file, so that both travel together."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.processing_utils import Unpack

from .image_processing_common_mtaclip import MTAClipImageProcessing, MTAClipImageProcessorKwargs, range_factor


class MTAClipImageProcessor(MTAClipImageProcessing, TorchvisionBackend):
    r"""
    Prepares images and label maps for MTA-CLIP, and turns its outputs into segmentation maps.

    Images may be PIL images (EXIF orientation is honoured), arrays or tensors; grey, palette and RGBA images become
    RGB. They hold 8-bit values, or floats in [0, 1] or [0, 255]; images with more than 8 bits are refused.

    Args:
        do_resize (`bool`, defaults to `True`): whether to resize to `size`.
        size (`dict[str, int]`, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`):
            Keeps the aspect ratio: the short side becomes `shortest_edge`, unless the long side would exceed
            `longest_edge`; sizes are rounded to the nearest pixel, half up, as mmcv rounds them. `{"height", "width"}`
            stretches to a fixed size.
        resample (`PILImageResampling`, defaults to `BILINEAR`): for images; label maps are resized with `NEAREST`.
        do_rescale, rescale_factor (`bool`, `float`, default to `True` and 1/255): multiply 8-bit values by the factor.
        do_normalize, image_mean, image_std: subtract and divide per channel; ImageNet's by default. Backbones from
            CLIP need `transformers.image_utils.OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD`.
        do_pad (`bool`, defaults to `True`): whether to pad at the right and at the bottom, images with 0 after
            normalisation, label maps with `ignore_index`, to the largest image of the batch and a multiple of
            `size_divisor`.
        size_divisor (`int`, defaults to 32).
        do_reduce_labels (`bool`, defaults to `False`): whether label 0 means "other", as in ADE20K.
        ignore_index (`int`, defaults to 255): label of pixels that don't count.
        do_convert_rgb (`bool`, defaults to `True`).
    """

    def __init__(self, **kwargs: Unpack[MTAClipImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)

    def _to_8_bit_range(self, image: Tensor | np.ndarray) -> Tensor:
        image = image if isinstance(image, Tensor) else torch.tensor(image)
        if not image.is_floating_point():
            return image.to(torch.uint8)
        return image.float() * range_factor(image.min().item(), image.max().item())

    def _scaled(
        self,
        image: Tensor,
        factor: float | None,
        mean_and_std: tuple[tuple[float, ...], tuple[float, ...]] | None,
    ) -> Tensor:
        mean, std = mean_and_std or (None, None)
        return self.rescale_and_normalize(image, factor is not None, factor, mean_and_std is not None, mean, std)

    def _padded(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]))

    def _labels(self, label_map: np.ndarray, device: Any) -> Tensor:
        return torch.from_numpy(label_map).to(device)


class MTAClipImageProcessorPil(MTAClipImageProcessing, PilBackend):
    r"""
    [`MTAClipImageProcessor`] without torchvision: `AutoImageProcessor.from_pretrained(folder, backend="pil")`.

    Options, sizes, label maps and results are the same, but PIL resizes the images: a few values differ by one of 255.
    Images of floats are rounded to 8 bits. Without `return_tensors`, arrays are returned.
    """

    def __init__(self, **kwargs: Unpack[MTAClipImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)

    def _to_8_bit_range(self, image: Tensor | np.ndarray) -> np.ndarray:
        image = np.asarray(image)
        if image.dtype.kind == "f":
            image = (image * range_factor(image.min().item(), image.max().item())).round()
        return image.astype(np.uint8)

    def _scaled(
        self,
        image: np.ndarray,
        factor: float | None,
        mean_and_std: tuple[tuple[float, ...], tuple[float, ...]] | None,
    ) -> np.ndarray:
        if factor is not None:
            image = self.rescale(image, factor)
        return image if mean_and_std is None else self.normalize(image, *mean_and_std)

    def _padded(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        height, width = image.shape[-2:]
        return np.pad(image, ((0, 0), (0, size[0] - height), (0, size[1] - width)))

    def _labels(self, label_map: np.ndarray, device: Any) -> np.ndarray:
        return label_map


__all__ = ["MTAClipImageProcessor", "MTAClipImageProcessorPil"]
