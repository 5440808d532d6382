# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""`report.html`: what a run's training and evaluation came to, in one page that needs no other file and no network.

The page is `templates/report.html.jinja`; this file computes what it shows.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from ..metrics import constant_prediction, iou_figures
from ..visualization import (
    OKABE_ITO,
    Color,
    colorize,
    error_map,
    legend_entries,
    plot_alignment,
    plot_curves,
    plot_embeddings,
    plot_matrix,
)
from .evaluated_images import EvaluatedImage
from .evaluation import SegmentationScores
from .model_card import public_options


if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_CONFUSIONS = 15
MAX_NAMED_CLASSES = 20
MAX_SHOWN_MASKS = 30
# The alignment of one image shows all classes up to this number, else those of its masks and their nearest texts.
MAX_SHOWN_TEXTS = 24
MAX_SHOWN_EMBEDDINGS = 40
BAR_COLOR = OKABE_ITO[4]
LOSS_TERMS = ("cross_entropy", "mask", "dice", "contrastive")
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
    images: Sequence[EvaluatedImage] = (),
    options: Mapping[str, Any] | None = None,
) -> None:
    """Writes the report; sections without content, like those of the text branch of a model without it, are left out.

    Args:
        path (`str` or `Path`): the HTML file.
        title (`str`): of the page.
        metrics (`Mapping[str, Any]`): what `metrics.json` holds.
        scores ([`SegmentationScores`]): of the evaluation.
        palette (`Sequence[Sequence[int]]`): red, green and blue of each class, 0 … 255.
        history (`Sequence[Mapping[str, Any]]`): the trainer's log; empty if nothing was trained.
        images (`Sequence[EvaluatedImage]`): some images with the alignment of their masks, if there is a text branch.
        options (`Mapping[str, Any]`, *optional*): of the run; shown without folders and tokens.
    """
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    page = templates.get_template("report.html.jinja").render(
        title=title,
        warnings=score_warnings(scores),
        key_figures=_key_figures(metrics),
        curves=_curves(history),
        classes=_classes(metrics["classes"], scores, palette, history),
        bar_color=BAR_COLOR,
        confusion=_confusion(scores),
        best=[_image(image, scores, palette) for image in scores.best_and_worst.best],
        worst=[_image(image, scores, palette) for image in scores.best_and_worst.worst],
        contexts=_contexts(scores, palette),
        alignment=_alignment(images, scores, palette),
        embeddings=_embeddings(images, scores, palette),
        options=json.dumps(public_options(options), indent=2, ensure_ascii=False, default=str) if options else "",
    )
    Path(path).write_text(page, encoding="utf-8")


def score_warnings(scores: SegmentationScores) -> list[str]:
    """Why the scores say less than they seem to, or nothing at all.

    Args:
        scores ([`SegmentationScores`]): after `finish`.

    Returns:
        `list[str]`: a sentence or two on each reason; empty if there is none.
    """
    annotated = scores.matrix.sum(dim=1)[:-1].tolist()
    num_images = len(scores.per_image)
    if not any(annotated):
        return [
            f"There are no scores: no pixel of the {num_images} evaluated images is annotated with a class. Check the "
            "label ids of the annotations against the class names."
        ]
    warnings = []
    absent = [name for name, pixels in zip(scores.class_names, annotated, strict=True) if not pixels]
    if absent:
        names = ", ".join(absent[:MAX_NAMED_CLASSES])
        more = f" and {len(absent) - MAX_NAMED_CLASSES} more" if len(absent) > MAX_NAMED_CLASSES else ""
        warnings.append(
            f"{len(absent)} of {len(annotated)} classes are annotated in no evaluated image, so that the scores say "
            f"nothing about how well they are found: {names}{more}."
        )
    empty = sum(score.worst_class is None for score in scores.per_image.scores())
    if empty:
        warnings.append(f"{empty} of {num_images} evaluated images have no annotated pixel and don't count.")
    if num_images == 1:
        warnings.append("Only one image was evaluated: the interval over images says nothing.")
    summary = scores.summary()
    if summary["mean_iou"] <= summary["constant_mean_iou"]:
        warnings.append("The mean IoU is not above that of always predicting the most frequent class.")
    return warnings


