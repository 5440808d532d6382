# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns an image into what the model reads, at every scale of test-time augmentation. Loader processes do this."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_utils import ImageInput, get_image_size

from ..image_processing_mtaclip import MTAClipImageProcessor


@dataclass
class PreparedImage:
    """One image, ready for [`Segmenter`].

    Attributes:
        size (`tuple[int, int]`): height and width of the upright image as it was given.
        pixel_values (`list[Tensor]` of shapes `(3, h, w)`): one per scale, float32, without padding.
    """

    size: tuple[int, int]
    pixel_values: list[Tensor]


def prepare_image(
    image: ImageInput, image_processor: MTAClipImageProcessor, scales: Sequence[float] = (1.0,)
) -> PreparedImage:
    """Prepares an image as the image processor does, but without padding, at each scale.

    Args:
        image (`ImageInput`): one image of a kind that the processor takes.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        scales (`Sequence[float]`): multiples of the size that the processor gives the image.

    Raises:
        ValueError: images that the processor refuses.
    """
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        size = (image.height, image.width)
    else:
        size = tuple(get_image_size(np.asarray(image))) if np.ndim(image) == 3 else tuple(np.shape(image))
    pixel_values = [
        image_processor(
            image, do_pad=False, return_tensors="pt", **_size_options(image_processor, size, scale)
        ).pixel_values[0]
        for scale in scales
    ]
    return PreparedImage(size, pixel_values)


def _size_options(image_processor: MTAClipImageProcessor, size: tuple[int, int], scale: float) -> dict[str, Any]:
    """The processor's settings for an image of `size` at a scale; lengths are rounded half up."""
    if scale == 1:
        return {}
    if not image_processor.do_resize:
        lengths = {"height": size[0], "width": size[1]}
    else:
        lengths = {name: length for name, length in dict(image_processor.size).items() if length}
    return {"do_resize": True, "size": {name: int(length * scale + 0.5) for name, length in lengths.items()}}


__all__ = ["PreparedImage", "prepare_image"]
