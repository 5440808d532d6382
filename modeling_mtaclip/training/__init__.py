# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation of MTA-CLIP with transformers' Trainer; `scripts/run_seg.py` is its command line."""

from .arguments import DataArguments, ModelArguments, MTAClipTrainingArguments, parse_run_arguments
from .checkpoints import TrainingStopped
from .dry_run import dry_run
from .run import Run, prepare_run
from .trainer import MTAClipTrainer


__all__ = [
    "DataArguments",
    "MTAClipTrainer",
    "MTAClipTrainingArguments",
    "ModelArguments",
    "Run",
    "TrainingStopped",
    "dry_run",
    "parse_run_arguments",
    "prepare_run",
]
