# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor on PIL: the same without torchvision, on the CPU."""

from typing import Any

import numpy as np
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import Unpack

from .image_processing_common_mtaclip import MTAClipImageProcessing, MTAClipImageProcessorKwargs, range_factor


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


__all__ = ["MTAClipImageProcessorPil"]
