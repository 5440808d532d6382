# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets and augmentation."""

from .augmentation import Augmentation
from .examples import EvaluationExamples, TrainingExamples, collate_examples
from .loading import IGNORE_INDEX, SegmentationData, load_segmentation_dataset, read_example


__all__ = [
    "IGNORE_INDEX",
    "Augmentation",
    "EvaluationExamples",
    "SegmentationData",
    "TrainingExamples",
    "collate_examples",
    "load_segmentation_dataset",
    "read_example",
]
