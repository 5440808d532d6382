# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory beside transformers' Mask2Former; `scripts/benchmark.py` is the command line."""

from .command import main


__all__ = ["main"]
