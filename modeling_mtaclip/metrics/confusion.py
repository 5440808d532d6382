# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices: how often a label of the ground truth meets a predicted one, and the figures that follow.

A confusion matrix is an int64 tensor `(K + 1, K + 1)` on the CPU: a row for each class of the ground truth, a column
for each predicted class, and a last row and column for all values that are no class. Ignored pixels are not in it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed


# Values below the first are places in a table as they are; label maps have at most the second number of distinct ones.
MAX_PLACES, MAX_DISTINCT = 256, 4096
# So many pixels at a time stay in a processor's cache, and batches of any size take the same memory.
PIXELS_AT_A_TIME = 2**17


def as_label_pair(reference: Any, prediction: Any) -> tuple[Tensor, Tensor]:
    """Label maps (arrays, tensors, PIL images or nested lists) as integer tensors on the device of the prediction; a
    ValueError if their shapes differ or values are not whole numbers."""
    prediction = _as_labels(prediction, "predictions")
    reference = _as_labels(reference, "references").to(prediction.device)
    if reference.shape != prediction.shape:
        raise ValueError(
            f"A prediction of shape {tuple(prediction.shape)} does not match its reference of shape "
            f"{tuple(reference.shape)}: resize predictions to the size of the annotation first."
        )
    return reference, prediction


def _as_labels(labels: Any, name: str) -> Tensor:
    if not isinstance(labels, Tensor):
        array = np.array(labels, order="C")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be numbers in an array of one shape, but got an array of {array.dtype}.")
        labels = torch.from_numpy(array)
    if labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        return labels
    whole = labels.to(torch.int64)
    if not torch.equal(whole.to(labels.dtype), labels):
        raise ValueError(
            f"{name} must be whole numbers, but got {labels.dtype} with other values: pass class indices (such as the "
            "argmax of the scores), not scores."
        )
    return whole


def class_or_other(values: Tensor, num_labels: int) -> Tensor:
    """The values, with `num_labels` in place of all that are no class."""
    return torch.where((values >= 0) & (values < num_labels), values, num_labels)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, which must all call this; only one's own where there is one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


class PairCounts:
    """How often each pair of a value in the ground truth and a predicted value occurs, in one image or in many.

    The values are counted as they are, so that label maps, ignored values and the number of classes may be chosen
    afterward.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[int, int]] = Counter()

    def add(self, reference: Any, prediction: Any) -> None:
        """Counts the pixels of label maps of any one shape; a ValueError as of [`as_label_pair`], or if there are too
        many values to be labels."""
        reference, prediction = (labels.flatten() for labels in as_label_pair(reference, prediction))
        pixels = PIXELS_AT_A_TIME if reference.device.type == "cpu" else max(1, len(reference))
        for rows, columns in zip(reference.split(pixels), prediction.split(pixels), strict=True):
            self.counts.update(_count_pairs(rows, columns))

    def synchronize(self) -> None:
        """Adds up the counts of all processes exactly; they must all call this, and all get the sum."""
        self.counts = sum(gathered(self.counts), Counter())

    def confusion_matrix(
        self,
        num_labels: int,
        ignore_index: int | None = 255,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> Tensor:
        """The confusion matrix of the pixels that are not ignored; arguments as for [`MeanIoU`]."""
        pairs = [(*pair, number) for pair, number in self.counts.items()]
        reference, prediction, numbers = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).T
        mapped = reference.clone()
        for old, new in (label_map or {}).items():
            mapped[reference == int(old)] = int(new)
        if reduce_labels:
            mapped = torch.where((mapped == 0) | (mapped == 255), 255, mapped - 1)
        if ignore_index is not None:
            numbers = torch.where(mapped == ignore_index, 0, numbers)
        matrix = torch.zeros(num_labels + 1, num_labels + 1, dtype=torch.int64)
        places = class_or_other(mapped, num_labels), class_or_other(prediction, num_labels)
        return matrix.index_put_(places, numbers, accumulate=True)


def _count_pairs(rows: Tensor, columns: Tensor) -> dict[tuple[int, int], int]:
    """How often each pair of a value of `rows` and one of `columns`, both `(n,)`, occurs."""
    (row_values, rows), (column_values, columns) = _places(rows), _places(columns)
    if rows.device.type == "cpu":
        # NumPy's one thread: PyTorch's many are no faster, and slow where other processes keep the cores busy.
        places = rows.numpy().astype(np.int32) * np.int32(len(column_values)) + columns.numpy().astype(np.int32)
        places = torch.from_numpy(places)
    else:
        places = rows.int() * len(column_values) + columns
    numbers = torch.bincount(places)
    found = numbers.nonzero()[:, 0]
    pairs = row_values[found // len(column_values)].tolist(), column_values[found % len(column_values)].tolist()
    return dict(zip(zip(*pairs, strict=True), numbers[found].tolist(), strict=True))


def _places(values: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values `(m,)`, among them all of `values` `(n,)`, and where each of these is among them, `(n,)`."""
    low, high = (0, 0) if values.dtype == torch.uint8 or not len(values) else values.aminmax()
    if low >= 0 and high < MAX_PLACES:
        return torch.arange(MAX_PLACES, device=values.device), values
    distinct, places = values.unique(return_inverse=True)
    if len(distinct) > MAX_DISTINCT:
        raise ValueError(
            f"More than {MAX_DISTINCT} distinct values occur in a label map, such as {int(distinct[-1])}: pass class "
            "indices, not scores."
        )
    return distinct, places


