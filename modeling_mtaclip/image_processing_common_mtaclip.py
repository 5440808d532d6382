# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What both image processors do: images and label maps in, tensors out; model outputs in, segmentation maps out.

The two differ in the library that resizes images, torchvision or PIL.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    load_image,
    make_flat_list_of_images,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from .postprocessing_mtaclip import QueryScores, semantic_labels, semantic_scores


logger = logging.get_logger(__name__)

# As transformers has them in an auto map: PIL's, then torchvision's.
AUTO_IMAGE_PROCESSORS = (
    "image_processing_mtaclip.MTAClipImageProcessorPil",
    "image_processing_mtaclip.MTAClipImageProcessor",
)
MASK_STRIDE = 4
EIGHT_BIT_FACTOR = 1 / 255
LAYOUT_SETTINGS = ("size", "do_resize", "do_pad", "size_divisor")
WIDE_PIL_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


class MTAClipImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of [`MTAClipImageProcessor`] beside those of all image processors."""

    do_reduce_labels: bool
    ignore_index: int
    size_divisor: int


class MTAClipImageProcessing:
    """Mix-in for a backend of transformers; [`MTAClipImageProcessor`] documents the settings."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers reads the class attribute)
    do_resize = True
    size = {"shortest_edge": 512, "longest_edge": 2048}  # noqa: RUF012
    default_to_square = False
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = EIGHT_BIT_FACTOR
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

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """The settings in one form; those that would have no effect are refused."""
        kwargs = super()._standardize_kwargs(**kwargs)
        for name in ("do_center_crop", "crop_size", "pad_size", "data_format"):
            if kwargs.get(name) and kwargs[name] != ChannelDimension.FIRST:
                raise ValueError(
                    f"`{name}={kwargs[name]!r}` is not supported: crop images and maps before. Padding goes to a "
                    "multiple of `size_divisor`, and results are channels first."
                )
        for name in ("size_divisor", "image_std", "rescale_factor"):
            if kwargs.get(name) is not None and np.min(kwargs[name]) <= 0:
                raise ValueError(f"`{name}` must be positive, got {kwargs[name]}.")
        mean, std = kwargs.get("image_mean"), kwargs.get("image_std")
        if kwargs.get("do_normalize") and np.ndim(mean) and np.ndim(std) and len(mean) != len(std):
            raise ValueError(f"`image_mean` and `image_std` need a value for each channel, got {mean} and {std}.")
        return kwargs

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[MTAClipImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepares a batch.

        Args:
            images (`ImageInput`): one image or several, of any sizes and kinds.
            segmentation_maps (`ImageInput`, *optional*): a label map `(height, width)` for each upright image.
            kwargs: overrides of the processor's settings, and `return_tensors`.

        Returns:
            `BatchFeature`: `pixel_values` `(B, 3, H, W)` float32 and, with maps, `labels` `(B, H, W)` int64; lists of
            such tensors without `return_tensors`.

        Raises:
            ValueError: images of which it isn't clear what they show, such as those with more than 8 bits; maps that
                don't fit the images; options that are not supported.
        """
        as_given = kwargs.get("do_rescale") is not None or kwargs.get("rescale_factor") is not None
        return super().preprocess(images, segmentation_maps, as_given, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        as_given: bool,
        return_tensors: str | TensorType | None = None,
        device: Any = None,
        **settings: Any,
    ) -> BatchFeature:
        images = [_read_image(image, as_given, settings) for image in self._prepare_images_structure(images)]
        if not images:
            raise ValueError("No images were given.")
        images = [image if device is None else image.to(device) for image in images]
        maps = None if segmentation_maps is None else _read_maps(segmentation_maps, images)
        return BatchFeature(data=self._preprocess(images, maps, **settings), tensor_type=return_tensors)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        """The single images of nested lists and batches."""
        if isinstance(images, list | tuple):
            return [image for each in images for image in self._prepare_images_structure(each)]
        if isinstance(images, str | os.PathLike):
            return [Image.open(images) if os.path.isfile(images) else load_image(os.fspath(images))]
        if isinstance(images, np.ndarray | Tensor) and images.ndim == expected_ndims + 1:
            return list(images)
        return [images]

    def _resized(self, image: Tensor, size: tuple[int, int], resample: Any) -> Tensor:
        """The image `(C, H, W)`, of uint8 or float32, at another size."""
        raise NotImplementedError

    def _preprocess(self, images: list[Tensor], maps: list[Tensor] | None, **settings: Any) -> dict[str, list]:
        sizes, whole = _layout([tuple(image.shape[-2:]) for image in images], settings)
        if settings["do_resize"]:
            images = [self._resized(*each, settings["resample"]) for each in zip(images, sizes, strict=True)]
        data = {"pixel_values": [_normalized(image, settings) for image in images]}
        if maps is not None:
            data["labels"] = [_resized_map(*each) for each in zip(maps, sizes, strict=True)]
            if settings["do_reduce_labels"]:
                data["labels"] = [_reduced_labels(each, settings["ignore_index"]) for each in data["labels"]]
        if settings["do_pad"]:
            padding = {"pixel_values": 0, "labels": settings["ignore_index"]}
            data = {name: [_padded(each, whole, padding[name]) for each in values] for name, values in data.items()}
        return data

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
        **overrides: Any,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Turns the model's outputs into segmentation maps.

        Args:
            outputs (`MTAClipForSemanticSegmentationOutput`): of images that this processor prepared.
            target_sizes (`list[tuple[int, int]]`, *optional*): height and width of each image before preprocessing,
                upright as its EXIF orientation says. From them and the processor's settings follows what is padding.
                Without target sizes, the maps have the size of the model's input, padding included.
            return_segmentation_scores (`bool`, defaults to `False`): whether to return the scores of all classes too.
            overrides: `size`, `do_resize`, `do_pad` and `size_divisor`, if the images were prepared with others than
                the processor's.

        Returns:
            `list[Tensor]`: an int64 map `(height, width)` of class ids for each image; or, with scores, a
            list of outputs with `segmentation` and `segmentation_scores` `(num_labels, height, width)`.

        Raises:
            ValueError: outputs without mask logits, or target sizes that can't be those of the images.
            TypeError: other overrides.
        """
        masks, classes = getattr(outputs, "masks_queries_logits", None), outputs.class_queries_logits
        if masks is None:
            raise ValueError("`outputs` have no `masks_queries_logits`: call the model with `output_logits=True`.")
        if target_sizes is not None and len(target_sizes) != len(masks):
            raise ValueError(f"`target_sizes` must name one size per image: got {len(target_sizes)} for {len(masks)}.")
        whole, valid, targets = self._sizes(tuple(masks.shape[-2:]), target_sizes, len(masks), **overrides)
        sources = [QueryScores(*each[:2], whole, each[2]) for each in zip(classes, masks, valid, strict=True)]
        if not return_segmentation_scores:
            return list(map(semantic_labels, sources, targets))
        scores = map(semantic_scores, sources, targets)
        return [
            SemanticSegmentationPostProcessorOutput(
                {"segmentation": each.max(dim=0).indices, "segmentation_scores": each}
            )
            for each in scores
        ]

    def _sizes(
        self, mask_size: tuple[int, int], target_sizes: list[tuple[int, int]] | None, batch_size: int, **overrides: Any
    ) -> tuple[tuple[int, int], list[tuple[int, int]], list[tuple[int, int]]]:
        """Size of the model's input, and of each image the sizes of the part that is no padding and of the result."""
        if unknown := overrides.keys() - set(LAYOUT_SETTINGS):
            raise TypeError(f"Unknown overrides {sorted(unknown)}: expected some of {LAYOUT_SETTINGS}.")
        whole = (mask_size[0] * MASK_STRIDE, mask_size[1] * MASK_STRIDE)
        if target_sizes is None:
            return whole, [whole] * batch_size, [whole] * batch_size
        settings = {name: getattr(self, name) for name in LAYOUT_SETTINGS}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        settings = self._standardize_kwargs(**settings, default_to_square=self.default_to_square)
        targets = [(int(height), int(width)) for height, width in target_sizes]
        valid, padded = _layout(targets, settings)
        if _mask_size(padded) == mask_size:
            return padded, valid, targets
        if len(set(targets)) == 1 and _mask_size(targets[0]) == mask_size:
            # Images of the model's input size, whoever prepared them.
            return targets[0], targets, targets
        raise ValueError(
            f"Images with the `target_sizes` {targets} would be prepared as {padded[0]} x {padded[1]} pixels, but the "
            f"outputs are of about {whole[0]} x {whole[1]}. Pass the height and width of each upright image (see "
            "`PIL.ImageOps.exif_transpose`), and the `size`, `do_resize`, `do_pad` and `size_divisor` that the images "
            "were prepared with, if they were not the processor's."
        )


def _read_image(image: Any, asked: bool, settings: Mapping[str, Any]) -> Tensor:
    """One image as `(C, H, W)`, uint8 or float32, in [0, 255] unless it was `asked` for a factor in the call or the
    settings have another than usual: then values stay as they are."""
    as_given = asked or not settings["do_rescale"] or settings["rescale_factor"] != EIGHT_BIT_FACTOR
    to_rgb, data_format = bool(settings["do_convert_rgb"]), settings["input_data_format"]
    means = settings["image_mean"] if settings["do_normalize"] else None
    num_channels = len(means) if np.ndim(means) else 3 if to_rgb else None
    if isinstance(image, Image.Image):
        image, data_format = _decoded(image, to_rgb), ChannelDimension.LAST
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"Images must be PIL images, paths, arrays or tensors, got {type(image).__name__}.")
    image = _values(image, as_given)
    image = _channels_first(image, (1, 3, 4) if to_rgb or not num_channels else (num_channels,), data_format)
    if to_rgb:
        image = _in_rgb(image, as_given)
    if num_channels not in (None, len(image)):
        raise ValueError(
            f"An image has {len(image)} channels, expected {num_channels} (in RGB 3, else as many as `image_mean` has "
            "values). Images of other than three channels need `do_convert_rgb=False` and a mean and standard "
            "deviation for each; `input_data_format` says where the channels are."
        )
    if asked and settings["do_rescale"] and image.is_floating_point() and image.max() <= 1:
        logger.warning_once("`do_rescale` is applied to images of floats in [0, 1]: `False` takes them as they are.")
    return image.contiguous()


