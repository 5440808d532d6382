# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation reads, image by image, and the scores it makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..image_processing_mtaclip import MTAClipImageProcessor
from ..metrics import MeanIoU, iou_figures


@dataclass
class EvaluationSample:
    """One image, ready for the model, and its annotation as it is in the data set.

    Attributes:
        pixel_values (`Tensor` of shape `(3, H, W)`): prepared by the image processor, by itself.
        annotation (`Tensor` of shape `(height, width)`): int64, at its own size.
    """

    pixel_values: Tensor
    annotation: Tensor


class EvaluationCollator:
    """Prepares evaluation examples, each by itself, so that no image is padded to the size of another.

    Args:
        image_processor ([`MTAClipImageProcessor`]): the model's.
    """

    def __init__(self, image_processor: MTAClipImageProcessor) -> None:
        self.image_processor = image_processor

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> list[EvaluationSample]:
        return [self._prepare(example) for example in examples]

    def _prepare(self, example: Mapping[str, Any]) -> EvaluationSample:
        pixel_values = self.image_processor(example["image"], return_tensors="pt").pixel_values[0]
        return EvaluationSample(pixel_values, torch.from_numpy(np.array(example["annotation"], dtype=np.int64)))


class SegmentationScores:
    """Figures of all images that all processes have predicted.

    Args:
        class_names (`Sequence[str]`): in the order of the label ids.
        ignore_index (`int`): label of pixels that don't count.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int) -> None:
        self.class_names = list(class_names)
        self.metric = MeanIoU(num_labels=len(self.class_names), ignore_index=ignore_index)
        self.matrix: Tensor | None = None

    def add(self, prediction: Tensor, annotation: Tensor) -> None:
        """Counts one image: two int64 label maps of the same size."""
        self.metric.add(prediction=prediction, reference=annotation.to(prediction.device))

    def finish(self) -> None:
        """Adds up the counts of all processes, which must all call this."""
        self.metric.synchronize()
        self.matrix = self.metric.confusion_matrix()

    def summary(self) -> dict[str, float]:
        """`mean_iou`, `mean_accuracy`, `overall_accuracy`, and `constant_mean_iou`: the mean IoU of an imagined model
        that gives every pixel the most frequent class."""
        figures = iou_figures(self.matrix)
        names = ("mean_iou", "mean_accuracy", "overall_accuracy")
        return {name: float(figures[name]) for name in names} | {
            "constant_mean_iou": float(iou_figures(constant_prediction(self.matrix))["mean_iou"])
        }

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """`iou` and `accuracy` of each class by name, `None` where a class does not occur."""
        figures = iou_figures(self.matrix)
        return {
            name: {"iou": _number(iou), "accuracy": _number(accuracy)}
            for name, iou, accuracy in zip(
                self.class_names, figures["per_category_iou"], figures["per_category_accuracy"], strict=True
            )
        }


def constant_prediction(matrix: Tensor) -> Tensor:
    """The confusion matrix of a model that gives every pixel the most frequent class.

    Args:
        matrix (`Tensor` of shape `(K + 1, K + 1)`): confusion matrix of any predictions; rows are annotations.
    """
    annotated = matrix.sum(dim=1)
    constant = torch.zeros_like(matrix)
    constant[:, annotated[:-1].argmax()] = annotated
    return constant


def _number(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)


__all__ = ["EvaluationCollator", "EvaluationSample", "SegmentationScores", "constant_prediction"]
