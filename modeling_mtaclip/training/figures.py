# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The report's plots, each as a data URI of an SVG that a page can hold."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .examination import ExaminedImage, principal_components


# Up to so many cells, heat maps have numbers in them.
MAX_NUMBERS = 400
MAX_LABELLED_CLASSES = 40
LOSS_TERMS = ("cross_entropy", "mask", "dice", "contrastive")
STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": False,
}


def as_data_uri(content: bytes, media_type: str) -> str:
    """What an `img` element shows without a file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _finish(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return as_data_uri(buffer.getvalue(), "image/svg+xml")


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a figure in a log."""
    entries = [(entry["step"], entry[name]) for entry in history if name in entry and "step" in entry]
    return [step for step, _ in entries], [value for _, value in entries]


@matplotlib.rc_context(STYLE)
def curves(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss, its terms, scores and learning rate over the steps.

    Args:
        history (`Sequence[Mapping[str, Any]]`): the trainer's log.

    Returns:
        `str`: data URI; `None` without at least two steps of training in the log.
    """
    if len(_series(history, "loss")[0]) < 2:
        return None
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    panels = {
        "Loss": {"loss": "weighted sum of all terms and layers"},
        "Loss terms of the last layer, unweighted": {f"loss_{term}": term.replace("_", " ") for term in LOSS_TERMS},
        "Scores on the validation images": {
            "eval_mean_iou": "mean IoU",
            "eval_overall_accuracy": "pixel accuracy",
            "eval_constant_mean_iou": "mean IoU of constant prediction",
        },
        "Learning rate (highest of all groups)": {"learning_rate": "learning rate"},
    }
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for name, label in lines.items():
            steps, values = _series(history, name)
            if steps:
                axis.plot(steps, values, label=label, marker="o" if len(steps) < 25 else None, markersize=3)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=9)
    return _finish(figure)


@matplotlib.rc_context(STYLE)
def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Share of each annotated class's pixels that was predicted as each class.

    Args:
        matrix (`np.ndarray` of shape `(K, K)`): pixel counts; rows are annotations.
        class_names (`Sequence[str]`): of rows and columns.
    """
    with np.errstate(invalid="ignore"):
        shares = matrix / matrix.sum(axis=1, keepdims=True)
    size = max(5.0, 1.8 + 0.42 * len(class_names) if len(class_names) <= 20 else 3 + 0.19 * len(class_names))
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    numbers = np.round(100 * shares)
    heat_map(axis, shares, class_names, class_names, (0, 1), "Blues", numbers if matrix.size <= MAX_NUMBERS else None)
    axis.set_xlabel("predicted")
    axis.set_ylabel("annotated")
    return _finish(figure)


def heat_map(
    axis: Axes,
    values: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    limits: tuple[float, float],
    colours: str,
    numbers: np.ndarray | None,
    number_format: str = ".0f",
) -> None:
    """Draws a matrix `(rows, columns)` with names at its sides, and numbers in its cells if they are given."""
    picture = axis.imshow(values, vmin=limits[0], vmax=limits[1], cmap=colours, aspect="auto", interpolation="none")
    small = 10 if max(values.shape) <= 30 else 8
    axis.set_xticks(range(len(column_names)), column_names, rotation=90, fontsize=small)
    axis.set_yticks(range(len(row_names)), row_names, fontsize=small)
    axis.figure.colorbar(picture, ax=axis, fraction=0.04, pad=0.02)
    if numbers is None:
        return
    middle = (limits[0] + limits[1]) / 2
    for (row, column), number in np.ndenumerate(numbers):
        if np.isfinite(number):
            colour = "white" if values[row, column] > middle else "black"
            axis.text(column, row, format(number, number_format), ha="center", va="center", color=colour, fontsize=8)


@matplotlib.rc_context(STYLE)
def similarity(
    values: np.ndarray, mask_names: Sequence[str], text_names: Sequence[str], own_columns: Sequence[int | None]
) -> str:
    """Cosine of masks and texts.

    Args:
        values (`np.ndarray` of shape `(M, T)`): cosines.
        mask_names (`Sequence[str]`): of the rows.
        text_names (`Sequence[str]`): of the columns.
        own_columns (`Sequence[int | None]`): the column of each mask's own class, which gets a frame.
    """
    figure = Figure(figsize=(3.2 + 0.5 * len(text_names), 1.8 + 0.32 * len(mask_names)), layout="constrained")
    axis = figure.subplots()
    numbers = values if values.size <= MAX_NUMBERS else None
    heat_map(axis, values, mask_names, text_names, (values.min(), values.max()), "Blues", numbers, ".2f")
    for row, column in enumerate(own_columns):
        if column is not None:
            axis.add_patch(
                matplotlib.patches.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color="tab:red", lw=2)
            )
    return _finish(figure)


@matplotlib.rc_context(STYLE)
def embeddings(
    images: Sequence[ExaminedImage],
    contexts: np.ndarray,
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> tuple[str, int]:
    """Masks and class texts of some images in the plane in which they differ most.

    Args:
        images (`Sequence[ExaminedImage]`): with masks and texts.
        contexts (`np.ndarray` of shape `(K,)`): int64, the prompt context in which each class's text is shown.
        class_names (`Sequence[str]`): in the order of the label ids.
        palette (`Sequence[Sequence[int]]`): their colours, 0 … 255.

    Returns:
        `tuple[str, int]`: data URI, and the number of classes whose texts are shown: those with the most masks.
    """
    classes = np.concatenate([image.classes for image in images])
    masks = np.concatenate([image.masks for image in images])
    texts = np.mean([image.texts for image in images], axis=0)  # (C, K + 1, E)
    counts = np.bincount(classes, minlength=len(class_names))
    shown = [index for index in np.argsort(-counts, kind="stable")[:MAX_LABELLED_CLASSES] if counts[index]]
    points, shares = principal_components(np.concatenate((masks, texts[contexts[shown], shown])))
    mask_points, text_points = np.split(points, [len(masks)])
    figure = Figure(figsize=(10.5, 6.5), layout="constrained")
    axis = figure.subplots()
    colours = np.array(palette) / 255
    axis.scatter(*mask_points.T, c=colours[classes], s=22, alpha=0.75, linewidths=0.3, edgecolors="white")
    axis.scatter(*text_points.T, c=colours[shown], marker="*", s=170, edgecolors="black", linewidths=0.7)
    for place, text in enumerate(np.argsort(text_points[:, 0])):
        # Names of neighbours stand above and below in turn, so that they seldom overlap.
        offset = (7, 5 if place % 2 else -13)
        axis.annotate(class_names[shown[text]], text_points[text], xytext=offset, textcoords="offset points")
    for label, share in zip((axis.set_xlabel, axis.set_ylabel), shares, strict=True):
        label(f"{share:.0%} of the variance")
    return _finish(figure), len(shown)


__all__ = ["as_data_uri", "confusion_matrix", "curves", "embeddings", "heat_map", "similarity"]
