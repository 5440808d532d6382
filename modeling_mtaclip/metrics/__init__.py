# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of semantic segmentation: mean IoU as an `evaluate` metric, and what goes beyond it."""

from .boundary import BoundaryScores
from .confusion import PairCounts, category_iou, constant_prediction, iou_figures, json_ready, summary_figures
from .mean_iou import MeanIoU
from .per_image import ImageScore, PerImageScores


__all__ = [
    "BoundaryScores",
    "ImageScore",
    "MeanIoU",
    "PairCounts",
    "PerImageScores",
    "category_iou",
    "constant_prediction",
    "iou_figures",
    "json_ready",
    "summary_figures",
]
