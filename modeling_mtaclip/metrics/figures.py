# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Further figures of a confusion matrix: frequency-weighted IoU and the IoU of categories, groups of classes.

A confusion matrix here is that of [`PairCounts.confusion_matrix`]: rows are references, columns are predictions, and
the last row and column count values that are no class.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .mean_iou import iou_figures


# Category of each of the 19 classes of Cityscapes that are evaluated, in the order of their train ids.
CITYSCAPES_CATEGORIES = (
    *("flat", "flat"),
    *("construction", "construction", "construction"),
    *("object", "object", "object"),
    *("nature", "nature"),
    "sky",
    *("human", "human"),
    *("vehicle", "vehicle", "vehicle", "vehicle", "vehicle", "vehicle"),
)


def frequency_weighted_iou(confusion_matrix: Tensor) -> float:
    """Mean of the classes' IoU, weighted by how many pixels are annotated as the class.

    Defined in Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (arXiv 1411.4038).

    Args:
        confusion_matrix (`Tensor` of shape `(K + 1, K + 1)` and an integer type): see above.

    Returns:
        `float`: between 0 and 1; NaN if no pixel is annotated.
    """
    annotated = confusion_matrix.sum(dim=1)[:-1].numpy().astype(np.float64)
    if not annotated.any():
        return float("nan")
    iou = iou_figures(confusion_matrix)["per_category_iou"]
    return float((annotated * np.nan_to_num(iou)).sum() / annotated.sum())


def category_iou(confusion_matrix: Tensor, categories: Sequence[str]) -> dict[str, float]:
    """IoU of groups of classes, where mistaking a class for another of its group is no error.

    This is the category score of the Cityscapes benchmark (Cordts et al., "The Cityscapes Dataset for Semantic Urban
    Scene Understanding", CVPR 2016, arXiv 1604.01685).

    Args:
        confusion_matrix (`Tensor` of shape `(K + 1, K + 1)` and an integer type): see above.
        categories (`Sequence[str]`): the category of each class, such as `CITYSCAPES_CATEGORIES`.

    Returns:
        `dict[str, float]`: IoU by category, in order of appearance; NaN for those that do not occur.

    Raises:
        ValueError: if the number of categories is not that of the classes.
    """
    num_labels = len(confusion_matrix) - 1
    if len(categories) != num_labels:
        raise ValueError(f"{num_labels} classes need a category each, but got {len(categories)} categories.")
    names = list(dict.fromkeys(categories))
    group = torch.tensor([*(names.index(category) for category in categories), len(names)])
    rows = torch.zeros(len(names) + 1, num_labels + 1, dtype=confusion_matrix.dtype)
    rows.index_add_(0, group, confusion_matrix)
    matrix = torch.zeros(len(names) + 1, len(names) + 1, dtype=confusion_matrix.dtype).index_add_(1, group, rows)
    iou = iou_figures(matrix)["per_category_iou"]
    return dict(zip(names, iou.tolist(), strict=True))


__all__ = ["CITYSCAPES_CATEGORIES", "category_iou", "frequency_weighted_iou"]
