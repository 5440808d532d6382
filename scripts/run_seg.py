#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates MTA-CLIP.

accelerate launch scripts/run_seg.py [config.yaml] [--option value ...]

Without a configuration file and a data set it trains a small model on drawn scenes, in a few minutes on two CPU cores.
On several CPU processes: torchrun --nproc_per_node 2 scripts/run_seg.py --use_cpu ...
"""

import os
import sys


# Threads that wait must not spin: on a machine with other work they would slow training down several times. OpenMP
# reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from modeling_mtaclip.training import Run, TrainingStopped, parse_run_arguments, prepare_run


def prepare() -> Run:
    """Turns bad options and bad data into a message instead of a traceback."""
    try:
        return prepare_run(*parse_run_arguments(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"run_seg.py: {error}")


if __name__ == "__main__":
    run = prepare()
    try:
        run.execute()
    except TrainingStopped as stop:
        sys.exit(f"run_seg.py: {stop}")
