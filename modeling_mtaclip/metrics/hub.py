# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The mean IoU of `evaluate` itself, for who wants figures by the very code that others used.

Its code is fetched from the Hub. It stores all label maps until the figures are computed; [`MeanIoU`] gives the same
figures at a fraction of the time, in constant memory and without the Hub.
"""

import uuid
from typing import Any

import evaluate
import numpy as np
from torch import Tensor, distributed

from .pair_counts import as_label_tensor


class HubMeanIoU:
    """`evaluate.load("mean_iou")` for one or several processes, used up by one evaluation.

    With several processes, all must make one at the same time, and must share a disk, as `evaluate` demands.

    Args:
        num_labels (`int`): number of classes.
        ignore_index (`int`, *optional*, defaults to 255): reference value of pixels to leave out.
        path (`str`, *optional*, defaults to `"mean_iou"`): the metric's name on the Hub, or a script of it.

    Raises:
        ValueError: if the metric can't be loaded.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, path: str = "mean_iou") -> None:
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        rank, num_processes = _rank_and_size()
        try:
            self._metric = evaluate.load(
                path, num_process=num_processes, process_id=rank, experiment_id=_from_first(uuid.uuid4().hex)
            )
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(
                f"The metric {path!r} of evaluate could not be loaded: {error}. It needs the Hub; `--metric own` "
                "gives the same figures without it."
            ) from error

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Add one image; both arguments are label maps `(height, width)` of one size, of whole numbers."""
        prediction, reference = _as_image(prediction, "predictions"), _as_image(reference, "references")
        self._metric.add_batch(predictions=[prediction], references=[reference])

    def compute(self) -> dict[str, Any]:
        """The figures of all images of all processes, which must all call this, each with at least one image.

        Returns:
            `dict[str, Any]`: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `per_category_iou` and
            `per_category_accuracy`, on every process.
        """
        figures = self._metric.compute(num_labels=self.num_labels, ignore_index=self.ignore_index)
        return _from_first(figures)


def _as_image(labels: Any, name: str) -> np.ndarray:
    """A label map in the smallest type that `datasets` stores as an image without loss."""
    array = as_label_tensor(labels.cpu() if isinstance(labels, Tensor) else labels, name).numpy()
    fits = array.min(initial=0) >= 0 and array.max(initial=0) < 256
    return array.astype(np.uint8 if fits else np.int32)


def _rank_and_size() -> tuple[int, int]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _from_first(value: Any) -> Any:
    """What the first process gives, on all processes."""
    if _rank_and_size()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


__all__ = ["HubMeanIoU"]
