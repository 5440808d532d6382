#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates MTA-CLIP.

accelerate launch scripts/run_seg.py [config.yaml] [--option value ...]

Without a configuration file and a data set it trains a small model on synthetic scenes (configs/toy.yaml), in a few
minutes on two CPU cores. On several CPU processes: torchrun --nproc_per_node 2 scripts/run_seg.py --use_cpu ...
"""

import os
import sys


# Threads that wait must not spin: on a machine with other work they would slow training down several times. OpenMP
# reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "--dry_run" in sys.argv:
    # A trial downloads nothing; libraries of the Hub read this when they are loaded.
    os.environ["HF_HUB_OFFLINE"] = "1"

from modeling_mtaclip.data import BadExamplesError
from modeling_mtaclip.training import TrainingStopped, dry_run, parse_run_arguments, prepare_run


def main() -> None:
    """Turns bad options, bad data and a training that can't go on into a message instead of a traceback."""
    try:
        model_options, data_options, training_options = parse_run_arguments(sys.argv[1:])
        if training_options.dry_run:
            dry_run(model_options, data_options, training_options)
            return
        # Loads and checks the data, then the model, and makes the trainer.
        run = prepare_run(model_options, data_options, training_options)
    except ValueError as error:
        sys.exit(f"run_seg.py: {error}")
    try:
        run.train()
        run.evaluate()
        run.save_results()
    except (TrainingStopped, BadExamplesError) as stop:
        # What a data loader's worker raises comes with the worker's traceback before it.
        sys.exit(f"run_seg.py: {str(stop).rpartition('BadExamplesError: ')[2]}")


if __name__ == "__main__":
    main()
