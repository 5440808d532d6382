# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Images in, label maps at their own size out: the one implementation of inference, used by evaluation, by the command
line and from Python."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
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
    """One image, ready for [`Segmenter`]: height and width of the upright image as it was given, and its pixels at
    each scale, float32 of shapes `(3, h, w)`, without padding."""

    size: tuple[int, int]
    pixel_values: list[Tensor]


def prepare_image(
    image: ImageInput | os.PathLike, image_processor: MTAClipImageProcessor, scales: Sequence[float] = (1.0,)
) -> PreparedImage:
    """Prepares an image, at each scale, as the image processor does but without padding. Loader processes do this.

    Args:
        image (`ImageInput` or `os.PathLike`): one image, or its path. Files and PIL images are turned upright.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        scales (`Sequence[float]`): multiples of the size that the processor gives the image.

    Raises:
        ValueError: images that can't be read or that the processor refuses.
    """
    if isinstance(image, str | os.PathLike | Image.Image):
        image = open_image(image)
        size = (image.height, image.width)
    else:
        # Only the processor knows which dimensions of an array are height and width.
        whole = image_processor(image, do_resize=False, do_pad=False, return_tensors="pt").pixel_values[0]
        size = tuple(whole.shape[-2:])
    options = [_size_options(image_processor, size, scale) for scale in scales]
    prepared = [image_processor(image, do_pad=False, return_tensors="pt", **each).pixel_values[0] for each in options]
    return PreparedImage(size, prepared)


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
    """Where windows begin along one side of an image; the last one ends at the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


class View:
    """One image at one scale, as it is or mirrored, and its scores: means of what overlapping windows say.

    Scores are read from the first row to the last. Windows are predicted when their rows are reached, and dropped when
    the rows are passed: two rows of windows are in memory. A whole image is one window.

    Has what bands of scores are made from, as [`QueryScores`] has it: `size`, `floats_per_row`, `device` and `read`.
    The last three hold once the first row of windows is predicted.

    Args:
        image (`Tensor` of shape `(3, h, w)`): the prepared image, without padding.
        options ([`InferenceOptions`]): mode, window and stride.
        mirrored (`bool`): whether the windows show the mirrored image; the scores are mirrored back.
        predict (`Callable`): gives the scores of windows `(3, h', w')`.
    """

    def __init__(
        self,
        image: Tensor,
        options: InferenceOptions,
        mirrored: bool,
        predict: Callable[[Sequence[Tensor]], list[QueryScores]],
    ) -> None:
        self.image, self.mirrored, self.predict = image.flip(-1) if mirrored else image, mirrored, predict
        self.size = tuple(image.shape[-2:])
        window, stride = (self.size, self.size) if options.mode == "whole" else (options.window, options.stride)
        self.height, self.width = map(min, window, self.size)
        # Where rows of windows begin that are not predicted yet, and the predicted ones by where they begin.
        self.waiting_tops, self.lefts = map(window_starts, self.size, window, stride)
        self.rows: dict[int, list[QueryScores]] = {}

    def next_windows(self) -> list[Tensor]:
        """The next row of windows to predict, from left to right."""
        top = self.waiting_tops[0]
        return [self.image[:, top : top + self.height, left : left + self.width] for left in self.lefts]

    def add(self, scores: list[QueryScores]) -> None:
        """Keeps the scores of the windows that `next_windows` gave."""
        self.rows[self.waiting_tops.pop(0)] = scores
        self.device = scores[0].device
        self.floats_per_row = max(scores[0].class_probabilities.shape) * self.size[1]

    def read(self, start: int, stop: int) -> Tensor:
        """Scores of the rows `start` … `stop - 1`, `(K, stop - start, width)`, float32; `start` must not decrease."""
        while self.waiting_tops and self.waiting_tops[0] < stop:
            self.add(self.predict(self.next_windows()))
        self.rows = {top: row for top, row in self.rows.items() if top + self.height > start}
        scores = self._means(start, stop)
        return scores.flip(-1) if self.mirrored else scores

    def _means(self, start: int, stop: int) -> Tensor:
        sums, counts = None, torch.zeros(stop - start, self.size[1])
        for top, row in self.rows.items():
            first, last = max(start, top), min(stop, top + self.height)
            for left, window in zip(self.lefts, row, strict=True) if first < last else ():
                scores = window.read(first - top, last - top)
                if len(self.rows) == len(row) == 1:
                    return scores
                if sums is None:
                    sums = scores.new_zeros(len(scores), *counts.shape)
                rows, columns = slice(first - start, last - start), slice(left, left + self.width)
                sums[:, rows, columns] += scores
                counts[rows, columns] += 1
        return sums.div_(counts.to(sums.device, non_blocking=True))


@dataclass(frozen=True)
class ImageMasks:
    """The masks of one image, seen as a whole; on the CPU, float32.

    Attributes:
        size (`tuple[int, int]`): height and width of the image.
        probabilities (`Tensor` of shape `(Q, K + 1)`): of each mask's classes, by the class head; last "no object".
        logits (`Tensor` of shape `(Q, h, w)`): of the masks, padding included.
        covered (`tuple[float, float]`): the share of their height and width that is no padding.
        similarity (`Tensor` of shape `(C, Q, K + 1)`, *optional*): cosine of each mask with the text of each class, in
            every prompt context; absent without text branch.
    """

    size: tuple[int, int]
    probabilities: Tensor
    logits: Tensor
    covered: tuple[float, float]
    similarity: Tensor | None

    def mask(self, index: int) -> Tensor:
        """The probability of each pixel of the image to be part of a mask, `(height, width)`."""
        return self._read(self.logits[index : index + 1], *map(range, self.size))[0]

    def mask_at(self, x: int, y: int) -> int:
        """The index of the mask that says most about a pixel: the product of the pixel's probability to be part of it
        and the probability of its best class is the greatest. A pixel outside the image is a `ValueError`."""
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"The pixel ({x}, {y}) lies outside the image of {width} x {height} pixels.")
        inside = self._read(self.logits, [y], [x])[:, 0, 0]
        return int((inside * self.probabilities[:, :-1].amax(dim=1)).argmax())

    def _read(self, logits: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Mask probabilities at some rows and columns of the image, bilinear as for predictions."""
        # From -1 to 1 along each side of the logits, which padding may make longer than the image.
        places = [
            2 * share * (torch.tensor(positions) + 0.5) / length - 1
            for positions, length, share in zip((rows, columns), self.size, self.covered, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*places, indexing="ij")[::-1], dim=-1)
        return F.grid_sample(logits[None], grid[None], padding_mode="border", align_corners=False)[0].sigmoid()


