# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation reads, image by image, and the scores it makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, distributed

from ..image_processing_mtaclip import MTAClipImageProcessor
from ..inference import PreparedImage, prepare_image
from ..metrics import MeanIoU, PerImageScores, iou_figures
from .findings import BestAndWorst, ContextUsage, make_thumbnail


@dataclass
class EvaluationSample:
    """One image, ready for the model, and its annotation as it is in the data set.

    Attributes:
        image ([`PreparedImage`]): prepared by the image processor, by itself.
        annotation (`Tensor` of shape `(height, width)`): int64, at its own size.
        name (`str`): of the image, empty if it has none.
        thumbnail (`PIL.Image.Image`, *optional*): the image, small enough to be kept.
    """

    image: PreparedImage
    annotation: Tensor
    name: str = ""
    thumbnail: Image.Image | None = None


class EvaluationCollator:
    """Prepares evaluation examples, each by itself, so that no image is padded to the size of another.

    Args:
        image_processor ([`MTAClipImageProcessor`]): the model's.
        scales (`Sequence[float]`): at which the images are predicted.
    """

    def __init__(self, image_processor: MTAClipImageProcessor, scales: Sequence[float] = (1.0,)) -> None:
        self.image_processor, self.scales = image_processor, scales

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> list[EvaluationSample]:
        return [self._prepare(example) for example in examples]

    def _prepare(self, example: Mapping[str, Any]) -> EvaluationSample:
        image = prepare_image(example["image"], self.image_processor, self.scales)
        annotation = torch.from_numpy(np.array(example["annotation"], dtype=np.int64))
        return EvaluationSample(image, annotation, example.get("name", ""), make_thumbnail(example["image"]))


class SegmentationScores:
    """Figures of all images that all processes have predicted.

    Args:
        class_names (`Sequence[str]`): in the order of the label ids.
        ignore_index (`int`): label of pixels that don't count.

    Attributes:
        matrix (`Tensor` of shape `(K + 1, K + 1)`, *optional*): after `finish`, the confusion matrix.
        per_image ([`PerImageScores`]): of each image by name.
        extremes ([`BestAndWorst`]): the best and worst images.
        contexts ([`ContextUsage`]): which prompt contexts are used.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int) -> None:
        self.class_names = list(class_names)
        self.metric = MeanIoU(num_labels=len(self.class_names), ignore_index=ignore_index)
        self.matrix: Tensor | None = None
        self.per_image = PerImageScores(len(self.class_names), ignore_index)
        self.extremes = BestAndWorst()
        self.contexts = ContextUsage(len(self.class_names))
        self._rank = _rank()

    def add(
        self, prediction: Tensor, annotation: Tensor, name: str = "", thumbnail: Image.Image | None = None
    ) -> None:
        """Counts one image: two int64 label maps of the same size, its name and a small version if there is one."""
        annotation = annotation.to(prediction.device)
        self.metric.add(prediction=prediction, reference=annotation)
        score = self.per_image.add(prediction=prediction, reference=annotation, name=self._unique(name))
        if thumbnail is not None:
            self.extremes.add(score, thumbnail, annotation, prediction)

    def _unique(self, name: str) -> str:
        """The name, with a number where it is empty or taken."""
        taken = not name or name in self.per_image
        return f"{name or 'image'} ({self._rank}.{len(self.per_image) + 1})" if taken else name

    def finish(self) -> None:
        """Adds up the counts of all processes, which must all call this."""
        self.metric.synchronize()
        self.matrix = self.metric.confusion_matrix()
        self.per_image.synchronize()
        self.extremes.finish(self.per_image.scores())
        self.contexts.finish()

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


def _rank() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _number(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)


__all__ = ["EvaluationCollator", "EvaluationSample", "SegmentationScores", "constant_prediction"]
