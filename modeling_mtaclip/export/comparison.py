# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""How far an exported model's predictions are from those of the model that it was made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.image_utils import ImageInput

from ..image_processing_mtaclip import MTAClipImageProcessor
from ..inference import Segmenter
from ..modeling_mtaclip import MTAClipForSemanticSegmentation


@dataclass
class Comparison:
    """Two predictions of the same images.

    Attributes:
        num_images (`int`): images compared, at their own sizes.
        equal_pixels (`float`): share of all pixels that are given the same class.
        max_score_difference (`float`): the largest difference of any class's score at any pixel; the scores of a pixel
            are sums of products of probabilities.
    """

    num_images: int
    equal_pixels: float
    max_score_difference: float


def compare_with_model(
    forward: Callable[[Tensor], Any],
    model: MTAClipForSemanticSegmentation,
    image_processor: MTAClipImageProcessor,
    images: Iterable[ImageInput],
) -> Comparison:
    """Predicts images with a model and with an exported one.

    Args:
        forward (`Callable`): the exported model, e.g. an [`OnnxModel`]: from `pixel_values` to the model's outputs.
        model ([`MTAClipForSemanticSegmentation`]): what was exported.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        images (`Iterable[ImageInput]`): at least one.

    Raises:
        ValueError: no images.
    """
    segmenters = [Segmenter(model, image_processor), Segmenter(model, image_processor, forward=forward)]
    count, equal, total, difference = 0, 0, 0, 0.0
    for image in images:
        expected, actual = (segmenter.scores(image) for segmenter in segmenters)
        same = expected.argmax(dim=0) == actual.argmax(dim=0)
        count, equal, total = count + 1, equal + int(same.sum()), total + same.numel()
        difference = max(difference, (expected - actual).abs().max().item())
    if not count:
        raise ValueError("There are no images to compare predictions on: give at least one.")
    return Comparison(count, equal / total, difference)


__all__ = ["Comparison", "compare_with_model"]