def _key_figures(metrics: Mapping[str, Any]) -> list[tuple[str, float | None, int]]:
    """Name, value and digits of each figure at the top."""
    low, high = metrics.get("eval_mean_iou_interval") or (None, None)
    shown = [
        ("mean IoU", metrics.get("eval_mean_iou"), 4),
        ("95 % interval over images: from", low, 4),
        ("95 % interval over images: to", high, 4),
        ("mean IoU of the constant prediction", metrics.get("eval_constant_mean_iou"), 4),
        ("mean accuracy", metrics.get("eval_mean_accuracy"), 4),
        ("pixel accuracy", metrics.get("eval_overall_accuracy"), 4),
        ("images/s in evaluation", metrics.get("eval_samples_per_second"), 2),
    ]
    if "train_runtime" in metrics:
        shown.append(("minutes of training", metrics["train_runtime"] / 60, 1))
        shown.append(("images/s in training", metrics.get("train_samples_per_second"), 2))
    return shown


def _curves(history: Sequence[Mapping[str, Any]]) -> str | None:
    def series(name: str) -> tuple[list[float], list[float]]:
        entries = [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]
        return [step for step, _ in entries], [value for _, value in entries]

    if len(series("loss")[0]) < 2:
        return None
    panels = {title: {label: series(name) for name, label in lines.items()} for title, lines in CURVES.items()}
    return _svg(plot_curves(panels))


def reference_iou(scores: SegmentationScores, history: Sequence[Mapping[str, Any]]) -> tuple[str, list[float]]:
    """What the classes' gains are over: the run's first evaluation, or the constant prediction if there is no earlier
    evaluation than the one reported.

    Args:
        scores ([`SegmentationScores`]): of the evaluation that is reported.
        history (`Sequence[Mapping[str, Any]]`): the trainer's log, whose last evaluation is the one reported.

    Returns:
        `tuple[str, list[float]]`: its name, and the IoU of each class; 0 for classes that did not occur.
    """
    evaluations = [entry for entry in history if "eval_mean_iou" in entry]
    if evaluations and evaluations[0]["step"] < evaluations[-1]["step"]:
        first = evaluations[0]
        ious = [first.get(f"eval_iou_{name}") or 0.0 for name in scores.class_names]
        return f"first evaluation (step {first['step']})", ious
    constant = iou_figures(constant_prediction(scores.matrix))["per_category_iou"]
    return "constant prediction", np.nan_to_num(constant).tolist()


