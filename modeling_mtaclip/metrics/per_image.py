# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix of all images, the score of each, and how far the mean IoU depends on the choice of images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .confusion import PairCounts, areas_of, gathered, iou_of, mean_over_present


@dataclass(frozen=True)
class ImageScore:
    """How well one image is segmented: its mean IoU over the classes that are annotated or predicted in it, NaN if
    there is none, and the class with the lowest IoU, the first of equals."""

    name: str
    mean_iou: float
    worst_class: int | None


class PerImageScores:
    """One count of each image, which gives its score and the `confusion_matrix` `(K + 1, K + 1)` of all.

    Of each image and class the pixels in the intersection, predicted and annotated are kept: 7 MB for 2,000 images and
    150 classes. Reference pixels of the value `ignore_index` are left out; `None` for no such.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = 255) -> None:
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.confusion_matrix = torch.zeros(num_labels + 1, num_labels + 1, dtype=torch.int64)
        self._areas: list[tuple[str, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self._areas)

    def __contains__(self, name: str) -> bool:
        return any(name == each for each, _ in self._areas)

    def add(self, *, prediction: Any, reference: Any, name: str) -> ImageScore:
        """Adds one image, two integer arrays or tensors `(height, width)` of class indices, and returns its score; a
        ValueError if they are no label maps of one size."""
        counts = PairCounts()
        counts.add(reference, prediction)
        matrix = counts.confusion_matrix(self.num_labels, self.ignore_index)
        self.confusion_matrix += matrix
        self._areas.append((name, areas_of(matrix)))
        return _score(*self._areas[-1])

    def synchronize(self) -> None:
        """Brings the images of all processes together, which must all call this; each then has all."""
        shares = gathered((self.confusion_matrix, self._areas))
        self.confusion_matrix = torch.stack([matrix for matrix, _ in shares]).sum(dim=0)
        self._areas = [image for _, areas in shares for image in areas]

    def scores(self) -> list[ImageScore]:
        """Scores of all images, the worst first; those without any class come last."""
        scores = [_score(*each) for each in self._areas]
        return sorted(scores, key=lambda score: (np.isnan(score.mean_iou), score.mean_iou, score.name))

    def bootstrap_interval(
        self, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Confidence interval of the mean IoU of all images, by the percentiles of resampled sets of images.

        Images are drawn with replacement, as many as there are (Efron, "Bootstrap Methods: Another Look at the
        Jackknife", 1979). The interval says how far the figure depends on which images there happen to be, not on the
        seed of the training.

        `confidence` is the share of the `num_resamples` drawn sets that lie within the interval. Its ends are NaN
        without annotated or predicted pixels.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must lie between 0 and 1, but got {confidence}.")
        if not self._areas:
            return float("nan"), float("nan")
        # In one order, so that no figure depends on that of the images or on the processes.
        areas = np.stack([areas for _, areas in sorted(self._areas, key=lambda each: (each[0], each[1].tobytes()))])
        draws = np.random.default_rng(seed).multinomial(len(areas), np.full(len(areas), 1 / len(areas)), num_resamples)
        sums = (draws.astype(np.float64) @ areas.reshape(len(areas), -1)).reshape(num_resamples, 3, -1)
        means = np.array([mean_over_present(iou) for iou in iou_of(sums)])
        means = means[~np.isnan(means)]
        tail = (1 - confidence) / 2
        low, high = np.quantile(means, [tail, 1 - tail]) if len(means) else (np.nan, np.nan)
        return float(low), float(high)


def _score(name: str, areas: np.ndarray) -> ImageScore:
    iou = iou_of(areas)
    worst_class = None if np.isnan(iou).all() else int(np.nanargmin(iou))
    return ImageScore(name, float(mean_over_present(iou)), worst_class)


__all__ = ["ImageScore", "PerImageScores"]