def _decoded(image: Image.Image, to_rgb: bool) -> np.ndarray:
    """The upright image as an array; palettes and colors that are not RGB are resolved."""
    if image.mode in WIDE_PIL_MODES or ";16" in _mode_in_file(image):
        raise ValueError(
            f"Images must have 8 bits per channel, got a PIL image of mode {image.mode!r} with more. Scale it first, "
            "e.g. `(numpy.asarray(image) / 256).astype(numpy.uint8)` for 16 bits."
        )
    image = ImageOps.exif_transpose(image)
    if to_rgb and ("A" in image.getbands() or "transparency" in image.info):
        return np.array(image.convert("RGBA"))
    if image.mode not in ("1", "L", "RGB", "RGBA") or (to_rgb and image.mode != "RGB"):
        image = image.convert("RGB")
    return np.array(image)


def _mode_in_file(image: Image.Image) -> str:
    """How the file of an image has the values, as long as Pillow has not loaded them and made 8 bits of them."""
    return "".join(str(tile[3]) for tile in getattr(image, "tile", ())[:1])


def _values(image: np.ndarray | Tensor, as_given: bool) -> Tensor:
    """The values as uint8 or float32; in [0, 255], unless they stay as they are."""
    kind = str(image.dtype).removeprefix("torch.")
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "buif":
            raise ValueError(f"Images must hold numbers, got an array of {kind}.")
        # A copy in a type that PyTorch has, whatever the order of bytes and dimensions.
        own_type = np.uint8 if kind in ("bool", "uint8") else np.float32 if image.dtype.kind == "f" else np.int64
        image = torch.from_numpy(np.array(image, own_type, order="C"))
    if image.numel() == 0:
        raise ValueError(f"An image of shape {tuple(image.shape)} has no pixels.")
    if kind == "uint8":
        return image
    image = image.float()
    low, high = image.min().item(), image.max().item()
    if not np.isfinite([low, high]).all():
        raise ValueError("Images must not hold NaN or infinite values.")
    if as_given:
        return image
    if kind in ("uint16", "uint32", "uint64") or ("int" in kind and not 0 <= low <= high <= 255):
        raise ValueError(
            f"Images must have 8 bits per channel, got {kind} with values up to {high:g} (the lowest: {low:g}). Scale "
            "them first, e.g. `(image / 256).astype(numpy.uint8)` for 16 bits."
        )
    if "int" in kind:
        return image.to(torch.uint8)
    if not 0 <= low <= high <= 255:
        raise ValueError(
            f"Images of floats must have values in [0, 1] or [0, 255], got values from {low:g} to {high:g}. Pass "
            "images before normalization, or `do_rescale=False` to take the values as they are."
        )
    return image * 255 if high <= 1 else image