class Segmenter:
    """Predicts images of any sizes, each as if it were alone: results don't depend on what else is in a batch.

    The scores of all classes never exist at once: they are made in bands of rows, and only the best class is kept.
    With several scales or mirrored images, scores are means of the softmax of all of them at the result's size, as in
    mmsegmentation.

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
        self.model = model.eval() if forward else model.eval().for_inference()
        self.forward = forward or self.model
        self.image_processor = image_processor
        self.options = options or InferenceOptions()
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
        if isinstance(images, str | os.PathLike | Image.Image):
            raise ValueError(f"`images` must be a list of images, got one: {images!r}. Put it into a list.")
        return self.predict([self.prepare(image) for image in images], target_sizes)

    def prepare(self, image: ImageInput | os.PathLike) -> PreparedImage:
        """Prepares one image at all scales, for [`~Segmenter.predict`]."""
        return prepare_image(image, self.image_processor, self.options.scales)

    @torch.no_grad()
    def predict(
        self, images: Sequence[PreparedImage], target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """As calling the segmenter, for images that [`~Segmenter.prepare`] made at the options' scales."""
        sizes = _checked_sizes(images, target_sizes)
        return [
            torch.cat([_mean(bands, len(views)).max(dim=0).indices for bands in _bands(views, size)])
            for views, size in zip(self._views(images), sizes, strict=True)
        ]

    @torch.no_grad()
    def scores(self, image: ImageInput, target_size: tuple[int, int] | None = None) -> Tensor:
        """The scores of all classes at each pixel of one image, `(K, height, width)`, float32.

        Memory grows with the number of classes times the size. With test-time augmentation these are means of
        probabilities, else sums over the queries of class probability times mask probability.
        """
        prepared = [self.prepare(image)]
        (size,) = _checked_sizes(prepared, target_size and [target_size])
        (views,) = self._views(prepared)
        return torch.cat([_mean(bands, len(views)) for bands in _bands(views, size)], dim=1)

    @torch.no_grad()
    def predict_with_confidence(self, image: PreparedImage) -> tuple[Tensor, Tensor]:
        """As [`~Segmenter.predict`] for one image, and how sure the model is of each pixel.

        Returns:
            `tuple[Tensor, Tensor]`: class ids `(height, width)`, int64, and confidences of the same shape, float32 in
            0 … 1: the score of the pixel's class, at most 1, as the mean over scales and mirrored images. It is low
            where no mask, or none with a clear class, covers the pixel.
        """
        (views,) = self._views([image])
        labels, confidences = [], []
        for bands in map(list, _bands(views, image.size)):
            labels.append(_mean(bands, len(bands)).max(dim=0).indices)
            sure = sum(band.gather(0, labels[-1][None])[0].clamp(max=1) for band in bands)
            confidences.append(sure / len(bands))
        return torch.cat(labels), torch.cat(confidences)

    @torch.no_grad()
    def masks(self, image: ImageInput | os.PathLike) -> ImageMasks:
        """The masks that the model finds in one image, which it sees as a whole, and the texts they are close to."""
        prepared = prepare_image(image, self.image_processor)
        outputs, padded = self._outputs(prepared.pixel_values[0][None].to(self.model.device))
        number = self.model.config.num_queries
        similarity = outputs.mask_text_similarity
        return ImageMasks(
            size=prepared.size,
            probabilities=outputs.class_queries_logits[0, :number].float().softmax(dim=-1).cpu(),
            logits=outputs.masks_queries_logits[0, :number].float().cpu(),
            covered=tuple(a / b for a, b in zip(prepared.pixel_values[0].shape[-2:], padded, strict=True)),
            similarity=None if similarity is None else similarity[0].float().cpu(),
        )

    def _views(self, images: Sequence[PreparedImage]) -> list[list[View]]:
        """Each image at all scales, as it is and mirrored. The first rows of windows of all are predicted together, so
        that several images share forward passes."""
        flips = (False, True) if self.options.flip else (False,)
        views = [
            [
                View(pixel_values, self.options, mirrored, self._predict_windows)
                for pixel_values in image.pixel_values
                for mirrored in flips
            ]
            for image in images
        ]
        first_rows = [(view, view.next_windows()) for view in chain.from_iterable(views)]
        scores = iter(self._predict_windows([window for _, row in first_rows for window in row]))
        for view, row in first_rows:
            view.add(list(islice(scores, len(row))))
        return views

    def _predict_windows(self, windows: Sequence[Tensor]) -> list[QueryScores]:
        """Scores of windows `(3, h, w)` of any sizes; those of one size share forward passes."""
        by_size = defaultdict(list)
        for index, window in enumerate(windows):
            by_size[tuple(window.shape[-2:])].append(index)
        results: dict[int, QueryScores] = {}
        for size, indices in by_size.items():
            for start in range(0, len(indices), self.options.batch_size):
                batch = indices[start : start + self.options.batch_size]
                pixel_values = torch.stack([windows[index] for index in batch]).to(self.model.device)
                results |= zip(batch, self._forward(pixel_values, size), strict=True)
        return [results[index] for index in range(len(windows))]

    def _forward(self, pixel_values: Tensor, size: tuple[int, int]) -> list[QueryScores]:
        outputs, padded = self._outputs(pixel_values)
        logits = zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        return [QueryScores(*each, padded, size) for each in logits]

    def _outputs(self, pixel_values: Tensor) -> tuple[Any, tuple[int, int]]:
        """What the model returns for images `(B, 3, h, w)`, and the size to which they are padded for it."""
        size = pixel_values.shape[-2:]
        padded = tuple(-(-length // self.divisor) * self.divisor for length in size)
        return self.forward(F.pad(pixel_values, (0, padded[1] - size[1], 0, padded[0] - size[0]))), padded


def _bands(views: Sequence[View], target_size: tuple[int, int]) -> Iterator[Iterator[Tensor]]:
    """For bands of rows of the result, the scores `(K, rows, width)` that each view gives to them."""
    for start, stop in row_bands(views, target_size):
        yield (resized_scores(view, target_size, start, stop) for view in views)


def _mean(bands: Iterable[Tensor], number: int) -> Tensor:
    return next(iter(bands)) if number == 1 else sum(band.softmax(dim=0) for band in bands) / number


def _checked_sizes(
    images: Sequence[PreparedImage], target_sizes: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """The sizes of the results. To each, some scale brings its image, up to the rounding of either side."""
    if target_sizes is None:
        return [image.size for image in images]
    if len(target_sizes) != len(images):
        raise ValueError(f"`target_sizes` must name one size per image: got {len(target_sizes)} for {len(images)}.")
    for image, target_size in zip(images, target_sizes, strict=True):
        sides = list(zip(target_size, image.size, strict=True))
        if max((target - 1) / side for target, side in sides) > min((target + 1) / side for target, side in sides):
            raise ValueError(
                f"The target size {tuple(target_size)} would stretch an image whose upright height and width are "
                f"{image.size}. Give (height, width) of the upright image, or multiples of it."
            )
    return [tuple(size) for size in target_sizes]


@dataclass
class PhraseMap:
    """The answer of [`segment_phrases`].

    Attributes:
        phrases (`list[str]`): what was asked for.
        labels (`Tensor` of shape `(height, width)`): index of the best phrase at each pixel, int64.
        scores (`Tensor` of shape `(phrases, height, width)`): float32: the sum over the masks of the phrase's
            probability times the mask's.
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

    [`MTAClipForSemanticSegmentation.segment_phrases`] says what this can and can't do: it finds other words for what
    was trained, as far as the text encoder knows them, but no objects that were never trained.

    Args:
        image (`ImageInput`): one image of any size; a path too.
        phrases (`Sequence[str]`): they compete with each other, and each pixel gets one.
        model ([`MTAClipForSemanticSegmentation`]): with its text encoder.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        tokenizer (`PreTrainedTokenizerBase` or `str`): the text encoder's, or a folder that has it.
        options ([`InferenceOptions`], *optional*): whole images without augmentation by default.

    Raises:
        ValueError: no phrases, phrases that the text encoder can't read, or a model without text encoder.
    """
    with torch.no_grad():
        phrase_embeddings, text_embeddings = model.encode_phrases(phrases, tokenizer), model.encode_class_names()
    forward = partial(model.segment_phrases, phrase_embeddings, text_embeddings=text_embeddings)
    scores = Segmenter(model, image_processor, options, forward=forward).scores(image)
    return PhraseMap(list(phrases), scores.argmax(dim=0), scores)


__all__ = ["ImageMasks", "PhraseMap", "PreparedImage", "Segmenter", "prepare_image", "segment_phrases"]
