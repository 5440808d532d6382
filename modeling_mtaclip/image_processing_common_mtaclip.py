# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What both image processors do: images and label maps in, tensors out; model outputs in, segmentation maps out.

The two differ in the library that converts, resizes and normalises images (torchvision or PIL), which transformers'
backends bring; sizes, padding, label maps and post-processing are here.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
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


# As transformers has them in an auto map: PIL's, then torchvision's.
AUTO_IMAGE_PROCESSORS = (
    "image_processing_mtaclip.MTAClipImageProcessorPil",
    "image_processing_mtaclip.MTAClipImageProcessor",
)
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


class MTAClipImageProcessing:
    """Mix-in for a backend of transformers, whose images are arrays or tensors `(3, H, W)`."""

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

    def to_dict(self) -> dict[str, Any]:
        """The settings, as they are saved; whoever loads them without the package chooses the backend, too."""
        settings = super().to_dict()
        if "auto_map" in settings:
            settings["auto_map"]["AutoImageProcessor"] = list(AUTO_IMAGE_PROCESSORS)
        return settings

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

    def process_image(self, image: ImageInput, **kwargs: Any) -> Tensor | np.ndarray:
        """One image as `(3, H, W)` with values in [0, 255]."""
        _refuse_wide_image(image)
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
        elif isinstance(image, np.ndarray | Tensor):
            image = self._to_8_bit_range(image)
        return super().process_image(image, **kwargs)

    def _to_8_bit_range(self, image: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """An array or tensor with values in [0, 255]."""
        raise NotImplementedError

    def _scaled(
        self,
        image: Tensor | np.ndarray,
        factor: float | None,
        mean_and_std: tuple[tuple[float, ...], tuple[float, ...]] | None,
    ) -> Tensor | np.ndarray:
        """The image times the factor, without its mean, divided by its standard deviation."""
        raise NotImplementedError

    def _padded(self, image: Tensor | np.ndarray, size: tuple[int, int]) -> Tensor | np.ndarray:
        """The image with zeros at the right and at the bottom."""
        raise NotImplementedError

    def _labels(self, label_map: np.ndarray, device: Any) -> Tensor | np.ndarray:
        """An int64 label map as the processor returns it."""
        raise NotImplementedError

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        return_tensors: str | TensorType | None = None,
        device: Any = None,
        do_convert_rgb: bool | None = None,
        input_data_format: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        # Only torchvision's backend has devices.
        place = {} if device is None else {"device": device}
        prepared = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **place
        )
        maps = None if segmentation_maps is None else _prepare_maps(segmentation_maps, prepared)
        data = self._preprocess(prepared, maps=maps, device=device, **kwargs)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess(
        self,
        images: list[Tensor] | list[np.ndarray],
        maps: list[np.ndarray] | None,
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
        device: Any = None,
        **kwargs: Any,
    ) -> dict[str, list]:
        if do_resize:
            sizes = [_resized_size(image.shape[-2:], size) for image in images]
            images = [
                self.resize(image, SizeDict(height=height, width=width), resample=resample)
                for image, (height, width) in zip(images, sizes, strict=True)
            ]
            if maps is not None:
                maps = [_resize_map(label_map, target) for label_map, target in zip(maps, sizes, strict=True)]
        factor = rescale_factor if do_rescale else None
        mean_and_std = (image_mean, image_std) if do_normalize else None
        images = [self._scaled(image, factor, mean_and_std) for image in images]
        if maps is not None and do_reduce_labels:
            maps = [_reduce_labels(label_map, ignore_index) for label_map in maps]
        if do_pad:
            target = _padded_size([image.shape[-2:] for image in images], size_divisor)
            images = [self._padded(image, target) for image in images]
            maps = None if maps is None else [_pad_map(label_map, target, ignore_index) for label_map in maps]
        if maps is None:
            return {"pixel_values": images}
        return {"pixel_values": images, "labels": [self._labels(label_map, device) for label_map in maps]}

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
        **overrides: Any,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
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
            overrides: `size`, `do_resize`, `do_pad` and `size_divisor`, if the images were prepared with others than
                the processor's.

        Returns:
            `list[Tensor]`: an int64 map `(height, width)` of class ids for each image; or, with scores, a
            list of outputs with `segmentation` and `segmentation_scores` `(num_labels, height, width)`.

        Raises:
            ValueError: outputs without mask logits, or not one target size per image.
            TypeError: other overrides.
        """
        masks, classes = getattr(outputs, "masks_queries_logits", None), outputs.class_queries_logits
        if masks is None:
            raise ValueError("`outputs` have no `masks_queries_logits`: call the model with `output_logits=True`.")
        if target_sizes is not None and len(target_sizes) != len(masks):
            raise ValueError(f"`target_sizes` must name one size per image: got {len(target_sizes)} for {len(masks)}.")
        if isinstance(target_sizes, Tensor):
            target_sizes = target_sizes.tolist()
        layouts = self._layouts(tuple(masks.shape[-2:]), target_sizes, len(masks), **overrides)
        results = []
        for class_logits, mask_logits, layout in zip(classes, masks, layouts, strict=True):
            if not return_segmentation_scores:
                results.append(semantic_labels(class_logits, mask_logits, *layout))
                continue
            scores = semantic_scores(class_logits, mask_logits, *layout)
            results.append(
                SemanticSegmentationPostProcessorOutput(
                    {"segmentation": scores.max(dim=0).indices, "segmentation_scores": scores}
                )
            )
        return results

    def _layouts(
        self,
        mask_size: tuple[int, int],
        target_sizes: list[tuple[int, int]] | None,
        batch_size: int,
        size: dict[str, int] | SizeDict | None = None,
        do_resize: bool | None = None,
        do_pad: bool | None = None,
        size_divisor: int | None = None,
    ) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
        """For each image: size of the model's input, of the part that is no padding, and of the result."""
        whole = (mask_size[0] * MASK_STRIDE, mask_size[1] * MASK_STRIDE)
        if target_sizes is None:
            return [(whole, whole, whole)] * batch_size
        size = self.size if size is None else SizeDict(**dict(size))
        do_resize = self.do_resize if do_resize is None else do_resize
        do_pad = self.do_pad if do_pad is None else do_pad
        targets = [(int(height), int(width)) for height, width in target_sizes]
        valid = [_resized_size(target, size) if do_resize else target for target in targets]
        padded = _padded_size(valid, (size_divisor or self.size_divisor) if do_pad else 1)
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


