# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Where models start from: checkpoints of other code turned into ours, backbones, text encoders and tokenizers."""

from .account import WeightAccount
from .mask2former import config_from_mask2former, convert_mask2former_state_dict
from .mmengine import load_checkpoint
from .original import config_from_original, convert_original_state_dict
from .parts import ModelParts, build_original, from_pretrained_parts
from .renaming import ConversionReport


__all__ = [
    "ConversionReport",
    "ModelParts",
    "WeightAccount",
    "build_original",
    "config_from_mask2former",
    "config_from_original",
    "convert_mask2former_state_dict",
    "convert_original_state_dict",
    "from_pretrained_parts",
    "load_checkpoint",
]
