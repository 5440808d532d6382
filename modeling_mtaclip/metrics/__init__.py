# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of semantic segmentation: mean IoU as an `evaluate` metric, and what goes beyond it."""

from .boundary import BoundaryScores
from .figures import CITYSCAPES_CATEGORIES, category_iou, frequency_weighted_iou
from .hub import HubMeanIoU
from .mean_iou import MeanIoU, iou_figures
from .pair_counts import PairCounts
from .per_image import ImageScore, PerImageScores


__all__ = [
    "CITYSCAPES_CATEGORIES",
    "BoundaryScores",
    "HubMeanIoU",
    "ImageScore",
    "MeanIoU",
    "PairCounts",
    "PerImageScores",
    "category_iou",
    "frequency_weighted_iou",
    "iou_figures",
]
