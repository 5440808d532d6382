# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets and augmentation."""

from .augmentation import Augmentation
from .catalog import generate_palette
from .examples import (
    BadExamplesError,
    EvaluationExamples,
    EvaluationStream,
    TrainingExamples,
    TrainingStream,
    collate_examples,
)
from .image_files import ImageFiles, find_image_files, open_image
from .loading import load_segmentation_dataset
from .reading import IGNORE_INDEX, SegmentationData
from .scenes import make_scene


__all__ = [
    "IGNORE_INDEX",
    "Augmentation",
    "BadExamplesError",
    "EvaluationExamples",
    "EvaluationStream",
    "ImageFiles",
    "SegmentationData",
    "TrainingExamples",
    "TrainingStream",
    "collate_examples",
    "find_image_files",
    "generate_palette",
    "load_segmentation_dataset",
    "make_scene",
    "open_image",
]