def _classes(
    per_class: Mapping[str, Mapping[str, float | None]],
    scores: SegmentationScores,
    palette: Sequence[Color],
    history: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    reference, reference_ious = reference_iou(scores, history)
    pixels = scores.matrix.sum(dim=1)[:-1].numpy()
    shares = (pixels / max(pixels.sum(), 1)).tolist()
    rows, absent = [], []
    columns = (per_class.items(), palette, shares, reference_ious)
    for (name, each), color, share, reference_value in zip(*columns, strict=True):
        if each["iou"] is None:
            absent.append(name)
            continue
        row = {"name": name, "color": color, "share": share, "reference": reference_value, **each}
        rows.append(row | {"gain": each["iou"] - reference_value})
    rows.sort(key=lambda row: row["gain"], reverse=True)
    return {"reference": reference, "rows": rows, "absent": absent}


def _confusion(scores: SegmentationScores) -> dict[str, Any] | None:
    names, matrix = scores.class_names, scores.matrix[:-1, :-1].numpy()
    present = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    if not len(present):
        return None
    shown = [names[index] for index in present]
    with np.errstate(invalid="ignore"):
        shares = matrix / matrix.sum(axis=1, keepdims=True)
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    most = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
    rows = [
        {
            "ground_truth": names[row],
            "predicted": names[column],
            "of_wrong": wrong[row, column] / wrong.sum(),
            "of_class": shares[row, column],
        }
        for row, column in np.stack(np.unravel_index(most, wrong.shape), axis=1).tolist()
        if wrong[row, column]
    ]
    return {"picture": _svg(plot_matrix(shares[np.ix_(present, present)], shown, shown)), "rows": rows}


def _image(image: EvaluatedImage, scores: SegmentationScores, palette: Sequence[Color]) -> dict[str, Any]:
    ignore_index = scores.ignore_index
    panels = [
        ("image", _encoded(image.image, "JPEG")),
        ("ground truth", _encoded(colorize(image.ground_truth, palette, ignore_index), "PNG")),
        ("prediction", _encoded(colorize(image.prediction, palette, ignore_index), "PNG")),
        ("errors", _encoded(error_map(image.prediction, image.ground_truth, ignore_index, image.image), "JPEG")),
    ]
    entries = _legend([image.ground_truth, image.prediction], scores, palette)
    return {"name": image.name, "mean_iou": image.mean_iou, "panels": panels, "legend": entries}


def _contexts(scores: SegmentationScores, palette: Sequence[Color]) -> dict[str, Any] | None:
    usage = scores.contexts
    if not usage.counts.sum():
        return None
    totals, entropies = usage.counts.sum(axis=1), usage.entropies()
    shares = usage.counts / np.maximum(totals, 1)[:, None]
    colors = [OKABE_ITO[index % len(OKABE_ITO)] for index in range(usage.counts.shape[1])]
    rows = [
        {
            "name": scores.class_names[index],
            "color": palette[index],
            "masks": totals[index],
            "shares": list(zip(shares[index], colors, strict=True)),
            "winner": shares[index].argmax() + 1,
            "win_share": shares[index].max(),
            "entropy": entropies[index],
            "agrees": usage.agreeing[index] / totals[index],
        }
        for index in np.argsort(-totals, kind="stable")
        if totals[index]
    ]
    wins = usage.counts.sum(axis=0) / totals.sum()
    names = [f"context {index} ({share:.0%})" for index, share in enumerate(wins, start=1)]
    return {"rows": rows, "legend": list(zip(names, colors, strict=True)), "max_entropy": np.log2(len(colors))}


def _alignment(
    images: Sequence[EvaluatedImage], scores: SegmentationScores, palette: Sequence[Color]
) -> dict[str, Any] | None:
    with_masks = [image for image in images if image.alignment is not None and len(image.alignment.classes)]
    if not with_masks:
        return None
    image = max(with_masks, key=lambda each: len(np.unique(each.alignment.classes)))
    similarity = image.alignment.similarity[:MAX_SHOWN_MASKS]
    classes = image.alignment.classes[:MAX_SHOWN_MASKS].tolist()
    names = [*scores.class_names, "no object"]
    texts = list(range(len(names)))
    if len(texts) > MAX_SHOWN_TEXTS:
        texts = sorted({*classes, *similarity.argmax(axis=1).tolist(), len(names) - 1})
    figure = plot_alignment(
        similarity[:, texts],
        [f"{place} {names[label]}" for place, label in enumerate(classes, start=1)],
        [names[label] for label in texts],
        [texts.index(label) for label in classes],
    )
    prediction = colorize(image.prediction, palette, scores.ignore_index)
    return {
        "name": image.name,
        "num_images": len(images),
        "centers": image.alignment.centers[:MAX_SHOWN_MASKS].tolist(),
        "legend": _legend([image.prediction], scores, palette),
        "panels": [("image", _encoded(image.image, "JPEG")), ("prediction", _encoded(prediction, "PNG"))],
        "picture": _svg(figure),
    }


def _embeddings(
    images: Sequence[EvaluatedImage], scores: SegmentationScores, palette: Sequence[Color]
) -> dict[str, Any] | None:
    alignments = [image.alignment for image in images if image.alignment is not None]
    classes = [label for alignment in alignments for label in alignment.classes.tolist()]
    if not classes:
        return None
    masks = np.concatenate([alignment.masks for alignment in alignments])
    texts = np.mean([alignment.texts for alignment in alignments], axis=0)
    contexts = scores.contexts.counts.argmax(axis=1)
    counts = np.bincount(classes)
    shown = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index]][:MAX_SHOWN_EMBEDDINGS]
    shown_texts = {label: texts[contexts[label], label] for label in shown}
    figure = plot_embeddings(masks, classes, shown_texts, scores.class_names, palette)
    sizes = {"num_masks": len(masks), "num_images": len(alignments), "num_classes": len(shown)}
    return {"picture": _svg(figure), **sizes}


def _legend(
    label_maps: Sequence[np.ndarray], scores: SegmentationScores, palette: Sequence[Color]
) -> list[tuple[str, Color]]:
    names, colors, _ = legend_entries(label_maps, scores.class_names, palette, scores.ignore_index)
    return list(zip(names, colors, strict=True))


def _svg(figure: "Figure") -> str:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri(buffer.getvalue(), "image/svg+xml")


def _encoded(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True)
    return _data_uri(buffer.getvalue(), f"image/{kind.lower()}")


def _data_uri(content: bytes, media_type: str) -> str:
    """What an `img` element shows without a file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


__all__ = ["reference_iou", "score_warnings", "write_report"]
