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
from collections.abc import Sequence
from dataclasses import fields
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
    model_arguments, data_arguments, training_arguments = parse_run_arguments(arguments)
    options = vars(model_arguments) | vars(data_arguments) | {"streaming": False}
    names = inspect.signature(load_segmentation_dataset).parameters
    data = load_segmentation_dataset(data_arguments.dataset_name, **_selected(options, names))
    normalization = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
    names = [field.name for field in fields(Augmentation)]
    augmentation = Augmentation(**_selected(options | normalization, names))
    seed = training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed
    plain, augmented = SegmentationExamples(data, "train"), SegmentationExamples(data, "train", augmentation, seed)
    folder = Path(training_arguments.output_dir.replace("{dataset_name}", Path(data_arguments.dataset_name).name))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    number = min(training_arguments.num_pictures, len(plain))
    for place, index in enumerate(np.linspace(0, len(plain) - 1, number).astype(int).tolist()):
        paths.append(folder / f"augmentation_{place}.png")
        draw_example(plain, augmented, index).save(paths[-1])
    return paths


def _selected(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def draw_example(plain: SegmentationExamples, augmented: SegmentationExamples, index: int) -> Image.Image:
    """Draws an example as it is, then as it is in the first epochs, each above its label map."""
    example = plain[index]
    pictures, label_maps = {Path(example["name"]).name: example["image"]}, [example["annotation"]]
    for epoch in range(NUM_EPOCHS):
        augmented.set_epoch(epoch)
        crop = augmented[index]
        pictures[f"epoch {epoch}"] = crop["pixel_values"].mul(255).round().byte().permute(1, 2, 0)
        label_maps.append(crop["labels"])
    palette = plain.data.palette
    panels = [
        (title, Image.fromarray(np.vstack([picture, colorize(labels, palette)])))
        for (title, picture), labels in zip(pictures.items(), label_maps, strict=True)
    ]
    return compare(panels, plain.data.class_names, palette, label_maps)


if __name__ == "__main__":
    try:
        print("Augmented examples:", *main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"show_augmentation.py: {error}")
