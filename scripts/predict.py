#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Segments images, folders, globs and videos.

python scripts/predict.py photo.jpg holiday/ "frames/**/*.png" drive.mp4 --model_name_or_path FOLDER --format overlay

With several processes: torchrun --nproc_per_node 4 scripts/predict.py ...
"""

import os
import sys


# Threads that wait must not spin: they would slow down the threads that read and write images. OpenMP reads this when
# torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from modeling_mtaclip.inference.predict import predict


if __name__ == "__main__":
    sys.exit(predict(sys.argv[1:]))
