#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws augmented training examples with their label maps, to look at before training.

python scripts/show_augmentation.py [config.yaml] [--option value ...]

The options are those of run_seg.py, so that the same command line shows what it would train on. `--num_pictures` is
the number of examples; the picture is saved as augmentation.png in `--output_dir`.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_mtaclip.data import (
    Augmentation,
    SegmentationData,
    SegmentationExamples,
    load_segmentation_dataset,
)
from modeling_mtaclip.training import parse_run_arguments
from modeling_mtaclip.training.arguments import DataArguments
from modeling_mtaclip.visualization import colorize, compare


NUM_EPOCHS = 4
# Between pictures that lie above one another, in pixels.
GAP = 4


def main(arguments: Sequence[str]) -> Path:
    """Draws the picture.

    Args:
        arguments (`Sequence[str]`): of the command line, without the program's name.

    Returns:
        `Path`: the picture's.

    Raises:
        ValueError: options or data that can't be used.
    """
    _, data_arguments, training_arguments = parse_run_arguments(arguments)
    names = inspect.signature(load_segmentation_dataset).parameters
    options = {name: getattr(data_arguments, name) for name in names if hasattr(data_arguments, name)}
    data = load_segmentation_dataset(data_arguments.dataset_name, **options | {"streaming": False})
    name = Path(data_arguments.dataset_name).name
    folder = Path(training_arguments.output_dir.replace("{dataset_name}", name))
    folder.mkdir(parents=True, exist_ok=True)
    augmentation = make_augmentation(data_arguments)
    picture = draw_examples(data, augmentation, training_arguments.num_pictures, training_arguments.seed)
    picture.save(folder / "augmentation.png")
    return folder / "augmentation.png"


def make_augmentation(arguments: DataArguments) -> Augmentation:
    """The augmentation of a run, without the normalization of colors."""
    names = {field.name for field in fields(Augmentation)}
    options = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return Augmentation(**options, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))


def draw_examples(data: SegmentationData, augmentation: Augmentation, num_examples: int, seed: int) -> Image.Image:
    """Draws a row per example: itself, then as it is in the first epochs, each above its label map.

    Args:
        data ([`SegmentationData`]): with a training split.
        augmentation ([`Augmentation`]): without normalization.
        num_examples (`int`): examples to draw, spread over the split.
        seed (`int`): of the run.
    """
    plain = SegmentationExamples(data, "train")
    augmented = SegmentationExamples(data, "train", augmentation, seed)
    rows = []
    for index in np.linspace(0, len(plain) - 1, min(num_examples, len(plain))).astype(int).tolist():
        example = plain[index]
        pictures, label_maps = {Path(example["name"]).name: example["image"]}, [example["annotation"]]
        for epoch in range(NUM_EPOCHS):
            augmented.set_epoch(epoch)
            crop = augmented[index]
            pixels = (crop["pixel_values"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            pictures[f"epoch {epoch}"] = Image.fromarray(pixels)
            label_maps.append(crop["labels"].numpy())
        panels = [
            (title, above([picture, colorize(labels, data.palette)]))
            for (title, picture), labels in zip(pictures.items(), label_maps, strict=True)
        ]
        rows.append(compare(panels, data.class_names, data.palette, label_maps))
    return above(rows)


def above(pictures: Sequence[Image.Image]) -> Image.Image:
    """Puts pictures above one another."""
    height = sum(picture.height for picture in pictures) + GAP * (len(pictures) - 1)
    whole, y = Image.new("RGB", (max(picture.width for picture in pictures), height), "white"), 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height + GAP
    return whole


if __name__ == "__main__":
    try:
        print(f"Augmented examples: {main(sys.argv[1:])}")
    except ValueError as error:
        sys.exit(f"show_augmentation.py: {error}")
