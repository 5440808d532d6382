# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Where models start from: checkpoints of other code turned into ours, backbones, text encoders and tokenizers."""

from .mask2former import config_from_mask2former, convert_mask2former_state_dict
from .original import config_from_original, convert_original_state_dict, load_original_weights
from .renaming import ConversionReport


__all__ = [
    "ConversionReport",
    "config_from_mask2former",
    "config_from_original",
    "convert_mask2former_state_dict",
    "convert_original_state_dict",
    "load_original_weights",
]
