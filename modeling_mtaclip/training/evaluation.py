# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation reads, image by image, and the scores it makes of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..data import DATASETS
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..inference import PreparedImage, prepare_image
from ..metrics import BoundaryScores, PerImageScores, category_iou, iou_figures, json_ready, summary_figures
from ..metrics.boundary import BOUNDARY_IOU_RATIO, CITYSCAPES_BOUNDARY_IOU_RATIO
from .evaluated_images import BestAndWorstImages, ContextUsage, make_thumbnail


NUM_WORST_IMAGES = 10


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

    def pin_memory(self) -> "EvaluationSample":
        """Puts the image into memory from which a GPU copies while the host goes on; data loaders call this."""
        self.image.pixel_values = [values.pin_memory() for values in self.image.pixel_values]
        return self


@dataclass
class EvaluationCollator:
    """Prepares evaluation examples, each by itself, so that no image is padded to the size of another.

    Attributes:
        image_processor ([`MTAClipImageProcessor`]): the model's.
        scales (`Sequence[float]`): at which the images are predicted.
    """

    image_processor: MTAClipImageProcessor
    scales: Sequence[float] = (1.0,)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> list[EvaluationSample]:
        return [
            EvaluationSample(
                prepare_image(example["image"], self.image_processor, self.scales),
                torch.from_numpy(np.array(example["annotation"], dtype=np.int64)),
                example.get("name", ""),
                make_thumbnail(example["image"]),
            )
            for example in examples
        ]


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gathers the weights that FSDP has sharded, so that predictions need no other process; all must call this.

    Args:
        model (`nn.Module`): sharded by `fully_shard` in part or whole; any other model is left as it is.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


class SegmentationScores:
    """Figures of all images that all processes have predicted.

    Args:
        class_names (`Sequence[str]`): in the order of the label ids.
        ignore_index (`int`): label of pixels that don't count.
        boundary_metrics (`bool`, defaults to `False`): also score how well the boundaries of classes are met.

    Attributes:
        matrix (`Tensor` of shape `(K + 1, K + 1)`, *optional*): after `finish`, the confusion matrix.
        per_image ([`PerImageScores`]): of each image by name.
        best_and_worst ([`BestAndWorstImages`]): the best and worst images.
        contexts ([`ContextUsage`]): which prompt contexts are used.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int, boundary_metrics: bool = False) -> None:
        self.class_names, self.ignore_index = list(class_names), ignore_index
        self.categories = categories_of(self.class_names)
        number = len(self.class_names)
        self.matrix: Tensor | None = None
        self.per_image = PerImageScores(number, ignore_index)
        self.best_and_worst, self.contexts = BestAndWorstImages(), ContextUsage(number)
        self.boundary: BoundaryScores | None = None
        if boundary_metrics:
            iou_ratio = CITYSCAPES_BOUNDARY_IOU_RATIO if self.categories else BOUNDARY_IOU_RATIO
            self.boundary = BoundaryScores(number, ignore_index, iou_ratio=iou_ratio)
        self._figures: dict[str, Any] = {}

    def add(
        self, prediction: Tensor, annotation: Tensor, name: str = "", thumbnail: Image.Image | None = None
    ) -> None:
        """Counts one image: two int64 label maps of the same size, its name and a small version if there is one."""
        annotation = annotation.to(prediction.device)
        if self.boundary is not None:
            self.boundary.add(prediction=prediction, reference=annotation)
        if not name or name in self.per_image:
            # A name of its own.
            name = f"{name or 'image'} ({PartialState().process_index}.{len(self.per_image) + 1})"
        score = self.per_image.add(prediction=prediction, reference=annotation, name=name)
        if thumbnail is not None:
            self.best_and_worst.add(name, score.mean_iou, thumbnail, annotation, prediction)

    def finish(self) -> None:
        """Adds up the counts of all processes, which must all call this."""
        self.per_image.synchronize()
        self.matrix = self.per_image.confusion_matrix
        self.best_and_worst.gather()
        self.contexts.gather()
        self._figures = iou_figures(self.matrix)
        if self.boundary is not None:
            self.boundary.synchronize()
            self._figures |= self.boundary.compute()

    def summary(self) -> dict[str, float | int]:
        """Of [`summary_figures`], with `category_iou` for Cityscapes. With boundary metrics, also `boundary_iou` and
        `boundary_f_score`."""
        summary = summary_figures(self.matrix, self.categories)
        if self.boundary is not None:
            summary |= {name: float(self._figures[name]) for name in ("boundary_iou", "boundary_f_score")}
        return summary

    def details(self) -> dict[str, Any]:
        """What is no single number: `mean_iou_interval`, the 95 % bootstrap interval over images; `worst_images`, ten
        with `name`, `mean_iou` and `worst_class`; for Cityscapes `categories`, the IoU of each (`None`: absent)."""
        worst = [score for score in self.per_image.scores() if score.worst_class is not None][:NUM_WORST_IMAGES]
        details: dict[str, Any] = {
            "mean_iou_interval": self.per_image.bootstrap_interval(),
            "worst_images": [
                {"name": each.name, "mean_iou": each.mean_iou, "worst_class": self.class_names[each.worst_class]}
                for each in worst
            ],
        }
        if self.categories is not None:
            details["categories"] = json_ready(category_iou(self.matrix, self.categories))
        return details

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """`iou` and `accuracy` of each class by name, with boundary metrics also `boundary_iou` and
        `boundary_f_score`; `None` where a class does not occur."""
        start = "per_category_"
        columns = {key.removeprefix(start): value for key, value in self._figures.items() if key.startswith(start)}
        return {
            name: {key: json_ready(values[index]) for key, values in columns.items()}
            for index, name in enumerate(self.class_names)
        }


def categories_of(class_names: Sequence[str]) -> tuple[str, ...] | None:
    """The categories that the official metric of the data set with these classes scores too."""
    known = [info.categories for info in DATASETS.values() if info.class_names == tuple(class_names)]
    return (known[0] or None) if known else None


__all__ = ["EvaluationCollator", "EvaluationSample", "SegmentationScores", "categories_of", "whole_weights"]
