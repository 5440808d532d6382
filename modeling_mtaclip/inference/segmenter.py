# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Images in, label maps at their own size out: the one implementation of inference, used by evaluation, by the command
line and from Python."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.image_utils import ImageInput

from ..data.image_files import open_image
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from ..postprocessing_mtaclip import QueryScores, resized_scores, row_bands
from .options import InferenceOptions


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
    image: ImageInput | os.PathLike, image_processor: MTAClipImageProcessor, scales: Sequence[float] = (1.0,)
) -> PreparedImage:
    """Prepares an image as the image processor does, but without padding, at each scale. Loader processes do this.

    Args:
        image (`ImageInput` or `os.PathLike`): one image of a kind that the processor takes, or the path of one. Files
            and PIL images are turned upright as their EXIF data say.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        scales (`Sequence[float]`): multiples of the size that the processor gives the image.

    Raises:
        ValueError: images that can't be read or that the processor refuses.
    """
    if isinstance(image, str | os.PathLike | Image.Image):
        image = open_image(image)
        size = (image.height, image.width)
    else:
        as_it_is = image_processor(image, do_resize=False, do_pad=False, return_tensors="pt").pixel_values
        size = tuple(as_it_is.shape[-2:])
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


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side of an image.

    Args:
        length (`int`): of the side.
        window (`int`): length of a window; the only one starts at 0 if it is not smaller than the side.
        stride (`int`): from one window to the next, except to the last one, which ends at the border.
    """
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


class SlidingScores:
    """The scores of one image that is predicted by overlapping windows, in the memory of two rows of windows.

    They are made for some rows at a time, from the first row to the last: windows are predicted when their rows are
    asked for, and only their logits are kept, until the rows are passed. The score of a pixel is the mean of what its
    windows say, as in mmsegmentation's `slide_inference`. Whole-image prediction is the case of a single window.

    Args:
        image (`Tensor` of shape `(3, h, w)`): the prepared image, without padding.
        predict (`Callable[[Sequence[Tensor]], list[QueryScores]]`): gives the scores of windows `(3, h', w')`.
        window, stride (`tuple[int, int]`): height and width.
        mirrored (`bool`): whether the windows show the mirrored image; the scores are mirrored back.
        depth (`int`): the greater of the number of classes and of queries.
        device (`torch.device`): of the scores.

    Attributes:
        size, floats_per_row, device: as those of [`QueryScores`].
    """

    def __init__(
        self,
        image: Tensor,
        predict: Callable[[Sequence[Tensor]], list[QueryScores]],
        window: tuple[int, int],
        stride: tuple[int, int],
        mirrored: bool,
        depth: int,
        device: torch.device,
    ) -> None:
        self.image, self.predict, self.mirrored, self.device = image, predict, mirrored, device
        self.size = tuple(image.shape[-2:])
        self.window = tuple(min(lengths) for lengths in zip(window, self.size, strict=True))
        self.floats_per_row = depth * self.size[1]
        tops, self.lefts = (window_starts(*lengths) for lengths in zip(self.size, self.window, stride, strict=True))
        self.waiting_tops = tops
        self.predicted: dict[int, list[QueryScores]] = {}

    def next_windows(self) -> list[Tensor]:
        """The next row of windows to predict, from left to right."""
        top = self.waiting_tops[0]
        rows = self.image[:, top : top + self.window[0]]
        rows = rows.flip(-1) if self.mirrored else rows
        return [rows[..., left : left + self.window[1]] for left in self.lefts]

    def add(self, scores: list[QueryScores]) -> None:
        """Keeps the scores of the windows that `next_windows` gave."""
        self.predicted[self.waiting_tops.pop(0)] = scores

    def read(self, start: int, stop: int) -> Tensor:
        """Scores of the rows `start` … `stop - 1`, `(K, stop - start, width)`, float32.

        `start` must not be smaller than in an earlier call.
        """
        while self.waiting_tops and self.waiting_tops[0] < stop:
            self.add(self.predict(self.next_windows()))
        self.predicted = {top: row for top, row in self.predicted.items() if top + self.window[0] > start}
        if len(self.predicted) == len(self.lefts) == 1:
            ((top, (scores,)),) = self.predicted.items()
            means = scores.read(start - top, stop - top)
        else:
            means = self._means(start, stop)
        return means.flip(-1) if self.mirrored else means

    def _means(self, start: int, stop: int) -> Tensor:
        sums, counts = None, torch.zeros(stop - start, self.size[1])
        for top, row in self.predicted.items():
            first, last = max(start, top), min(stop, top + self.window[0])
            if first >= last:
                continue
            for left, scores in zip(self.lefts, row, strict=True):
                part = scores.read(first - top, last - top)
                if sums is None:
                    sums = part.new_zeros(len(part), stop - start, self.size[1])
                rows, columns = slice(first - start, last - start), slice(left, left + self.window[1])
                sums[:, rows, columns] += part
                counts[rows, columns] += 1
        return sums.div_(counts.to(self.device, non_blocking=True))


class Segmenter:
    """Predicts images of any sizes, each as if it were alone: results don't depend on what else is in a batch.

    The scores of all classes never exist at once: they are made in bands of rows, and only the best class is kept.

    With several scales or mirrored images, the result is the mean over all of them of the softmax of the scores at the
    result's size, as in mmsegmentation.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): on any device; it is put into evaluation mode. What runs is a copy,
            `model.for_inference()`, unless `forward` is given.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        options ([`InferenceOptions`], *optional*): whole images without augmentation by default.
        forward (`Callable[[Tensor], Any]`, *optional*): runs the model on `pixel_values` `(B, 3, H, W)` in another way
            than by calling it, for example under autocast.

    Example:

    ```python
    >>> segmenter = Segmenter(model, image_processor, InferenceOptions(mode="slide", batch_size=4))
    >>> label_maps = segmenter([Image.open("a.jpg"), Image.open("b.jpg")])
    ```
    """

    def __init__(
        self,
        model: MTAClipForSemanticSegmentation,
        image_processor: MTAClipImageProcessor,
        options: InferenceOptions | None = None,
        forward: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.model = model.eval()
        self.image_processor = image_processor
        self.options = options or InferenceOptions()
        self.forward = forward or model.for_inference()
        self.divisor = image_processor.size_divisor if image_processor.do_pad else 1

    def __call__(
        self, images: Sequence[ImageInput], target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Predicts images.

        Args:
            images (`Sequence[ImageInput]`): of any sizes; paths too.
            target_sizes (`Sequence[tuple[int, int]]`, *optional*): height and width of each result; the images' own by
                default.

        Returns:
            `list[Tensor]`: for each image a map of class ids `(height, width)`, int64, on the model's device.

        Raises:
            ValueError: images that can't be read or that the processor refuses, not one target size per image, or
                one that can't be the image's (its height and width may be exchanged).
        """
        return self.predict([self.prepare(image) for image in images], target_sizes)

    def prepare(self, image: ImageInput | os.PathLike) -> PreparedImage:
        """Prepares one image at all scales, for [`~Segmenter.predict`]."""
        return prepare_image(image, self.image_processor, self.options.scales)

    @torch.no_grad()
    def predict(
        self, images: Sequence[PreparedImage], target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """As calling the segmenter, for images that [`~Segmenter.prepare`] made at the options' scales."""
        target_sizes = self._checked_sizes(images, target_sizes)
        views = [self._views(image) for image in images]
        self._predict_first_windows([view for image_views in views for view in image_views])
        return [_best_classes(*each) for each in zip(views, target_sizes, strict=True)]

    @torch.no_grad()
    def scores(self, image: ImageInput, target_size: tuple[int, int] | None = None) -> Tensor:
        """The scores of all classes at each pixel of one image, `(K, height, width)`, float32.

        Memory grows with the number of classes times the size. With test-time augmentation these are means of
        probabilities, else sums over the queries of class probability times mask probability.
        """
        prepared = self.prepare(image)
        (size,) = self._checked_sizes([prepared], target_size and [target_size])
        return torch.cat([band for _, band in _mean_scores(self._views(prepared), size)], dim=1)

    def _checked_sizes(
        self, images: Sequence[PreparedImage], target_sizes: Sequence[tuple[int, int]] | None
    ) -> list[tuple[int, int]]:
        if target_sizes is None:
            return [image.size for image in images]
        if len(target_sizes) != len(images):
            raise ValueError(
                f"`target_sizes` must name one size per image: got {len(target_sizes)} for {len(images)}."
            )
        for image, size in zip(images, target_sizes, strict=True):
            _check_aspect(image.size, size)
        return [tuple(size) for size in target_sizes]

    def _views(self, image: PreparedImage) -> list[SlidingScores]:
        """The image at each scale, as it is and mirrored."""
        config, options = self.model.config, self.options
        depth = max(config.num_labels, config.num_queries + bool(config.class_mask_share) * config.num_labels)
        views = []
        for pixel_values in image.pixel_values:
            size = tuple(pixel_values.shape[-2:])
            window, stride = (size, size) if options.mode == "whole" else (options.window, options.stride)
            for mirrored in (False, True) if options.flip else (False,):
                views.append(
                    SlidingScores(
                        pixel_values, self._predict_windows, window, stride, mirrored, depth, self.model.device
                    )
                )
        return views

    def _predict_first_windows(self, views: Sequence[SlidingScores]) -> None:
        """Predicts the first row of windows of all views together, so that windows of several images share batches."""
        windows = [view.next_windows() for view in views]
        scores = iter(self._predict_windows([window for row in windows for window in row]))
        for view, row in zip(views, windows, strict=True):
            view.add(list(islice(scores, len(row))))

    def _predict_windows(self, windows: Sequence[Tensor]) -> list[QueryScores]:
        """Scores of windows `(3, h, w)` of any sizes; those of one size share forward passes."""
        results: dict[int, QueryScores] = {}
        by_shape = sorted(range(len(windows)), key=lambda index: windows[index].shape)
        for shape, group in groupby(by_shape, key=lambda index: windows[index].shape):
            for indices in _batches(group, self.options.batch_size):
                pixel_values = torch.stack([windows[index] for index in indices]).to(self.model.device)
                results |= zip(indices, self._forward(pixel_values, tuple(shape[-2:])), strict=True)
        return [results[index] for index in range(len(windows))]

    def _forward(self, pixel_values: Tensor, size: tuple[int, int]) -> list[QueryScores]:
        padded = tuple(-(-length // self.divisor) * self.divisor for length in size)
        pixel_values = F.pad(pixel_values, (0, padded[1] - size[1], 0, padded[0] - size[0]))
        outputs = self.forward(pixel_values)
        return [
            QueryScores(class_logits, mask_logits, padded, size)
            for class_logits, mask_logits in zip(
                outputs.class_queries_logits, outputs.masks_queries_logits, strict=True
            )
        ]


def _best_classes(views: Sequence[SlidingScores], target_size: tuple[int, int]) -> Tensor:
    labels = torch.empty(target_size, dtype=torch.long, device=views[0].device)
    for rows, band in _mean_scores(views, target_size):
        labels[rows] = band.max(dim=0).indices
    return labels


def _mean_scores(views: Sequence[SlidingScores], target_size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Bands of rows of the result and their scores, `(K, rows, width)`."""
    for start, stop in row_bands(views, target_size):
        bands = (resized_scores(view, target_size, start, stop) for view in views)
        if len(views) == 1:
            yield slice(start, stop), next(bands)
        else:
            yield slice(start, stop), sum(band.softmax(dim=0) for band in bands) / len(views)


def _check_aspect(size: tuple[int, int], target_size: tuple[int, int]) -> None:
    """Refuses a size to which no scale brings the image, up to the rounding of either side."""
    least = max((target - 1) / length for target, length in zip(target_size, size, strict=True))
    most = min((target + 1) / length for target, length in zip(target_size, size, strict=True))
    if least > most:
        raise ValueError(
            f"The target size {tuple(target_size)} would stretch an image whose upright height and width are {size}. "
            "Give (height, width) of the upright image, or multiples of it."
        )


def _batches(indices: Iterator[int], batch_size: int) -> Iterator[list[int]]:
    while batch := list(islice(indices, batch_size)):
        yield batch


@dataclass
class PhraseMap:
    """The answer of [`segment_phrases`].

    Attributes:
        phrases (`list[str]`): what was asked for.
        labels (`Tensor` of shape `(height, width)`): index of the best phrase at each pixel, int64.
        scores (`Tensor` of shape `(phrases, height, width)`): of each phrase at each pixel, float32: the sum over the
            masks of the phrase's probability times the mask's.
    """

    phrases: list[str]
    labels: Tensor
    scores: Tensor


def segment_phrases(
    image: ImageInput,
    phrases: Sequence[str],
    model: MTAClipForSemanticSegmentation,
    image_processor: MTAClipImageProcessor,
    tokenizer: Any,
    options: InferenceOptions | None = None,
) -> PhraseMap:
    """Scores phrases against the masks that a model predicts, at each pixel of an image.

    What this can and can't do is said at [`MTAClipForSemanticSegmentation.segment_phrases`]: it finds other words for
    what was trained, as far as the text encoder knows them, but it does not find objects that were never trained.

    Args:
        image (`ImageInput`): one image of any size.
        phrases (`Sequence[str]`): they compete with each other, and each pixel gets one.
        model ([`MTAClipForSemanticSegmentation`]): with its text encoder.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        tokenizer (`PreTrainedTokenizerBase` or `str`): the text encoder's, or a folder that has it.
        options ([`InferenceOptions`], *optional*): whole images without augmentation by default.

    Raises:
        ValueError: no phrases, phrases that the text encoder can't read, or a model without text encoder.
    """
    with torch.no_grad():
        texts = model.encode_phrases(phrases, tokenizer), model.encode_class_names()
    forward = partial(model.segment_phrases, texts[0], text_embeddings=texts[1])
    scores = Segmenter(model, image_processor, options, forward=forward).scores(image)
    return PhraseMap(list(phrases), scores.argmax(dim=0), scores)


__all__ = ["PhraseMap", "PreparedImage", "Segmenter", "prepare_image", "segment_phrases"]
