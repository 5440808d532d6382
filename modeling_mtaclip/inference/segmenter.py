# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Images in, label maps at their own size out: the one implementation of inference, used by evaluation, by the command
line and from Python."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_utils import ImageInput

from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from ..postprocessing_mtaclip import QueryScores, resized_scores, row_bands
from .options import InferenceOptions
from .preparing import PreparedImage, prepare_image
from .sliding import SlidingScores


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
            images (`Sequence[ImageInput]`): of any sizes.
            target_sizes (`Sequence[tuple[int, int]]`, *optional*): height and width of each result; the images' own by
                default.

        Returns:
            `list[Tensor]`: for each image a map of class ids `(height, width)`, int64, on the model's device.

        Raises:
            ValueError: images that the processor refuses, or not one target size per image.
        """
        return self.predict([self.prepare(image) for image in images], target_sizes)

    def prepare(self, image: ImageInput) -> PreparedImage:
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
        return [tuple(size) for size in target_sizes]

    def _views(self, image: PreparedImage) -> list[SlidingScores]:
        """The image at each scale, as it is and mirrored."""
        config, options = self.model.config, self.options
        depth = max(config.num_labels, config.num_queries)
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


def _batches(indices: Iterator[int], batch_size: int) -> Iterator[list[int]]:
    while batch := list(islice(indices, batch_size)):
        yield batch


__all__ = ["Segmenter"]
