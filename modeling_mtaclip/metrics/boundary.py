# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""How well the boundaries of classes are met: boundary IoU and boundary F-score.

Pixels whose reference is ignored belong to no class in either map, and borders to them are no boundaries: nothing is
known about the classes there.

Boundary IoU of a class (Cheng et al., CVPR 2021, arXiv 2103.16562) is the IoU of two bands: the annotated pixels of
the class that are near to the outline of its annotated area, and the same of the prediction. A pixel is near when a
square of `2 d + 1` pixels around it leaves the area, where the image's border is an outline too, and d is 2 % of the
image's diagonal, rounded (0.5 % for Cityscapes). It is taken of pixels summed over all images, like the IoU.

The boundary F-score (Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013; the
threshold of 0.75 % of the diagonal is that of MATLAB's `bfscore`) compares contours: the pixels of a class that have
one of another class among their eight neighbors. Precision is the share of the predicted contour that is within the
threshold, a Euclidean distance, of the annotated contour, recall the reverse, and the score is their harmonic mean.
The score of a class is the mean over the images in which it has a contour of either kind (with only one, it scores 0).
"""

from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from .confusion import PairCounts, as_label_pair, class_or_other, gathered, iou_figures, mean_over_present


BOUNDARY_IOU_RATIO = 0.02
CITYSCAPES_BOUNDARY_IOU_RATIO = 0.005
BOUNDARY_F_SCORE_RATIO = 0.0075


class BoundaryScores:
    """Boundary IoU and boundary F-score, accumulated image by image; the module has the definitions.

    Args:
        num_labels (`int`): number of classes, K.
        ignore_index (`int`, *optional*, defaults to 255): reference value of pixels to leave out; `None` for no such.
        iou_ratio (`float`, defaults to 0.02): width of the bands, as a share of the image's diagonal.
        f_score_ratio (`float`, defaults to 0.0075): distance up to which contours match, as a share of the diagonal.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int | None = 255,
        iou_ratio: float = BOUNDARY_IOU_RATIO,
        f_score_ratio: float = BOUNDARY_F_SCORE_RATIO,
    ) -> None:
        if not (iou_ratio > 0 and f_score_ratio > 0):
            raise ValueError(f"The ratios must be above 0, but got {iou_ratio} and {f_score_ratio}.")
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.iou_ratio, self.f_score_ratio = iou_ratio, f_score_ratio
        self.band_counts = PairCounts()
        # Sum of the F-scores of each class, and the number of images they are from.
        self._f_scores = np.zeros((2, self.num_labels))

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Adds one image: two integer arrays or tensors `(height, width)` of class indices; a ValueError if they are
        no label maps of one size."""
        reference, prediction = as_label_pair(reference, prediction)
        if reference.dim() != 2:
            raise ValueError(f"Label maps of one size (height, width) are needed, got {tuple(reference.shape)}.")
        if not reference.numel():
            return
        # No label equals `None`.
        void = reference.cpu().numpy() == self.ignore_index
        maps = [class_or_other(labels.long(), self.num_labels).cpu().numpy() for labels in (reference, prediction)]
        diagonal = float(np.hypot(*void.shape))
        radius = max(1, round(self.iou_ratio * diagonal))
        bands = [near_other_class(labels, void, radius, border=True) for labels in maps]
        self.band_counts.add(*(np.where(*each, self.num_labels) for each in zip(bands, maps, strict=True)))
        contours = [near_other_class(labels, void, 1, border=False) & (labels < self.num_labels) for labels in maps]
        self._add_contours(*map(_points, contours, maps), tolerance=self.f_score_ratio * diagonal)

    def _add_contours(self, annotated: np.ndarray, predicted: np.ndarray, tolerance: float) -> None:
        recall = self._share_of_matches(annotated, predicted, tolerance)
        precision = self._share_of_matches(predicted, annotated, tolerance)
        with np.errstate(invalid="ignore"):
            scores = np.nan_to_num(2 * recall * precision / (recall + precision))
        occurs = [np.isin(np.arange(self.num_labels), points[:, 2]) for points in (annotated, predicted)]
        self._f_scores += scores, occurs[0] | occurs[1]

    def _share_of_matches(self, points: np.ndarray, others: np.ndarray, tolerance: float) -> np.ndarray:
        """Share of the points of each class that have another of the class within the tolerance; 0 without points."""
        if not len(points) or not len(others):
            return np.zeros(self.num_labels)
        # Classes are a third dimension in which they are out of each other's reach.
        scale = np.array([1, 1, 2 * tolerance + 2])
        bound = np.nextafter(tolerance, np.inf)
        distances, _ = cKDTree(others * scale).query(points * scale, distance_upper_bound=bound)
        close = np.bincount(points[np.isfinite(distances), 2], minlength=self.num_labels)
        return close / np.maximum(np.bincount(points[:, 2], minlength=self.num_labels), 1)

    def synchronize(self) -> None:
        """Adds up the images of all processes, which must all call this once, before `compute`. Sums of F-scores may
        differ by rounding (1e-15) from those of one process."""
        self.band_counts.synchronize()
        self._f_scores = np.sum(gathered(self._f_scores), axis=0)

    def compute(self) -> dict[str, np.ndarray | np.float64]:
        """The figures of all images: `boundary_iou` and `boundary_f_score`, means over the classes that occur, and
        `per_category_boundary_iou` and `per_category_boundary_f_score` `(K,)`, NaN for classes without boundary."""
        iou = iou_figures(self.band_counts.confusion_matrix(self.num_labels, ignore_index=None))
        sums, images = self._f_scores
        with np.errstate(invalid="ignore"):
            f_score = sums / images
        return {
            "boundary_iou": iou["mean_iou"],
            "boundary_f_score": mean_over_present(f_score),
            "per_category_boundary_iou": iou["per_category_iou"],
            "per_category_boundary_f_score": f_score,
        }


def _points(contour: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Row, column and class of the pixels of a contour, `(n, 3)`."""
    return np.column_stack([*contour.nonzero(), labels[contour]])


def near_other_class(labels: np.ndarray, void: np.ndarray, radius: int, border: bool) -> np.ndarray:
    """Which pixels `(height, width)` have one of another class within a square of `2 * radius + 1` pixels; `void` ones
    belong to no class and are never near, and outside of the image is another class if `border`."""
    lowest, highest = -1, labels.max() + 1
    window = {"size": 2 * radius + 1, "mode": "constant"}
    largest = ndimage.maximum_filter(np.where(void, lowest, labels), cval=lowest, **window)
    outside = lowest if border else highest
    smallest = ndimage.minimum_filter(np.where(void, highest, labels), cval=outside, **window)
    return ~void & ((smallest != labels) | (largest != labels))


__all__ = ["BOUNDARY_F_SCORE_RATIO", "BOUNDARY_IOU_RATIO", "CITYSCAPES_BOUNDARY_IOU_RATIO", "BoundaryScores"]
