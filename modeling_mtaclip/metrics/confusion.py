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


# The table of counts starts with room for 8-bit label maps; the largest takes 128 MiB.
MIN_TABLE_SIZE, MAX_TABLE_SIZE = 256, 4096
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
    afterward. Values from 0 to 4095 are counted in a table, which grows as needed; pairs with others in a dictionary.
    """

    def __init__(self) -> None:
        self.table = np.zeros((MIN_TABLE_SIZE, MIN_TABLE_SIZE), dtype=np.int64)
        self.others: Counter[tuple[int, int]] = Counter()

    def add(self, reference: Any, prediction: Any) -> None:
        """Counts the pixels of label maps of any one shape; a ValueError as of [`as_label_pair`], or if there are too
        many values to be labels."""
        reference, prediction = (labels.flatten() for labels in as_label_pair(reference, prediction))
        pixels = PIXELS_AT_A_TIME if reference.device.type == "cpu" else max(1, len(reference))
        for rows, columns in zip(reference.split(pixels), prediction.split(pixels), strict=True):
            if not (self._has_room(rows) and self._has_room(columns)):
                rows, columns = self._make_room(torch.stack([rows.long(), columns.long()]))
            self.table += _count_pairs(rows, columns, len(self.table))

    def _has_room(self, values: Tensor) -> bool:
        if values.dtype == torch.uint8 or not len(values):
            return True
        low, high = values.aminmax()
        return int(low) >= 0 and int(high) < len(self.table)

    def _make_room(self, pairs: Tensor) -> Tensor:
        """Counts the pairs `(2, n)` that never have a place in the table, and returns the others, which now have."""
        inside = ((pairs >= 0) & (pairs < MAX_TABLE_SIZE)).all(dim=0)
        others, numbers = pairs[:, ~inside].unique(dim=1, return_counts=True)
        self.others.update(dict(zip(map(tuple, others.T.tolist()), numbers.tolist(), strict=True)))
        if len(self.others) > MAX_TABLE_SIZE:
            raise ValueError(
                f"More than {MAX_TABLE_SIZE} distinct values occur in the label maps that are no class indices, such "
                f"as {int(others.max())}: pass class indices, not scores."
            )
        pairs = pairs[:, inside]
        self._grow(int(pairs.max()) + 1 if pairs.numel() else 0)
        return pairs

    def _grow(self, num_values: int) -> None:
        if num_values > len(self.table):
            size = 1 << (num_values - 1).bit_length()
            self.table = np.pad(self.table, (0, size - len(self.table)))

    def synchronize(self) -> None:
        """Adds up the counts of all processes exactly; they must all call this, and all get the sum."""
        shares = gathered((self.table, self.others))
        self._grow(max(len(table) for table, _ in shares))
        self.table, self.others = np.zeros_like(self.table), Counter()
        for table, others in shares:
            self.table[: len(table), : len(table)] += table
            self.others.update(others)

    def confusion_matrix(
        self,
        num_labels: int,
        ignore_index: int | None = 255,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> Tensor:
        """The confusion matrix of the pixels that are not ignored; arguments as for [`MeanIoU`]."""
        rows, columns = self.table.nonzero()
        in_table = np.stack([rows, columns, self.table[rows, columns]], axis=1)
        others = np.array([(*pair, number) for pair, number in self.others.items()], dtype=np.int64).reshape(-1, 3)
        reference, prediction, numbers = torch.from_numpy(np.concatenate([in_table, others])).T
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


def _count_pairs(rows: Tensor, columns: Tensor, size: int) -> np.ndarray:
    """How often each pair of a row and a column, integers between 0 and `size - 1`, occurs: int64 `(size, size)`."""
    if rows.device.type == "cpu":
        # NumPy's one thread: PyTorch's many are no faster, and slow where other processes keep the cores busy.
        pairs = torch.from_numpy(rows.numpy().astype(np.int32) * np.int32(size) + columns.numpy().astype(np.int32))
    else:
        pairs = torch.add(columns.to(torch.int32), rows.to(torch.int32), alpha=size)
    return torch.bincount(pairs, minlength=size * size).cpu().numpy().reshape(size, size)


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