def _channels_first(image: Tensor, channels: tuple[int, ...], data_format: str | ChannelDimension | None) -> Tensor:
    if image.ndim == 2:
        return image[None]
    if image.ndim != 3:
        raise ValueError(f"An image must have the shape (height, width) with or without channels, got {image.shape}.")
    if data_format is None:
        first, last = image.shape[0] in channels, image.shape[2] in channels
        if first == last:
            raise ValueError(
                f"Of an image of shape {tuple(image.shape)} it isn't clear which dimension is that of "
                f'{" or ".join(map(str, channels))} channels: pass `input_data_format` ("channels_first" or '
                '"channels_last").'
            )
        data_format = ChannelDimension.FIRST if first else ChannelDimension.LAST
    return image if ChannelDimension(data_format) == ChannelDimension.FIRST else image.permute(2, 0, 1)


def _in_rgb(image: Tensor, as_given: bool) -> Tensor:
    if len(image) == 1:
        return image.expand(3, -1, -1)
    if len(image) != 4:
        return image
    white = 1 if as_given and image.is_floating_point() else 255
    if image.min() < 0 or image.max() > white:
        raise ValueError(
            f"The transparency of an RGBA image must have values in [0, {white}], got {image.max().item():g}."
        )
    opacity = image[3:] / white
    mixed = image[:3] * opacity + white * (1 - opacity)
    return mixed if image.is_floating_point() else mixed.round().to(image.dtype)


