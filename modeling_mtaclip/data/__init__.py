# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets, image files and augmentation."""

from .augmentation import Augmentation
from .catalog import DATASETS, IGNORE_INDEX, DatasetInfo, generate_palette, palette_of
from .examples import (
    BadExamplesError,
    SegmentationData,
    SegmentationExamples,
    SegmentationStream,
    TrainingCollator,
)
from .image_files import open_image
from .loading import load_segmentation_dataset
from .scenes import make_scene


__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "Augmentation",
    "BadExamplesError",
    "DatasetInfo",
    "SegmentationData",
    "SegmentationExamples",
    "SegmentationStream",
    "TrainingCollator",
    "generate_palette",
    "load_segmentation_dataset",
    "make_scene",
    "open_image",
    "palette_of",
]
