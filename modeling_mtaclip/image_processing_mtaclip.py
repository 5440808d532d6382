# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor, on torchvision (tensors on any device) and on PIL: one file, so that both travel together."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import SizeDict

from .image_processing_common_mtaclip import MTAClipImageProcessing, MTAClipImageProcessorKwargs


class MTAClipImageProcessor(MTAClipImageProcessing, TorchvisionBackend):
    r"""
    Prepares images and label maps for MTA-CLIP, and turns its outputs into segmentation maps.

    Images may be PIL images, paths, arrays or tensors; gray, palette and RGBA images become RGB, and photographs are
    turned upright as their EXIF orientation says. Values are those of 8 bits, or floats in [0, 1] or [0, 255], told
    apart by the largest value of an image; anything else is refused. Where a call says `do_rescale` or
    `rescale_factor`, or the settings are not `True` and 1/255, nothing is guessed: values are taken as they are.

    Args:
        do_resize (`bool`, defaults to `True`): whether to resize to `size`.
        size (`dict[str, int]`, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`):
            Keeps the aspect ratio: the short side becomes `shortest_edge`, unless the long side would exceed
            `longest_edge`; sizes are rounded to the nearest pixel, half up, as mmcv rounds them. `{"height", "width"}`
            stretches to a fixed size.
        resample (`PILImageResampling`, defaults to `BILINEAR`): for images; label maps are resized with `NEAREST`.
        do_rescale, rescale_factor (`bool`, `float`, default to `True` and 1/255): multiply values by the factor.
        do_normalize, image_mean, image_std: subtract and divide per channel; ImageNet's by default. Backbones from
            CLIP need `transformers.image_utils.OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD`.
        do_pad (`bool`, defaults to `True`): whether to pad at the right and at the bottom, images with 0 after
            normalization, label maps with `ignore_index`, to the largest image of the batch and a multiple of
            `size_divisor`.
        size_divisor (`int`, defaults to 32).
        do_reduce_labels (`bool`, defaults to `False`): whether label 0 means "other", as in ADE20K.
        ignore_index (`int`, defaults to 255): label of pixels that don't count.
        do_convert_rgb (`bool`, defaults to `True`): `False` for images of other than three channels, with as many
            values of `image_mean` and `image_std`.
    """

    valid_kwargs = MTAClipImageProcessorKwargs

    def _resized(self, image: Tensor, size: tuple[int, int], resample: Any) -> Tensor:
        return self.resize(image, SizeDict(height=size[0], width=size[1]), resample=resample)


class MTAClipImageProcessorPil(MTAClipImageProcessing, PilBackend):
    r"""
    [`MTAClipImageProcessor`] without torchvision: `AutoImageProcessor.from_pretrained(folder, backend="pil")`.

    Options, sizes, label maps and results are the same, but PIL resizes the images: a few values differ by one of 255.
    Without `return_tensors`, arrays are returned.
    """

    valid_kwargs = MTAClipImageProcessorKwargs

    def _resized(self, image: Tensor, size: tuple[int, int], resample: Any) -> Tensor:
        channels = [Image.fromarray(channel).resize(size[::-1], resample) for channel in image.detach().cpu().numpy()]
        return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))

    def _preprocess(self, *args: Any, **kwargs: Any) -> dict[str, list]:
        data = super()._preprocess(*args, **kwargs)
        return {name: [each.cpu().numpy() for each in tensors] for name, tensors in data.items()}


__all__ = ["MTAClipImageProcessor", "MTAClipImageProcessorPil"]
