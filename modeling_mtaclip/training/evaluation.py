# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation reads, image by image, and the scores it makes of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..data import DATASETS
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..inference import prepare_image
from ..metrics import BoundaryScores, PerImageScores, category_iou, iou_figures, json_ready, summary_figures
from ..metrics.boundary import BOUNDARY_IOU_RATIO, CITYSCAPES_BOUNDARY_IOU_RATIO
from ..metrics.confusion import gathered
from ..metrics.per_image import ImageScore
from .evaluated_images import winning_contexts


NUM_WORST_IMAGES = 10
MAX_NAMED_CLASSES = 20


def prepare_examples(
    examples: Sequence[Mapping[str, Any]], image_processor: MTAClipImageProcessor, scales: Sequence[float] = (1.0,)
) -> list[dict[str, Any]]:
    """Prepares evaluation examples, each by itself, so that no image is padded to the size of another: `image`, a
    [`PreparedImage`] for these scales, `annotation` `(height, width)` int64 at its own size, and `name`."""
    return [
        {
            "image": prepare_image(example["image"], image_processor, scales),
            "annotation": torch.from_numpy(np.array(example["annotation"], dtype=np.int64)),
            "name": example.get("name", ""),
        }
        for example in examples
    ]


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gathers the weights of a model that `fully_shard` has sharded in part or whole, so that predictions need no
    other process; all must call this. Any other model is left as it is."""
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
        contexts (`np.ndarray` of shape `(K, C + 1)`): as of [`winning_contexts`]; C is 0 without text branch.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int, boundary_metrics: bool = False) -> None:
        self.class_names, self.ignore_index = list(class_names), ignore_index
        self.categories = categories_of(self.class_names)
        number = len(self.class_names)
        self.matrix: Tensor | None = None
        self.per_image = PerImageScores(number, ignore_index)
        self.contexts = np.zeros((number, 1), dtype=np.int64)
        self.boundary: BoundaryScores | None = None
        if boundary_metrics:
            iou_ratio = CITYSCAPES_BOUNDARY_IOU_RATIO if self.categories else BOUNDARY_IOU_RATIO
            self.boundary = BoundaryScores(number, ignore_index, iou_ratio=iou_ratio)
        self._figures: dict[str, Any] = {}

    def add(self, prediction: Tensor, annotation: Tensor, name: str = "") -> None:
        """Counts one image: two int64 label maps of the same size, and its name, if it has one."""
        annotation = annotation.to(prediction.device)
        if self.boundary is not None:
            self.boundary.add(prediction=prediction, reference=annotation)
        if not name or name in self.per_image:
            # A name of its own.
            name = f"{name or 'image'} ({PartialState().process_index}.{len(self.per_image) + 1})"
        self.per_image.add(prediction=prediction, reference=annotation, name=name)

    def add_contexts(self, class_queries_logits: Tensor, mask_text_similarity: Tensor | None) -> None:
        """Counts the winning contexts in a model's output, if it has a text branch."""
        if mask_text_similarity is not None:
            self.contexts = self.contexts + winning_contexts(class_queries_logits, mask_text_similarity)

    def finish(self) -> None:
        """Adds up the counts of all processes, which must all call this."""
        self.per_image.synchronize()
        self.matrix = self.per_image.confusion_matrix
        self.contexts = sum(gathered(self.contexts))
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

    def images(self) -> list[ImageScore]:
        """Scores of the images that have one, the worst first."""
        return [score for score in self.per_image.scores() if score.worst_class is not None]

    def details(self) -> dict[str, Any]:
        """What is no single number: `mean_iou_interval`, the 95 % bootstrap interval over images; `worst_images`, ten
        with `name`, `mean_iou` and `worst_class`; for Cityscapes `categories`, the IoU of each (`None`: absent)."""
        details: dict[str, Any] = {
            "mean_iou_interval": self.per_image.bootstrap_interval(),
            "worst_images": [
                {"name": each.name, "mean_iou": each.mean_iou, "worst_class": self.class_names[each.worst_class]}
                for each in self.images()[:NUM_WORST_IMAGES]
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

    def warnings(self) -> list[str]:
        """Why the scores say less than they seem to, or nothing at all: a sentence or two on each reason."""
        pixels, num_images = self.matrix.sum(dim=1)[:-1].tolist(), len(self.per_image)
        if not any(pixels):
            return [
                f"There are no scores: no pixel of the {num_images} evaluated images is annotated with a class. Check "
                "the label ids of the annotations against the class names."
            ]
        warnings = []
        absent = [name for name, number in zip(self.class_names, pixels, strict=True) if not number]
        if absent:
            more = f" and {len(absent) - MAX_NAMED_CLASSES} more" if len(absent) > MAX_NAMED_CLASSES else ""
            warnings.append(
                f"{len(absent)} of {len(pixels)} classes are annotated in no evaluated image, so that the scores say "
                f"nothing about how well they are found: {', '.join(absent[:MAX_NAMED_CLASSES])}{more}."
            )
        num_empty = num_images - len(self.images())
        if num_empty:
            warnings.append(f"{num_empty} of {num_images} evaluated images have no annotated pixel and don't count.")
        if num_images == 1:
            warnings.append("Only one image was evaluated: the interval over images says nothing.")
        summary = self.summary()
        if summary["mean_iou"] <= summary["constant_mean_iou"]:
            warnings.append("The mean IoU is not above that of always predicting the most frequent class.")
        return warnings


def categories_of(class_names: Sequence[str]) -> tuple[str, ...] | None:
    """The categories that the official metric of the data set with these classes scores too."""
    known = [info.categories for info in DATASETS.values() if info.class_names == tuple(class_names)]
    return (known[0] or None) if known else None


__all__ = ["SegmentationScores", "categories_of", "prepare_examples", "whole_weights"]
