# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean intersection over union as an `evaluate` metric that keeps counts instead of images and needs no hub.

It takes the same arguments and returns the same figures as `evaluate.load("mean_iou")`, in memory that does not grow
with the number of images.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import datasets
import evaluate
import numpy as np
from torch import Tensor, distributed

from .pair_counts import PairCounts


DESCRIPTION = """
Intersection over union (IoU) of a class is the number of pixels that prediction and reference both give to it, over
the number of pixels that at least one of them does, summed over all images. Mean IoU is its average over the classes
that occur.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (list of `Tensor`, `np.ndarray`, `PIL.Image.Image` or nested lists of shape `(height, width)`, or one
        array of shape `(batch_size, height, width)`): predicted class indices. Sizes may differ between images.
    references (like `predictions`): annotated class indices, each of the size of its prediction.
    num_labels (`int`): number of classes.
    ignore_index (`int`): pixels with this reference value are left out. A prediction of this value is wrong.
    nan_to_num (`float`, *optional*): what NaN (a class that does not occur) is replaced by.
    label_map (`dict[int, int]`, *optional*): old to new values of references.
    reduce_labels (`bool`, *optional*, defaults to `False`): map reference values 0 and 255 to 255, others to one less.

Returns:
    `dict` with `mean_iou`, `mean_accuracy`, `overall_accuracy` (`float`), `per_category_iou` and
    `per_category_accuracy` (`np.ndarray` of shape `(num_labels,)`).

Example:
    >>> from modeling_mtaclip.metrics import MeanIoU
    >>> metric = MeanIoU(num_labels=2, ignore_index=255)
    >>> metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]])
    >>> round(float(metric.compute()["mean_iou"]), 4)
    0.5
"""

CITATION = """
@article{everingham2010pascal,
  title = {The Pascal Visual Object Classes (VOC) Challenge},
  author = {Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal = {International Journal of Computer Vision},
  year = {2010}
}
"""

_UNSET: Any = object()


