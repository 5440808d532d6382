# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Inference: whole images, sliding windows and test-time augmentation, with exact scores in little memory."""

from .options import TTA_SCALES, InferenceOptions
from .phrases import PhraseMap, segment_phrases
from .preparing import PreparedImage, prepare_image
from .segmenter import Segmenter


__all__ = [
    "TTA_SCALES",
    "InferenceOptions",
    "PhraseMap",
    "PreparedImage",
    "Segmenter",
    "prepare_image",
    "segment_phrases",
]
