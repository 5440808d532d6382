# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Images and label maps in, the model's tensors out; the model's outputs in, segmentation maps out."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
    make_flat_list_of_images,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .postprocessing_mtaclip import semantic_labels, semantic_scores


MASK_STRIDE = 4
WIDE_PIL_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


class MTAClipImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether label 0 means "other": it becomes `ignore_index`, and every other label is lowered by one, as ADE20K
        needs it.
    ignore_index (`int`, *optional*, defaults to `self.ignore_index`):
        Label of pixels that don't count; padding gets it too, and it is never lowered.
    size_divisor (`int`, *optional*, defaults to `self.size_divisor`):
        Images are padded at the right and at the bottom to a multiple of it.
    """

    do_reduce_labels: bool
    ignore_index: int
    size_divisor: int


class MTAClipImageProcessor(TorchvisionBackend):
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

    valid_kwargs = MTAClipImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers reads the class attribute)
    do_resize = True
    size = {"shortest_edge": 512, "longest_edge": 2048}  # noqa: RUF012
    default_to_square = False
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = True
    size_divisor = 32
    do_reduce_labels = False
    ignore_index = 255
    do_convert_rgb = True

    def __init__(self, **kwargs: Unpack[MTAClipImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[MTAClipImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepares a batch.

        Args:
            images (`ImageInput`): one image or several, of any sizes.
            segmentation_maps (`ImageInput`, *optional*): a label map `(height, width)` for each image.
            kwargs: overrides of the processor's settings, and `return_tensors`.

        Returns:
            `BatchFeature`: `pixel_values` `(B, 3, H, W)` float32 and, with maps, `labels` `(B, H, W)` int64; lists of
            such tensors without `return_tensors`.

        Raises:
            ValueError: images with more than 8 bits or values out of range; maps that don't fit the images.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def process_image(self, image: ImageInput, **kwargs: Any) -> Tensor:
        """One image as a `(3, H, W)` tensor with values in [0, 255]."""
        _refuse_wide_image(image)
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
        tensor = super().process_image(image, **kwargs)
        return _to_8_bit_range(tensor)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        return_tensors: str | TensorType | None = None,
        device: "str | torch.device | None" = None,
        do_convert_rgb: bool | None = None,
        input_data_format: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device
        )
        maps = None if segmentation_maps is None else _prepare_maps(segmentation_maps, prepared)
        data = self._preprocess(prepared, maps=maps, **kwargs)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess(
        self,
        images: list[Tensor],
        maps: list[Tensor] | None,
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        do_pad: bool,
        size_divisor: int,
        do_reduce_labels: bool,
        ignore_index: int,
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        if do_resize:
            sizes = [_resized_size(image.shape[-2:], size) for image in images]
            images = [
                self.resize(image, SizeDict(height=height, width=width), resample=resample)
                for image, (height, width) in zip(images, sizes, strict=True)
            ]
            if maps is not None:
                maps = [_resize_map(label_map, target) for label_map, target in zip(maps, sizes, strict=True)]
        images = [
            self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            for image in images
        ]
        if maps is not None and do_reduce_labels:
            maps = [_reduce_labels(label_map, ignore_index) for label_map in maps]
        if do_pad:
            target = _padded_size([image.shape[-2:] for image in images], size_divisor)
            images = [_pad(image, target, 0) for image in images]
            maps = None if maps is None else [_pad(label_map, target, ignore_index) for label_map in maps]
        return {"pixel_values": images} if maps is None else {"pixel_values": images, "labels": maps}

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[BatchFeature]:
        """Turns the model's outputs into segmentation maps.

        Mask logits are upsampled to the model's input before the sigmoid, padding is removed, and the scores are
        resized to the target size; memory does not grow with the number of classes times the size.

        Args:
            outputs (`MTAClipForSemanticSegmentationOutput`): of images that this processor prepared.
            target_sizes (`list[tuple[int, int]]`, *optional*): height and width of each image before preprocessing.
                From them and the processor's settings follows what is padding. Sizes that don't lead to the outputs'
                size under the settings (because the images were prepared in another way) are taken to cover the whole
                input. Without target sizes, the maps have the size of the model's input, padding included.
            return_segmentation_scores (`bool`, defaults to `False`): whether to return the scores of all classes too.

        Returns:
            `list[Tensor]`: an int64 map `(height, width)` of class ids for each image; or, with scores, a
            `list[BatchFeature]` with the keys `segmentation` and `segmentation_scores` `(num_labels, height, width)`.

        Raises:
            ValueError: outputs without mask logits, or not one target size per image.
        """
        masks, classes = getattr(outputs, "masks_queries_logits", None), outputs.class_queries_logits
        if masks is None:
            raise ValueError("`outputs` have no `masks_queries_logits`: call the model with `output_logits=True`.")
        if target_sizes is not None and len(target_sizes) != len(masks):
            raise ValueError(f"`target_sizes` must name one size per image: got {len(target_sizes)} for {len(masks)}.")
        if isinstance(target_sizes, Tensor):
            target_sizes = target_sizes.tolist()
        layouts = self._layouts(tuple(masks.shape[-2:]), target_sizes, len(masks))
        results = []
        for class_logits, mask_logits, layout in zip(classes, masks, layouts, strict=True):
            if not return_segmentation_scores:
                results.append(semantic_labels(class_logits, mask_logits, *layout))
                continue
            scores = semantic_scores(class_logits, mask_logits, *layout)
            results.append(BatchFeature({"segmentation": scores.argmax(dim=0), "segmentation_scores": scores}))
        return results

    def _layouts(
        self, mask_size: tuple[int, int], target_sizes: list[tuple[int, int]] | None, batch_size: int
    ) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
        """For each image: size of the model's input, of the part that is no padding, and of the result."""
        whole = (mask_size[0] * MASK_STRIDE, mask_size[1] * MASK_STRIDE)
        if target_sizes is None:
            return [(whole, whole, whole)] * batch_size
        targets = [(int(height), int(width)) for height, width in target_sizes]
        valid = [_resized_size(target, self.size) if self.do_resize else target for target in targets]
        padded = _padded_size(valid, self.size_divisor if self.do_pad else 1)
        if tuple(-(-length // MASK_STRIDE) for length in padded) != mask_size:
            return [(whole, whole, target) for target in targets]
        return [(padded, size, target) for size, target in zip(valid, targets, strict=True)]


def _refuse_wide_image(image: ImageInput) -> None:
    kind = None
    if isinstance(image, Image.Image) and image.mode in WIDE_PIL_MODES:
        kind = f"a PIL image of mode {image.mode!r}"
    elif isinstance(image, np.ndarray) and image.dtype != np.uint8 and image.dtype.kind in "iu" and image.max() > 255:
        kind = f"an array of {image.dtype} with values up to {image.max()}"
    elif isinstance(image, Tensor) and not image.is_floating_point() and image.max() > 255:
        kind = f"a tensor of {image.dtype} with values up to {int(image.max())}"
    if kind is not None:
        raise ValueError(
            f"Images must have 8 bits per channel, got {kind}. Scale it first, e.g. "
            "`(image / 256).astype(numpy.uint8)` for 16 bits."
        )


def _to_8_bit_range(image: Tensor) -> Tensor:
    if not image.is_floating_point():
        return image.to(torch.uint8)
    low, high = image.min().item(), image.max().item()
    if not (low >= 0 and high <= 255):
        raise ValueError(
            f"Images of floats must have values in [0, 1] or [0, 255], got values from {low:g} to {high:g}. Pass "
            "images before normalisation."
        )
    image = image.float()
    return image * 255 if high <= 1 else image


def _prepare_maps(segmentation_maps: ImageInput, images: list[Tensor]) -> list[Tensor]:
    maps = [np.array(label_map) for label_map in make_flat_list_of_images(segmentation_maps, expected_ndims=2)]
    if len(maps) != len(images):
        raise ValueError(f"Got {len(maps)} segmentation maps for {len(images)} images: pass one for each.")
    for label_map, image in zip(maps, images, strict=True):
        if label_map.ndim != 2 or label_map.dtype.kind not in "iub":
            raise ValueError(
                f"A segmentation map must be a (height, width) map of integer labels, got the shape {label_map.shape} "
                f"and dtype {label_map.dtype}."
            )
        if label_map.shape != tuple(image.shape[-2:]):
            raise ValueError(
                f"A segmentation map of size {label_map.shape} does not fit its image of size "
                f"{tuple(image.shape[-2:])}."
            )
    return [torch.from_numpy(label_map.astype(np.int64)).to(images[0].device) for label_map in maps]


def _resized_size(size: tuple[int, int], target: SizeDict) -> tuple[int, int]:
    if target.height and target.width:
        return target.height, target.width
    if not target.shortest_edge:
        raise ValueError(
            'A `size` must have the keys "shortest_edge" (and perhaps "longest_edge"), or "height" and "width", got '
            f"{dict(target)}."
        )
    scale = target.shortest_edge / min(size)
    if target.longest_edge:
        scale = min(scale, target.longest_edge / max(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _resize_map(label_map: Tensor, size: tuple[int, int]) -> Tensor:
    # float64 holds every label exactly.
    return F.interpolate(label_map[None, None].double(), size=size, mode="nearest-exact")[0, 0].long()


def _reduce_labels(label_map: Tensor, ignore_index: int) -> Tensor:
    ignored = (label_map == 0) | (label_map == ignore_index)
    return torch.where(ignored, ignore_index, label_map - 1)


def _padded_size(sizes: list[tuple[int, int]], divisor: int) -> tuple[int, int]:
    height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _pad(tensor: Tensor, size: tuple[int, int], value: float) -> Tensor:
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (0, size[1] - width, 0, size[0] - height), value=value)


__all__ = ["MTAClipImageProcessor"]