def mean_over_present(values: np.ndarray) -> np.float64:
    """Mean of the values that are not NaN, which is NaN without a warning where there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values)


def iou_figures(confusion_matrix: Tensor) -> dict[str, np.ndarray | np.float64]:
    """The figures of `mean_iou` of a confusion matrix.

    Args:
        confusion_matrix (`Tensor` of shape `(K + 1, K + 1)`): see [`PairCounts.confusion_matrix`].

    Returns:
        `dict[str, np.ndarray | np.float64]`: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `per_category_iou` and
        `per_category_accuracy`. Classes in neither prediction nor reference have an IoU of NaN; classes without
        annotated pixels have an accuracy of NaN. Both are left out of the means.
    """
    matrix = confusion_matrix.numpy().astype(np.float64)
    intersection = matrix.diagonal()[:-1]
    annotated, predicted = matrix.sum(axis=1)[:-1], matrix.sum(axis=0)[:-1]
    with np.errstate(invalid="ignore"):
        iou = intersection / (annotated + predicted - intersection)
        accuracy = intersection / annotated
        overall_accuracy = intersection.sum() / annotated.sum()
    return {
        "mean_iou": mean_over_present(iou),
        "mean_accuracy": mean_over_present(accuracy),
        "overall_accuracy": overall_accuracy,
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


class MeanIoU(evaluate.Metric):
    """`mean_iou` of `evaluate`, accumulated as a table of counts.

    Use it wherever `evaluate.load("mean_iou")` is used: options may be given to `compute`, as there, or here. Images
    are counted on the device where they are. In a run of several processes, let each add the images it owns, and call
    [`MeanIoU.synchronize`] on all of them before `compute` (which does so by itself if `num_process` is above 1).

    Args:
        config_name (`str`, *optional*): as in `evaluate`.
        num_labels (`int`, *optional*): number of classes. Must be given here or to `compute`.
        ignore_index (`int`, *optional*, defaults to 255): reference value of pixels to leave out; `None` for no such.
        nan_to_num (`float`, *optional*): what NaN is replaced by in the figures.
        label_map (`Mapping[int, int]`, *optional*): old to new values of references.
        reduce_labels (`bool`, *optional*, defaults to `False`): map reference values 0 and 255 to 255, and others to
            one less.
        kwargs: further arguments of `evaluate.Metric`, such as `num_process` and `process_id`.
    """

    def __init__(
        self,
        config_name: str | None = None,
        *,
        num_labels: int | None = None,
        ignore_index: int | None = 255,
        nan_to_num: float | None = None,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(config_name, **kwargs)
        self.num_labels = None if num_labels is None else _checked_num_labels(num_labels)
        self.ignore_index = ignore_index
        self.nan_to_num = nan_to_num
        self.label_map = label_map
        self.reduce_labels = reduce_labels
        self.counts = PairCounts(self.num_labels or 0)
        self.reset()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _build_data_dir(self) -> str:
        """Nothing is stored, so no folder is made."""
        return self._data_dir_root

    def __len__(self) -> int:
        return self.num_images

    def reset(self) -> None:
        """Forget all images."""
        self.counts.reset()
        self.num_images = 0
        self._synchronized = False

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Add one image.

        Args:
            prediction (integer array or `Tensor` of shape `(height, width)`): predicted class indices.
            reference (integer array or `Tensor` of shape `(height, width)`): annotated class indices.
        """
        self._count(reference, prediction, 1)

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Add images of one size or of different sizes.

        Args:
            predictions (list of arrays of shape `(height, width)`, or an array of shape `(batch, height, width)`):
                predicted class indices.
            references (like `predictions`): annotated class indices.

        Raises:
            ValueError: if one is missing, numbers or sizes of images differ, or values are not whole numbers.
        """
        if predictions is None or references is None:
            raise ValueError("Both `predictions` and `references` are needed.")
        if len(predictions) != len(references):
            raise ValueError(f"Got {len(predictions)} predictions for {len(references)} references.")
        if all(isinstance(images, Tensor | np.ndarray) for images in (predictions, references)):
            self._count(references, predictions, len(predictions))
            return
        for prediction, reference in zip(predictions, references, strict=True):
            self._count(reference, prediction, 1)

    def _count(self, references: Any, predictions: Any, num_images: int) -> None:
        if self._synchronized:
            raise ValueError("Images cannot be added after `synchronize`: call `compute` or `reset` first.")
        self.counts.add(references, predictions)
        self.num_images += num_images

    def synchronize(self, group: distributed.ProcessGroup | None = None) -> None:
        """Add up the counts of all processes exactly; a second call before `compute` does nothing.

        All processes of the group must call it, including those without images.

        Args:
            group (`torch.distributed.ProcessGroup`, *optional*): the processes; all by default.
        """
        if not self._synchronized:
            self.counts.synchronize(group)
            self._synchronized = True

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        num_labels: int | None = _UNSET,
        ignore_index: int | None = _UNSET,
        nan_to_num: float | None = _UNSET,
        label_map: Mapping[int, int] | None = _UNSET,
        reduce_labels: bool = _UNSET,
    ) -> dict[str, np.ndarray | np.float64]:
        """The figures of all images since the last call, which are then forgotten.

        Options that are not given are those of the constructor. Unlike in `evaluate`, all processes get the figures.

        Returns:
            `dict[str, np.ndarray | np.float64]`: see [`iou_figures`].

        Raises:
            ValueError: if the number of classes is unknown or images do not fit each other.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.num_process > 1:
            self.synchronize()
        matrix = self.confusion_matrix(num_labels, ignore_index, label_map, reduce_labels)
        figures = iou_figures(matrix)
        nan_to_num = self.nan_to_num if nan_to_num is _UNSET else nan_to_num
        if nan_to_num is not None:
            figures = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in figures.items()}
        self.reset()
        return figures

    def confusion_matrix(
        self,
        num_labels: int | None = _UNSET,
        ignore_index: int | None = _UNSET,
        label_map: Mapping[int, int] | None = _UNSET,
        reduce_labels: bool = _UNSET,
    ) -> Tensor:
        """Confusion matrix of the images so far, see [`PairCounts.confusion_matrix`]. Nothing is forgotten.

        Options that are not given are those of the constructor.

        Returns:
            `Tensor` of shape `(K + 1, K + 1)` and type `torch.int64`, on the CPU.
        """
        return self.counts.confusion_matrix(
            _checked_num_labels(self.num_labels if num_labels is _UNSET else num_labels),
            self.ignore_index if ignore_index is _UNSET else ignore_index,
            self.label_map if label_map is _UNSET else label_map,
            self.reduce_labels if reduce_labels is _UNSET else reduce_labels,
        )


def _checked_num_labels(num_labels: Any) -> int:
    if num_labels is None:
        raise ValueError("The number of classes is unknown: give `num_labels` to MeanIoU(...) or to compute(...).")
    if isinstance(num_labels, bool) or int(num_labels) != num_labels or num_labels < 1:
        raise ValueError(f"`num_labels` must be a positive whole number, but got {num_labels!r}.")
    return int(num_labels)


__all__ = ["MeanIoU", "iou_figures", "mean_over_present"]
