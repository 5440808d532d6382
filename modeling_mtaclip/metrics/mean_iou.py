# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean intersection over union as a metric of `evaluate` that keeps counts instead of images and needs no network."""

from typing import Any

import datasets
import evaluate
import numpy as np
from torch import Tensor, distributed
from transformers.utils import logging

from .confusion import PairCounts, iou_figures


logger = logging.get_logger(__name__)


class MeanIoU(evaluate.Metric):
    """`mean_iou` of `evaluate`, accumulated as a table of counts.

    IoU (intersection over union) of a class is the number of pixels that prediction and reference both give to it,
    over the number of those that at least one of them does, summed over all images. Mean IoU is its average over the
    classes that occur (Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010).

    `add`, `add_batch`, `compute` and `_compute` take the arguments of `evaluate.load("mean_iou")` and give its
    figures; options may be given here or to `compute`. Of several processes, each adds the images it owns, and all
    call [`MeanIoU.synchronize`] before `compute` (which does so by itself if `num_process` is above 1): counts travel
    by `torch.distributed`, and unlike in `evaluate` every process gets the figures.

    Args:
        config_name (`str`, *optional*): as in `evaluate`.
        num_labels (`int`, *optional*): number of classes. Must be given here or to `compute`.
        ignore_index (`int`, *optional*, defaults to 255): reference value of pixels to leave out, after `label_map`
            and `reduce_labels`; `None` for no such. Where it is predicted, the prediction is wrong.
        nan_to_num (`float`, *optional*): what replaces NaN, the figure of a class that does not occur.
        label_map (`Mapping[int, int]`, *optional*): old to new values of references, all applied to the old ones.
        reduce_labels (`bool`, *optional*, defaults to `False`): map reference values 0 and 255 to 255, and others to
            one less.
        kwargs: further arguments of `evaluate.Metric`, such as `num_process` and `process_id`.

    Example:

    ```python
    >>> metric = MeanIoU(num_labels=2)
    >>> metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]])
    >>> metric.compute()["mean_iou"]
    0.5
    ```
    """

    def __init__(
        self,
        config_name: str | None = None,
        *,
        num_labels: int | None = None,
        ignore_index: int | None = 255,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(config_name, **kwargs)
        self.options = {"num_labels": num_labels, "ignore_index": ignore_index, "nan_to_num": nan_to_num}
        self.options |= {"label_map": label_map, "reduce_labels": reduce_labels}
        self.reset()

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description=type(self).__doc__, features=features
        )

    def _build_data_dir(self) -> str:
        """Nothing is stored, so no folder is made."""
        return self._data_dir_root

    def reset(self) -> None:
        """Forgets all images."""
        self.counts, self._synchronized = PairCounts(), False

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one image: two label maps `(height, width)`, which `evaluate` also takes under their plural names."""
        images = {"predictions": prediction, "references": reference} | kwargs
        self.add_batch(**{name: None if image is None else [image] for name, image in images.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Adds images of one size or of different sizes.

        Args:
            predictions, references (lists of label maps `(height, width)`, such as arrays, tensors on any device or
                PIL images; or arrays of shape `(batch, height, width)`): predicted and annotated class indices; a
                ValueError if numbers or sizes of images differ, or values are not whole numbers.
        """
        if self._synchronized:
            raise ValueError("Images cannot be added after `synchronize`: call `compute` or `reset` first.")
        _count(self.counts, predictions, references)

    def synchronize(self) -> None:
        """Adds up the counts of all processes exactly, which must all call this, even those without
        images; a second call before `compute` does nothing."""
        if not self._synchronized:
            self.counts.synchronize()
            self._synchronized = True

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any]:
        """The figures of all images since the last call, which are then forgotten.

        Args:
            predictions, references: images to add before.
            options: in place of the constructor's; a TypeError if there is none of that name.

        Returns:
            `dict[str, np.ndarray | np.float64]`: see [`iou_figures`].

        Raises:
            ValueError: an unknown number of classes, images that don't fit each other, or processes (`num_process`)
                that `torch.distributed` does not connect.
        """
        options = self._checked(options)
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.num_process > 1:
            self._check_processes()
            self.synchronize()
        figures = _figures(self.counts, **options)
        self.reset()
        return figures

    def _check_processes(self) -> None:
        connected = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if connected != self.num_process:
            raise ValueError(
                f"`num_process` is {self.num_process}, but torch.distributed connects {connected}: initialize it in "
                "all processes, or let one process add all images."
            )

    def _compute(self, predictions: Any, references: Any, *options: Any, **named_options: Any) -> dict[str, Any]:
        """The figures of these images alone, whatever was added before; options in the constructor's order."""
        options = self._checked(dict(zip(self.options, options, strict=False)) | named_options)
        return _figures(_count(PairCounts(), predictions, references), **options)

    def confusion_matrix(self, **options: Any) -> Tensor:
        """Confusion matrix of the images so far, int64 `(K + 1, K + 1)` with a last row (references) and column
        (predictions) for values that are no class; options as for `compute`. Nothing is forgotten."""
        options = self._checked(options)
        del options["nan_to_num"]
        return self.counts.confusion_matrix(**options)

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options, with the constructor's for those that are not given."""
        if unknown := options.keys() - self.options.keys():
            raise TypeError(f"Unknown options {sorted(unknown)}: expected some of {list(self.options)}.")
        options = self.options | options
        num_labels = options["num_labels"]
        if num_labels is None:
            raise ValueError("The number of classes is unknown: give `num_labels` to MeanIoU(...) or to compute(...).")
        if isinstance(num_labels, bool) or int(num_labels) != num_labels or num_labels < 1:
            raise ValueError(f"`num_labels` must be a positive whole number, but got {num_labels!r}.")
        return options | {"num_labels": int(num_labels)}


def _count(counts: PairCounts, predictions: Any, references: Any) -> PairCounts:
    if predictions is None or references is None:
        raise ValueError("Both `predictions` and `references` are needed.")
    if len(predictions) != len(references):
        raise ValueError(f"Got {len(predictions)} predictions for {len(references)} references.")
    if all(isinstance(images, Tensor | np.ndarray) for images in (predictions, references)):
        predictions, references = [predictions], [references]
    for prediction, reference in zip(predictions, references, strict=True):
        counts.add(reference, prediction)
    return counts


def _figures(counts: PairCounts, nan_to_num: float | None, **options: Any) -> dict[str, Any]:
    matrix = counts.confusion_matrix(**options)
    if strangers := int(matrix[-1].sum()):
        logger.warning(
            f"{strangers} pixels of the references are neither a class nor `ignore_index` "
            f"({options['ignore_index']}): as in evaluate, they count against the classes predicted there."
        )
    figures = iou_figures(matrix)
    if nan_to_num is None:
        return figures
    return {name: np.nan_to_num(value, nan=nan_to_num) for name, value in figures.items()}


__all__ = ["MeanIoU"]