def areas_of(confusion_matrix: Tensor) -> np.ndarray:
    """Pixels of each class in the intersection, predicted and in the ground truth: int64 `(3, K)`."""
    areas = confusion_matrix.diagonal(), confusion_matrix.sum(dim=0), confusion_matrix.sum(dim=1)
    return torch.stack(areas)[:, :-1].numpy()


def iou_of(areas: np.ndarray) -> np.ndarray:
    """IoU of shape `(..., K)` of areas of shape `(..., 3, K)`; NaN where a class does not occur."""
    intersection, predicted, annotated = np.moveaxis(areas, -2, 0)
    with np.errstate(invalid="ignore"):
        return intersection / (predicted + annotated - intersection)


def mean_over_present(values: np.ndarray) -> np.float64:
    """Mean of the values that are not NaN; NaN where there are none."""
    present = values[~np.isnan(values)]
    return present.mean() if len(present) else np.float64("nan")


def iou_figures(confusion_matrix: Tensor) -> dict[str, np.ndarray | np.float64]:
    """The figures of `evaluate`'s `mean_iou`: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `per_category_iou` and
    `per_category_accuracy`.

    A class that is neither predicted nor in the ground truth has an IoU of NaN, one without pixels in the ground truth
    has an accuracy of NaN; the means are over the others, and NaN without any.
    """
    areas = areas_of(confusion_matrix)
    intersection, _, annotated = areas
    iou = iou_of(areas)
    with np.errstate(invalid="ignore"):
        accuracy, overall_accuracy = intersection / annotated, intersection.sum() / annotated.sum()
    return {
        "mean_iou": mean_over_present(iou),
        "mean_accuracy": mean_over_present(accuracy),
        "overall_accuracy": overall_accuracy,
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def category_iou(confusion_matrix: Tensor, categories: Sequence[str]) -> dict[str, float]:
    """IoU of groups of classes, where taking a class for another of its group is no error: the category score of the
    Cityscapes benchmark (Cordts et al., CVPR 2016, arXiv 1604.01685).

    `categories` has the category of each class; another number of them is a ValueError. The IoUs are in the order in
    which categories appear, with NaN for those that do not occur.
    """
    num_labels = len(confusion_matrix) - 1
    if len(categories) != num_labels:
        raise ValueError(f"{num_labels} classes need a category each, but got {len(categories)} categories.")
    names = list(dict.fromkeys(categories))
    group = torch.tensor([*map(names.index, categories), len(names)])
    matrix = confusion_matrix.new_zeros(len(names) + 1, len(names) + 1)
    matrix.index_put_((group[:, None], group[None, :]), confusion_matrix, accumulate=True)
    return dict(zip(names, iou_of(areas_of(matrix)).tolist(), strict=True))


def constant_prediction(confusion_matrix: Tensor) -> Tensor:
    """The confusion matrix of a model that gives every pixel the class with most pixels in the ground truth."""
    annotated = confusion_matrix.sum(dim=1)
    constant = torch.zeros_like(confusion_matrix)
    constant[:, annotated[:-1].argmax()] = annotated
    return constant


def summary_figures(confusion_matrix: Tensor, categories: Sequence[str] | None = None) -> dict[str, float | int]:
    """The single figures of an evaluation, with the number of classes that they rest on.

    These are `mean_iou`, `mean_accuracy`, `overall_accuracy`; `frequency_weighted_iou`, the IoU weighted by pixels of
    the ground truth (Long et al., CVPR 2015, arXiv 1411.4038); `constant_mean_iou`, that of [`constant_prediction`];
    with the classes' categories `category_iou`, the mean over [`category_iou`] (all of these are NaN if no pixel
    counts); `num_annotated_classes` and `num_classes`.
    """
    figures = iou_figures(confusion_matrix)
    summary = {name: float(figures[name]) for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    annotated = areas_of(confusion_matrix)[2]
    with np.errstate(invalid="ignore"):
        weights = annotated / annotated.sum()
    summary["frequency_weighted_iou"] = float((weights * np.nan_to_num(figures["per_category_iou"])).sum())
    summary["constant_mean_iou"] = float(iou_figures(constant_prediction(confusion_matrix))["mean_iou"])
    if categories is not None:
        by_category = np.array(list(category_iou(confusion_matrix, categories).values()))
        summary["category_iou"] = float(mean_over_present(by_category))
    return summary | {"num_annotated_classes": int((annotated > 0).sum()), "num_classes": len(annotated)}


def json_ready(value: Any) -> Any:
    """Figures as JSON has them: `None` for NaN and infinities, lists for arrays and tuples, within mappings too."""
    if isinstance(value, Mapping):
        return {key: json_ready(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [json_ready(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


__all__ = ["PairCounts", "category_iou", "constant_prediction", "iou_figures", "json_ready", "summary_figures"]