def _normalized(image: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The image times the factor, without its mean, divided by its standard deviation, in float32."""
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1
    if not settings["do_normalize"]:
        return image.float() if factor == 1 else image * factor
    # As torchvision's backend of transformers does it.
    mean, std = (
        torch.tensor(settings[name], device=image.device).view(-1, 1, 1) * (1 / factor)
        for name in ("image_mean", "image_std")
    )
    return (image.float() - mean).div_(std)


def _read_maps(segmentation_maps: ImageInput, images: list[Tensor]) -> list[Tensor]:
    maps = make_flat_list_of_images(segmentation_maps, expected_ndims=2)
    if len(maps) != len(images):
        raise ValueError(f"Got {len(maps)} segmentation maps for {len(images)} images: pass one for each.")
    return [_read_map(*each) for each in zip(maps, images, strict=True)]


def _read_map(label_map: Any, image: Tensor) -> Tensor:
    if isinstance(label_map, Image.Image):
        if _mode_in_file(label_map) in ("L;2", "L;4"):
            raise ValueError(
                "Pillow stretches the values of a segmentation map in gray of 2 or 4 bits: write it with 8 bits."
            )
        label_map = ImageOps.exif_transpose(label_map)
    labels = np.array(label_map.cpu() if isinstance(label_map, Tensor) else label_map)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ValueError(
            f"A segmentation map must be a (height, width) map of integer labels, got the shape {labels.shape} and "
            f"dtype {labels.dtype}."
        )
    size = tuple(image.shape[-2:])
    if labels.shape != size:
        raise ValueError(f"A segmentation map of size {labels.shape} does not fit its upright image of size {size}.")
    return torch.from_numpy(labels.astype(np.int64)).to(image.device)


def _layout(
    sizes: list[tuple[int, int]], settings: Mapping[str, Any]
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Sizes of images after resizing, and the size to which a batch of them is padded."""
    if settings["do_resize"]:
        sizes = [_resized_size(size, settings["size"]) for size in sizes]
    divisor = settings["size_divisor"] if settings["do_pad"] else 1
    height, width = (-(-max(lengths) // divisor) * divisor for lengths in zip(*sizes, strict=True))
    return sizes, (height, width)


def _resized_size(size: tuple[int, int], target: SizeDict) -> tuple[int, int]:
    if target.height and target.width and min(target.height, target.width) > 0:
        return target.height, target.width
    if (target.shortest_edge or 0) < 1:
        raise ValueError(
            'A `size` must have the keys "shortest_edge" (and perhaps "longest_edge"), or "height" and "width", got '
            f"{dict(target)}."
        )
    scale = target.shortest_edge / min(size)
    if target.longest_edge:
        scale = min(scale, target.longest_edge / max(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _resized_map(label_map: Tensor, size: tuple[int, int]) -> Tensor:
    # The nearest pixel to the center of each new one, in whole numbers.
    rows, columns = (
        (2 * torch.arange(new, device=label_map.device) + 1) * old // (2 * new)
        for new, old in zip(size, label_map.shape, strict=True)
    )
    return label_map[rows[:, None], columns]


def _reduced_labels(label_map: Tensor, ignore_index: int) -> Tensor:
    ignored = (label_map == 0) | (label_map == ignore_index)
    return torch.where(ignored, ignore_index, label_map - 1)


def _mask_size(input_size: tuple[int, int]) -> tuple[int, int]:
    return tuple(-(-length // MASK_STRIDE) for length in input_size)


def _padded(image: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """The image or map with the value at the right and at the bottom."""
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]), value=value)


__all__ = ["MTAClipImageProcessing", "MTAClipImageProcessorKwargs"]
