# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""`report.html`: what a run's training and evaluation came to, in one page that needs no other file and no network.

The page is `templates/report.html.jinja`; this file computes what it shows.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from ..data import generate_palette
from ..metrics.per_image import ImageScore
from ..visualization import Color, colorize, error_map, legend_entries, plot_alignment
from .evaluated_images import EvaluatedImage
from .evaluation import SegmentationScores
from .model_card import public_options


if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_CONFUSIONS = 15
# Best images, and as many of the worst.
NUM_SHOWN = 4
MAX_SHOWN_STARS = 40
LOSS_TERMS = ("cross_entropy", "mask", "dice", "contrastive", "class_mask", "class_dice")
CURVES = {
    "Loss": {"loss": "weighted sum of all terms and layers"},
    "Loss terms of the last layer, unweighted": {f"loss_{term}": term.replace("_", " ") for term in LOSS_TERMS},
    "Scores on the validation images": {
        "eval_mean_iou": "mean IoU",
        "eval_overall_accuracy": "pixel accuracy",
        "eval_constant_mean_iou": "mean IoU of constant prediction",
    },
    "Learning rate (highest of all groups)": {"learning_rate": "learning rate"},
}


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: Mapping[str, Any],
    scores: SegmentationScores,
    palette: Sequence[Color],
    history: Sequence[Mapping[str, Any]] = (),
    images: Mapping[str, EvaluatedImage] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Writes the report to an HTML file; sections without content are left out.

    `metrics` are what `metrics.json` holds, `scores` those of the evaluation, `palette` has red, green and blue of
    each class, `history` is the trainer's log (empty if nothing was trained), `images` are by name the best and worst
    and some others, and `options` those of the run, shown as [`public_options`] gives them.
    """
    names, ignore_index, images = scores.class_names, scores.ignore_index, images or {}
    best, worst = best_and_worst(scores)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    environment.filters |= {
        "jpeg": lambda picture: _data_uri("jpeg", picture.save, optimize=True),
        "png": lambda picture: _data_uri("png", picture.save, optimize=True),
        "colorize": lambda labels: colorize(labels, palette, ignore_index),
        "errors": lambda image: error_map(image.prediction, image.ground_truth, ignore_index, image.image),
        "legend": lambda label_maps: zip(*legend_entries(label_maps, names, palette, ignore_index)[:2], strict=True),
    }
    page = environment.get_template("report.html.jinja").render(
        title=title,
        warnings=scores.warnings(),
        metrics=metrics,
        curves=_curves(history),
        classes=_classes(metrics["classes"], scores.matrix.sum(dim=1)[:-1].tolist(), palette),
        confusion=_confusion(scores),
        shown={"Best images": best, "Worst images": worst},
        images=images,
        contexts=_contexts(scores.contexts, names, palette),
        alignment=_alignment(images.values(), scores, palette),
        colors=generate_palette(8),
        options=json.dumps(public_options(options or {}), indent=2, ensure_ascii=False, default=str),
    )
    Path(path).write_text(page, encoding="utf-8")


def best_and_worst(scores: SegmentationScores) -> tuple[list[ImageScore], list[ImageScore]]:
    """Scores of the images that are shown: the best, the best first, and the worst, the worst first; none is both."""
    in_order = scores.images()
    num_worst = min(NUM_SHOWN, len(in_order) // 2)
    return in_order[num_worst:][::-1][:NUM_SHOWN], in_order[:num_worst]


def _curves(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss, its terms, scores and learning rate over the steps, if there are at least two steps of training."""
    from matplotlib.figure import Figure

    if sum("loss" in entry for entry in history) < 2:
        return None
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axis, (title, lines) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for name, label in lines.items():
            points = [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker=".")
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axis.set(xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=9)
    return _svg(figure)


def _classes(
    per_class: Mapping[str, Mapping[str, float | None]], pixels: Sequence[float], palette: Sequence[Color]
) -> dict[str, Any]:
    columns = zip(per_class.items(), palette, pixels, strict=True)
    rows = [
        {"name": name, "color": color, "share": share / max(sum(pixels), 1), **each}
        for (name, each), color, share in columns
    ]
    absent = [row["name"] for row in rows if row["iou"] is None]
    rows = sorted((row for row in rows if row["iou"] is not None), key=lambda row: -row["iou"])
    return {"rows": rows, "absent": absent}


def _confusion(scores: SegmentationScores) -> dict[str, Any] | None:
    matrix = scores.matrix[:-1, :-1].numpy()
    present = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    if not len(present):
        return None
    matrix = matrix[np.ix_(present, present)]
    names = [scores.class_names[index] for index in present]
    with np.errstate(invalid="ignore"):
        shares = matrix / matrix.sum(axis=1, keepdims=True)
    wrong = matrix - np.diag(np.diag(matrix))
    most = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
    rows = [
        (names[row], names[column], wrong[row, column] / wrong.sum(), shares[row, column])
        for row, column in np.stack(np.unravel_index(most, wrong.shape), axis=1).tolist()
        if wrong[row, column]
    ]
    return {"names": names, "shares": shares.tolist(), "rows": rows}


def _contexts(table: np.ndarray, names: Sequence[str], palette: Sequence[Color]) -> dict[str, Any] | None:
    counts, agreeing, totals = table[:, :-1], table[:, -1], table[:, :-1].sum(axis=1)
    if not totals.any():
        return None
    rows = []
    for index in np.argsort(-totals, kind="stable")[: np.count_nonzero(totals)].tolist():
        shares = counts[index] / totals[index]
        row = {"name": names[index], "color": palette[index], "masks": totals[index], "shares": shares}
        row["entropy"] = sum(-share * math.log2(share) for share in shares.tolist() if share)
        rows.append(row | {"agrees": agreeing[index] / totals[index]})
    return {"rows": rows, "shares": counts.sum(axis=0) / totals.sum()}


def _alignment(
    images: Iterable[EvaluatedImage], scores: SegmentationScores, palette: Sequence[Color]
) -> dict[str, Any] | None:
    """Masks of all images, and the texts of their most frequent classes in the contexts that win most often."""
    alignments = [image.alignment for image in images if image.alignment and len(image.alignment.classes)]
    if not alignments or scores.contexts.shape[1] == 1:
        return None
    classes = np.concatenate([each.classes for each in alignments])
    masks = np.concatenate([each.masks for each in alignments])
    texts = np.mean([each.texts for each in alignments], axis=0)
    contexts = scores.contexts[:, :-1].argmax(axis=1)
    labels, counts = np.unique(classes, return_counts=True)
    shown = labels[np.argsort(-counts, kind="stable")][:MAX_SHOWN_STARS].tolist()
    stars = {label: texts[contexts[label], label] for label in shown}
    picture = _svg(plot_alignment(masks, classes.tolist(), stars, scores.class_names, palette))
    return {"picture": picture, "num_masks": len(masks), "num_images": len(alignments), "num_classes": len(shown)}


def _svg(figure: "Figure") -> str:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        return _data_uri("svg+xml", figure.savefig, format="svg", metadata={"Date": None})


def _data_uri(kind: str, save: Callable, **options: Any) -> str:
    """What a function saves in a file, as an address that holds it; the format of pictures is the kind."""
    buffer = io.BytesIO()
    save(buffer, **({"format": kind} | options))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


__all__ = ["best_and_worst", "write_report"]
