#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws augmented training examples with their label maps, to look at before training.

python scripts/show_augmentation.py [config.yaml] [--option value ...]

The options are those of run_seg.py, so that the same command line shows what it would train on. `--num_pictures` is
the number of examples; their pictures are saved as augmentation_0.png, augmentation_1.png, … in `--output_dir`.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modeling_mtaclip.data import Augmentation, SegmentationExamples, load_segmentation_dataset
from modeling_mtaclip.training import parse_run_arguments
from modeling_mtaclip.visualization import colorize, compare


NUM_EPOCHS = 4


def main(arguments: Sequence[str]) -> list[Path]:
    """Draws the pictures that a command line asks for and returns their paths; bad options are a `ValueError`."""
    model, data, training = parse_run_arguments(arguments)
    options = vars(model) | vars(data) | {"size": data.size, "streaming": False}
    options |= {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
    loaded = load_segmentation_dataset(data.dataset_name, **_taken_by(load_segmentation_dataset, options))
    seed = training.seed if training.data_seed is None else training.data_seed
    plain = SegmentationExamples(loaded, "train")
    augmented = SegmentationExamples(loaded, "train", Augmentation(**_taken_by(Augmentation, options)), seed)
    folder = Path(training.output_dir.replace("{dataset_name}", Path(data.dataset_name).name))
    folder.mkdir(parents=True, exist_ok=True)
    number = min(training.num_pictures, len(plain))
    paths = [folder / f"augmentation_{place}.png" for place in range(number)]
    for path, index in zip(paths, np.linspace(0, len(plain) - 1, number).astype(int).tolist(), strict=True):
        draw_example(plain, augmented, index).save(path)
    return paths


def _taken_by(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in inspect.signature(function).parameters if name in options}


def draw_example(plain: SegmentationExamples, augmented: SegmentationExamples, index: int) -> Image.Image:
    """Draws an example as it is, then as it is in the first epochs, each above its label map."""
    example, palette = plain[index], plain.data.palette
    shown = [(Path(example["name"]).name, example["image"], example["annotation"])]
    for epoch in range(NUM_EPOCHS):
        augmented.set_epoch(epoch)
        crop = augmented[index]
        pixels = crop["pixel_values"].mul(255).round().byte().permute(1, 2, 0)
        shown.append((f"epoch {epoch}", pixels, crop["labels"]))
    panels = [
        (title, Image.fromarray(np.vstack([image, colorize(labels, palette)]))) for title, image, labels in shown
    ]
    return compare(panels, plain.data.class_names, palette, [labels for *_, labels in shown])


if __name__ == "__main__":
    try:
        print("Augmented examples:", *main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"show_augmentation.py: {error}")
