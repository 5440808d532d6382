# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Where models start from: checkpoints of other code turned into ours, backbones, text encoders and tokenizers."""

from .backbones import make_backbone_config
from .checkpoints import Checkpoint, load_checkpoint, parse_python_config
from .clip import load_tokenizer, make_tokenizer, small_text_config
from .segmentation_models import convert_original_state_dict, fields_from_mask2former
from .starting_points import ModelBundle, build_original, from_pretrained_parts
from .weights import LoadingReport


__all__ = [
    "Checkpoint",
    "LoadingReport",
    "ModelBundle",
    "build_original",
    "convert_original_state_dict",
    "fields_from_mask2former",
    "from_pretrained_parts",
    "load_checkpoint",
    "load_tokenizer",
    "make_backbone_config",
    "make_tokenizer",
    "parse_python_config",
    "small_text_config",
]
