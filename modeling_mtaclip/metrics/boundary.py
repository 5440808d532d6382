# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""How well the boundaries of classes are met: boundary IoU and boundary F-score.

Pixels whose reference is ignored belong to no class in either map, and borders to them are no boundaries: nothing is
known about the classes there.

Boundary IoU of a class (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR
2021, arXiv 2103.16562) is the IoU of two bands: the annotated pixels of the class that are near to the outline of its
annotated area, and the predicted ones that are near to the outline of its predicted area. A pixel is near when a
square of `2 d + 1` pixels around it leaves the area, where the image's border is an outline too, and d is 2 % of the
image's diagonal, rounded (0.5 % in the authors' figures of Cityscapes). Like the IoU of classes, it is taken of pixels
summed over all images.

The boundary F-score (Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013; its
threshold of 0.75 % of the image's diagonal is that of MATLAB's `bfscore`; Perazzi et al., "A Benchmark Dataset and
Evaluation Methodology for Video Object Segmentation", CVPR 2016, use 0.8 %) compares contours: the pixels of a class
that have one of another class among their eight neighbours. Precision is the share of the predicted contour that is
within a Euclidean distance of the threshold from the annotated contour, recall the reverse, and the score is their
harmonic mean. The score of a class is the mean of those of the images in which it has an annotated or a predicted
contour (an image in which it has only one of both scores 0).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, distributed

from .mean_iou import iou_figures, mean_over_present
from .pair_counts import PairCounts, as_label_tensor, place_by_class, relabel


BOUNDARY_IOU_RATIO = 0.02
CITYSCAPES_BOUNDARY_IOU_RATIO = 0.005
BOUNDARY_F_SCORE_RATIO = 0.0075


def sliding_maximum(values: Tensor, window: int, dim: int) -> Tensor:
    """Maximum of each `window` neighbours along a dimension, which gets shorter by `window - 1`.

    Takes a number of passes that is logarithmic in `window`.

    Args:
        values (`Tensor`): of any shape and number type.
        window (`int`): at least 1 and at most the length of the dimension.
        dim (`int`): the dimension.

    Returns:
        `Tensor` of the type of `values`.
    """
    size = 1
    while size < window:
        step = min(size, window - size)
        length = values.shape[dim] - step
        values = torch.maximum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        size += step
    return values


def near_other_class(labels: Tensor, void: Tensor, radius: int, border: bool) -> Tensor:
    """Which pixels have a pixel of another class within a square of `2 * radius + 1` pixels.

    Args:
        labels (`Tensor` of shape `(height, width)` and an integer type): classes.
        void (`Tensor` of shape `(height, width)` and type `torch.bool`): pixels that belong to no class.
        radius (`int`): in pixels, at least 1.
        border (`bool`): whether what is outside of the image counts as another class.

    Returns:
        `Tensor` of shape `(height, width)` and type `torch.bool`; `False` at void pixels.
    """
    labels = labels.to(torch.int32)
    lowest, highest = -1, torch.iinfo(torch.int32).max
    neutral, outside = (lowest, highest if border else lowest)
    found = torch.zeros_like(void)
    for sign in (1, -1):
        # The largest label first, then the smallest as the largest of the negated ones.
        signed = labels if sign == 1 else highest - labels
        signed = torch.where(void, neutral, signed)
        window = torch.nn.functional.pad(signed, [radius] * 4, value=outside)
        for dim in (0, 1):
            window = sliding_maximum(window, 2 * radius + 1, dim)
        found |= window != signed
    return found & ~void


def contour_matches(contour: Tensor, other: Tensor, tolerance: float, num_labels: int) -> np.ndarray:
    """How many contour pixels of each class are close to a contour pixel of this class in another map.

    Args:
        contour (`Tensor` of shape `(height, width)` and an integer type): the class at contour pixels and `num_labels`
            elsewhere.
        other (`Tensor` like `contour`): the other map.
        tolerance (`float`): Euclidean distance in pixels up to which pixels are close.
        num_labels (`int`): number of classes, K.

    Returns:
        `np.ndarray` of shape `(K,)` and type `int64`.
    """
    points, targets = (_contour_points(x, tolerance, num_labels) for x in (contour, other))
    if not len(points) or not len(targets):
        return np.zeros(num_labels, dtype=np.int64)
    bound = np.nextafter(tolerance, np.inf)
    distances, _ = cKDTree(targets).query(points, distance_upper_bound=bound)
    classes = contour[contour < num_labels].cpu().numpy()
    return np.bincount(classes[np.isfinite(distances)], minlength=num_labels)


def _contour_points(contour: Tensor, tolerance: float, num_labels: int) -> np.ndarray:
    """Coordinates of contour pixels, with the class as a third one along which classes are out of reach."""
    inside = contour < num_labels
    points = torch.cat([inside.nonzero(), contour[inside][:, None]], dim=1).cpu().numpy().astype(np.float64)
    points[:, 2] *= 2 * tolerance + 2
    return points


class BoundaryScores:
    """Boundary IoU and boundary F-score, accumulated image by image in constant memory.

    The module's docstring has the definitions.

    Args:
        num_labels (`int`): number of classes, K.
        ignore_index (`int`, *optional*, defaults to 255): reference value of pixels to leave out; `None` for no such.
        label_map (`Mapping[int, int]`, *optional*): see [`relabel`]; for references only.
        reduce_labels (`bool`, *optional*, defaults to `False`): see [`relabel`]; for references only.
        iou_ratio (`float`, *optional*, defaults to 0.02): width of the bands, as a share of the image's diagonal.
        f_score_ratio (`float`, *optional*, defaults to 0.0075): distance up to which contours match, as a share of
            the image's diagonal.

    Raises:
        ValueError: if a ratio is not positive.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int | None = 255,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool = False,
        iou_ratio: float = BOUNDARY_IOU_RATIO,
        f_score_ratio: float = BOUNDARY_F_SCORE_RATIO,
    ) -> None:
        if iou_ratio <= 0 or f_score_ratio <= 0:
            raise ValueError(
                f"`iou_ratio` and `f_score_ratio` must be above 0, but got {iou_ratio} and {f_score_ratio}."
            )
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.label_map = label_map
        self.reduce_labels = reduce_labels
        self.iou_ratio = iou_ratio
        self.f_score_ratio = f_score_ratio
        self.band_counts = PairCounts(num_labels + 1)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.band_counts.reset()
        self._f_score_sums = np.zeros(self.num_labels)
        self._f_score_images = np.zeros(self.num_labels, dtype=np.int64)

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Add one image.

        Args:
            prediction (integer array or `Tensor` of shape `(height, width)`): predicted class indices.
            reference (integer array or `Tensor` of shape `(height, width)`): annotated class indices.

        Raises:
            ValueError: if these are no label maps of one size.
        """
        prediction = as_label_tensor(prediction, "predictions")
        reference = as_label_tensor(reference, "references").to(prediction.device)
        if prediction.dim() != 2 or prediction.shape != reference.shape:
            raise ValueError(
                "A prediction and its reference must be label maps of one size (height, width), but have shapes "
                f"{tuple(prediction.shape)} and {tuple(reference.shape)}."
            )
        if not reference.numel():
            return
        reference = relabel(reference, self.label_map, self.reduce_labels)
        void = torch.zeros_like(reference, dtype=torch.bool)
        if self.ignore_index is not None:
            void = reference == self.ignore_index
        maps = [place_by_class(labels.to(torch.int64), self.num_labels) for labels in (reference, prediction)]
        diagonal = float(np.hypot(*reference.shape))
        self._add_bands(maps, void, max(1, round(self.iou_ratio * diagonal)))
        self._add_contours(maps, void, self.f_score_ratio * diagonal)

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Add images, which may differ in size; see [`BoundaryScores.add`]."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def _add_bands(self, maps: list[Tensor], void: Tensor, radius: int) -> None:
        reference, prediction = (
            torch.where(near_other_class(labels, void, radius, border=True), labels, self.num_labels)
            for labels in maps
        )
        self.band_counts.add(reference, prediction)

    def _add_contours(self, maps: list[Tensor], void: Tensor, tolerance: float) -> None:
        reference, prediction = (
            torch.where(near_other_class(labels, void, 1, border=False), labels, self.num_labels) for labels in maps
        )
        annotated, predicted = (
            torch.bincount(x.flatten(), minlength=self.num_labels + 1)[:-1].cpu().numpy()
            for x in (reference, prediction)
        )
        recalled = contour_matches(reference, prediction, tolerance, self.num_labels)
        precise = contour_matches(prediction, reference, tolerance, self.num_labels)
        recall, precision = recalled / np.maximum(annotated, 1), precise / np.maximum(predicted, 1)
        both = recall + precision
        self._f_score_sums += np.where(both > 0, 2 * recall * precision / np.where(both > 0, both, 1), 0)
        self._f_score_images += (annotated > 0) | (predicted > 0)

    def synchronize(self, group: distributed.ProcessGroup | None = None) -> None:
        """Add up the images of all processes; each process then holds the sums. Call it once, before `compute`.

        All processes of the group must call it. It does nothing where `torch.distributed` is not initialised. The sums
        of F-scores are of floats: they may differ by rounding (1e-15) from those of one process.

        Args:
            group (`torch.distributed.ProcessGroup`, *optional*): the processes; all by default.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        self.band_counts.synchronize(group)
        shares: list[tuple[np.ndarray, ...]] = [()] * distributed.get_world_size(group)
        distributed.all_gather_object(shares, (self._f_score_sums, self._f_score_images), group=group)
        self._f_score_sums, self._f_score_images = (np.sum(values, axis=0) for values in zip(*shares, strict=True))

    def compute(self) -> dict[str, np.ndarray | np.float64]:
        """The figures of all images since the last call, which are then forgotten.

        Returns:
            `dict[str, np.ndarray | np.float64]`: `boundary_iou` and `boundary_f_score`, means over the classes that
            occur, and `per_category_boundary_iou` and `per_category_boundary_f_score` of shape `(K,)`, with NaN for
            classes without boundary.
        """
        iou = iou_figures(self.band_counts.confusion_matrix(self.num_labels, ignore_index=None))
        with np.errstate(invalid="ignore"):
            f_score = self._f_score_sums / self._f_score_images
        self.reset()
        return {
            "boundary_iou": iou["mean_iou"],
            "boundary_f_score": mean_over_present(f_score),
            "per_category_boundary_iou": iou["per_category_iou"],
            "per_category_boundary_f_score": f_score,
        }


__all__ = [
    "BOUNDARY_F_SCORE_RATIO",
    "BOUNDARY_IOU_RATIO",
    "CITYSCAPES_BOUNDARY_IOU_RATIO",
    "BoundaryScores",
    "contour_matches",
    "near_other_class",
    "sliding_maximum",
]
