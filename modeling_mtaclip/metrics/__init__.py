# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of semantic segmentation: mean IoU and what goes beyond it."""

from .mean_iou import MeanIoU, iou_figures
from .pair_counts import PairCounts


__all__ = ["MeanIoU", "PairCounts", "iou_figures"]
