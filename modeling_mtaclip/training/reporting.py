# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of predictions: image, truth and prediction side by side, with a legend of the classes that occur."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .examination import ExaminedImage


IGNORED_COLOR = (255, 255, 255)


def colorize(label_map: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Paints a label map.

    Args:
        label_map (`np.ndarray` of shape `(height, width)`): class ids; anything outside the palette becomes white.
        palette (`Sequence[Sequence[int]]`): red, green and blue of each class, 0 … 255.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, uint8.
    """
    colors = np.array([*palette, IGNORED_COLOR], dtype=np.uint8)
    known = (label_map >= 0) & (label_map < len(palette))
    return colors[np.where(known, label_map, len(palette))]


def save_comparison(
    path: str | Path, examined: ExaminedImage, class_names: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    """Draws image, truth and prediction side by side.

    Args:
        path (`str` or `Path`): the picture, in a format that its suffix names.
        examined ([`ExaminedImage`]): the image and its label maps; ids without a class are white.
        class_names (`Sequence[str]`): in the order of the ids.
        palette (`Sequence[Sequence[int]]`): their colours, 0 … 255.
    """
    truth, prediction = examined.truth, examined.prediction
    height, width = truth.shape
    figure = Figure(figsize=(12, 4 * height / width + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    panels = {
        "image": np.asarray(examined.image.convert("RGB")),
        "truth": colorize(truth, palette),
        "prediction": colorize(prediction, palette),
    }
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel)
        axis.set_title(name)
        axis.set_axis_off()
    present = np.union1d(np.unique(truth), np.unique(prediction))
    handles = [
        Patch(facecolor=np.array(palette[index]) / 255, edgecolor="black", linewidth=0.5, label=class_names[index])
        for index in present
        if 0 <= index < len(class_names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, max(1, len(handles))), frameon=False)
    figure.savefig(path, dpi=110)


__all__ = ["colorize", "save_comparison"]
