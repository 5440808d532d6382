#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws a grid of augmented training examples with their label maps, to look at before training.

python scripts/show_augmentation.py [config.yaml] [--option value ...]

The options are those of run_seg.py, so that the same command line shows what it would train on. `--num_pictures` is
the number of examples; the picture is saved as augmentation.png in `--output_dir`.
"""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from modeling_mtaclip.data import (
    Augmentation,
    EvaluationExamples,
    SegmentationData,
    TrainingExamples,
    load_segmentation_dataset,
)
from modeling_mtaclip.training import parse_run_arguments
from modeling_mtaclip.training.arguments import DataArguments
from modeling_mtaclip.visualization import colorize


NUM_EPOCHS = 4
# Between an image and its label map, in pixels.
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
    data = load_segmentation_dataset(
        data_arguments.dataset_name,
        data_arguments.data_dir,
        data_arguments.image_column_name,
        data_arguments.annotation_column_name,
    )
    name = Path(data_arguments.dataset_name).name
    folder = Path(training_arguments.output_dir.replace("{dataset_name}", name))
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw_grid(
        data, make_augmentation(data_arguments), training_arguments.num_pictures, training_arguments.seed
    )
    figure.savefig(folder / "augmentation.png", dpi=80)
    return folder / "augmentation.png"


def make_augmentation(arguments: DataArguments) -> Augmentation:
    """The augmentation of a run, without the normalisation of colours."""
    names = {field.name for field in fields(Augmentation)}
    options = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return Augmentation(**options, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))


def draw_grid(data: SegmentationData, augmentation: Augmentation, num_examples: int, seed: int) -> Figure:
    """Draws a row per example: itself, then as it is in the first epochs, each above its label map.

    Args:
        data ([`SegmentationData`]): with a training split.
        augmentation ([`Augmentation`]): without normalisation.
        num_examples (`int`): examples to draw, spread over the split.
        seed (`int`): of the run.
    """
    plain = EvaluationExamples(data, "train")
    augmented = TrainingExamples(data, "train", augmentation, seed)
    indices = np.linspace(0, len(plain) - 1, min(num_examples, len(plain))).astype(int).tolist()
    figure = Figure(figsize=(3 * (NUM_EPOCHS + 1), 4.5 * len(indices) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(indices), NUM_EPOCHS + 1, squeeze=False)
    present: set[int] = set()
    for axes, index in zip(grid, indices, strict=True):
        example = plain[index]
        shown = {Path(example["name"]).name: (np.asarray(example["image"]), example["annotation"])}
        for epoch in range(NUM_EPOCHS):
            augmented.set_epoch(epoch)
            crop = augmented[index]
            pixels = (crop["pixel_values"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            shown[f"epoch {epoch}"] = pixels, crop["labels"].numpy()
        for axis, (title, (pixels, labels)) in zip(axes, shown.items(), strict=True):
            axis.imshow(_stacked(pixels, np.asarray(colorize(labels, data.palette, data.ignore_index))))
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
            present.update(np.unique(labels).tolist())
    _add_legend(figure, data, sorted(present - {data.ignore_index}))
    return figure


def _stacked(image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    gap = np.full((GAP, image.shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([image, gap, label_map])


def _add_legend(figure: Figure, data: SegmentationData, labels: Sequence[int]) -> None:
    handles = [
        Patch(facecolor=np.array(data.palette[label]) / 255, edgecolor="black", label=data.class_names[label])
        for label in labels
    ]
    handles.append(Patch(facecolor="white", edgecolor="black", label="no label"))
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)


if __name__ == "__main__":
    try:
        print(f"Augmented examples: {main(sys.argv[1:])}")
    except ValueError as error:
        sys.exit(f"show_augmentation.py: {error}")
