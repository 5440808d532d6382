#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures the speed and memory of MTA-CLIP beside transformers' Mask2Former, on random weights and images.

python scripts/benchmark.py [--mode train|infer|text|postprocess|data|parts|scaling|all] [--dtype bfloat16]
"""

import os
import sys


# Threads that wait must not spin: on a machine with other work they would slow everything down several times. OpenMP
# reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from modeling_mtaclip.benchmarking import main


if __name__ == "__main__":
    main(sys.argv[1:])