def range_factor(low: float, high: float) -> float:
    """By what to multiply a float image with these extreme values, so that they lie in [0, 255].

    Raises:
        ValueError: values that are neither in [0, 1] nor in [0, 255].
    """
    if not (low >= 0 and high <= 255):
        raise ValueError(
            f"Images of floats must have values in [0, 1] or [0, 255], got values from {low:g} to {high:g}. Pass "
            "images before normalisation."
        )
    return 255 if high <= 1 else 1


def _prepare_maps(segmentation_maps: ImageInput, images: list) -> list[np.ndarray]:
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
    return [label_map.astype(np.int64) for label_map in maps]


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


def _resize_map(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # The nearest pixel to the centre of each new one, in whole numbers.
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, label_map.shape, strict=True)
    )
    return label_map[rows[:, None], columns]


def _reduce_labels(label_map: np.ndarray, ignore_index: int) -> np.ndarray:
    ignored = (label_map == 0) | (label_map == ignore_index)
    return np.where(ignored, ignore_index, label_map - 1)


def _padded_size(sizes: list[tuple[int, int]], divisor: int) -> tuple[int, int]:
    height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _pad_map(label_map: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    height, width = label_map.shape
    return np.pad(label_map, ((0, size[0] - height), (0, size[1] - width)), constant_values=value)


__all__ = ["MTAClipImageProcessing", "MTAClipImageProcessorKwargs", "range_factor"]
