# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other code, turned into ours."""

from .original import ConversionReport, config_from_original, convert_original_state_dict, load_original_weights


__all__ = ["ConversionReport", "config_from_original", "convert_original_state_dict", "load_original_weights"]
