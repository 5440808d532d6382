# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Inference: whole images, sliding windows and test-time augmentation, with exact scores in little memory."""

from .options import TTA_SCALES, InferenceOptions
from .segmenter import ImageMasks, PhraseMap, PreparedImage, Segmenter, prepare_image, segment_phrases


__all__ = [
    "TTA_SCALES",
    "ImageMasks",
    "InferenceOptions",
    "PhraseMap",
    "PreparedImage",
    "Segmenter",
    "prepare_image",
    "segment_phrases",
]
