# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""`report.html`: what a run's training and evaluation came to, in one page that needs no other file and no network."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..metrics import iou_figures
from . import figures
from .evaluation import SegmentationScores, constant_prediction
from .examination import ExaminedImage
from .findings import KeptImage
from .reporting import colorize


NUM_CONFUSIONS = 15
MAX_SHOWN_MASKS = 30
# The similarity matrix has all classes up to this number, else those of the image and of its masks' nearest texts.
MAX_SHOWN_TEXTS = 24
# Okabe and Ito's colours, for the prompt contexts.
CONTEXT_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
WRONG_COLOUR = (213, 94, 0)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0 0 .2rem; } h2 { margin: 2.4rem 0 .4rem; border-bottom: 1px solid #ccc; } p { max-width: 56rem; }
img { max-width: 100%; } .wide { overflow: auto; max-height: 62rem; } .wide img { max-width: none; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.figures div { border: 1px solid #ddd; border-radius: 6px; padding: .5rem .9rem; } .figures b { font-size: 1.35rem; }
.figures span { display: block; color: #555; font-size: .85rem; }
.scroll { max-height: 36rem; overflow-y: auto; } table { border-collapse: collapse; font-size: .92rem; }
th { position: sticky; top: 0; background: #fff; text-align: right; padding: .25rem .7rem; vertical-align: bottom; }
td { text-align: right; padding: .15rem .7rem; border-top: 1px solid #eee; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, #confusions :is(th, td):nth-child(2) { text-align: left; }
#classes th:last-child, #contexts th:nth-child(3) { text-align: left; }
.chip { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid #777; }
.bar { display: flex; width: 14rem; height: .9em; background: #eee; } .bar i { display: block; height: 100%; }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; margin: .2rem 0 1rem; }
.row img, .marked img { width: 100%; display: block; } figure { margin: 0; }
figcaption { font-size: .85rem; color: #555; }
.name .legend { margin: 0; font-size: .85rem; max-width: none; }
.legend span { display: inline-block; margin-right: 1rem; white-space: nowrap; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; max-width: 52rem; } .marked { position: relative; }
.marked b { position: absolute; transform: translate(-50%, -50%); background: #000a; color: #fff; border-radius: 1em;
  font-size: .75rem; line-height: 1.3; padding: 0 .45em; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; }
"""


@dataclass
class ReportContent:
    """What a report is made of.

    Attributes:
        title (`str`): of the page.
        metrics (`Mapping[str, Any]`): what `metrics.json` holds.
        scores ([`SegmentationScores`]): of the evaluation.
        palette (`Sequence[Sequence[int]]`): red, green and blue of each class, 0 … 255.
        history (`Sequence[Mapping[str, Any]]`): the trainer's log; empty if nothing was trained.
        examined (`Sequence[ExaminedImage]`): small versions of some evaluated images.
        options (`Mapping[str, Any]`): of the run.
    """

    title: str
    metrics: Mapping[str, Any]
    scores: SegmentationScores
    palette: Sequence[Sequence[int]]
    history: Sequence[Mapping[str, Any]] = ()
    examined: Sequence[ExaminedImage] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def write_report(path: str | Path, content: ReportContent) -> None:
    """Writes the report; sections without content, like those of the text branch of a model without it, are left out.

    Args:
        path (`str` or `Path`): the HTML file.
        content ([`ReportContent`]): of the run.
    """
    sections = {
        "Training": _training_section(content),
        "Classes": _class_section(content),
        "Confusion": _confusion_section(content),
        "Best images": _image_section(content, content.scores.extremes.best),
        "Worst images": _image_section(content, content.scores.extremes.worst),
        "Prompt contexts": _context_section(content),
        "Masks and class texts of one image": _similarity_section(content),
        "Masks and class texts in CLIP's space": _embedding_section(content),
        "Options": _option_section(content),
    }
    body = "".join(f"<section><h2>{title}</h2>{section}</section>\n" for title, section in sections.items() if section)
    title = escape(content.title)
    Path(path).write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>{_key_figures(content.metrics)}\n{body}</body></html>\n",
        encoding="utf-8",
    )


def _key_figures(metrics: Mapping[str, Any]) -> str:
    low, high = metrics["eval_mean_iou_interval"]
    shown = {
        "mean IoU": f"{metrics['eval_mean_iou']:.4f}",
        "95 % interval over images": f"{low:.4f} &ndash; {high:.4f}",
        "mean IoU of the constant prediction": f"{metrics['eval_constant_mean_iou']:.4f}",
        "mean accuracy": f"{metrics['eval_mean_accuracy']:.4f}",
        "pixel accuracy": f"{metrics['eval_overall_accuracy']:.4f}",
        "images/s in evaluation": f"{metrics['eval_samples_per_second']:.2f}",
    }
    if "train_runtime" in metrics:
        shown["minutes of training"] = f"{metrics['train_runtime'] / 60:.1f}"
        shown["images/s in training"] = f"{metrics['train_samples_per_second']:.2f}"
    boxes = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in shown.items())
    return f'<div class="figures">{boxes}</div>'


def _training_section(content: ReportContent) -> str:
    picture = figures.curves(content.history)
    return picture and f'<img src="{picture}" alt="Loss, loss terms, scores and learning rate over the steps">'


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
        return f"first evaluation (step {first['step']})", [
            first.get(f"eval_iou_{name}", 0.0) for name in scores.class_names
        ]
    constant = iou_figures(constant_prediction(scores.matrix))["per_category_iou"]
    return "constant prediction", np.nan_to_num(constant).tolist()


def _class_section(content: ReportContent) -> str:
    scores = content.scores
    name, references = reference_iou(scores, content.history)
    pixels = scores.matrix.sum(dim=1)[:-1].numpy()
    shares = pixels / max(pixels.sum(), 1)
    classes = list(zip(scores.class_names, content.metrics["classes"].values(), references, shares, strict=True))
    present = [each for each in enumerate(classes) if each[1][1]["iou"] is not None]
    present.sort(key=lambda each: each[1][1]["iou"] - each[1][2], reverse=True)
    rows = (
        (
            f"{_chip(content.palette[index])}{escape(label)}",
            f"{share:.2%}",
            _number(figures["iou"]),
            _number(figures["accuracy"]),
            _number(reference),
            f"{figures['iou'] - reference:+.4f}",
            _bar([(figures["iou"], "#0072b2")]),
        )
        for index, (label, figures, reference, share) in present
    )
    absent = [escape(label) for label, figures, _, _ in classes if figures["iou"] is None]
    note = f"<p>Neither annotated nor predicted: {', '.join(absent)}.</p>" if absent else ""
    head = ("class", "share of pixels", "IoU", "accuracy", "IoU of reference", "gain", "")
    return (
        f"<p>Sorted by gain: the class's IoU minus that of the reference, here the <b>{name}</b>. Accuracy is the "
        f"share of the class's annotated pixels that are predicted right.</p>{_table(head, rows, 'classes')}{note}"
    )


def _confusion_section(content: ReportContent) -> str:
    names, matrix = content.scores.class_names, content.scores.matrix[:-1, :-1].numpy()
    present = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    if not len(present):
        return ""
    picture = figures.confusion_matrix(matrix[np.ix_(present, present)], [names[index] for index in present])
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    most = [divmod(int(index), len(matrix)) for index in np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]]
    rows = (
        (
            escape(names[row]),
            escape(names[column]),
            f"{wrong[row, column] / wrong.sum():.1%}",
            f"{wrong[row, column] / matrix[row].sum():.1%}",
        )
        for row, column in most
        if wrong[row, column]
    )
    head = ("annotated", "predicted", "of all wrong pixels", "of the annotated class")
    return (
        "<p>Per cent of each annotated class's pixels that were predicted as each class; rows without annotated "
        f'pixels are empty.</p><div class="wide"><img src="{picture}" alt="Confusion matrix"></div>'
        f"<p>The most frequent confusions:</p>{_table(head, rows, 'confusions')}"
    )


def _image_section(content: ReportContent, images: Sequence[KeptImage]) -> str:
    if not images:
        return ""
    rows = []
    for kept in images:
        panels = {
            "image": _jpeg(np.asarray(kept.image)),
            "truth": _png(colorize(kept.truth, content.palette)),
            "prediction": _png(colorize(kept.prediction, content.palette)),
            "errors": _jpeg(error_map(kept, content.scores.metric.ignore_index)),
        }
        cells = "".join(
            f'<figure><img src="{uri}" alt="{name}"><figcaption>{name}</figcaption></figure>'
            for name, uri in panels.items()
        )
        legend = _legend(content, [kept.truth, kept.prediction])
        rows.append(
            f'<div class="name"><b>{escape(kept.name)}: mean IoU {kept.mean_iou:.4f}</b>{legend}</div>'
            f'<div class="row">{cells}</div>'
        )
    return (
        "<p>By the mean IoU over the classes of the image. Errors are orange, pixels without annotation white.</p>"
        f"{''.join(rows)}"
    )


def error_map(kept: KeptImage, ignore_index: int) -> np.ndarray:
    """The image in pale grey, with wrong pixels in colour and pixels that don't count in white, `(h, w, 3)` uint8."""
    grey = 90 + 0.5 * np.asarray(kept.image.convert("L"), dtype=np.float32)
    errors = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    errors[kept.truth != kept.prediction] = WRONG_COLOUR
    errors[kept.truth == ignore_index] = 255
    return errors


def _context_section(content: ReportContent) -> str:
    usage = content.scores.contexts
    if not usage.counts.sum():
        return ""
    totals, entropies = usage.counts.sum(axis=1), usage.entropies()
    num_contexts = usage.counts.shape[1]
    colours = [CONTEXT_COLOURS[index % len(CONTEXT_COLOURS)] for index in range(num_contexts)]
    rows = (
        (
            f"{_chip(content.palette[index])}{escape(content.scores.class_names[index])}",
            str(totals[index]),
            _bar(zip(usage.counts[index] / totals[index], colours, strict=True)),
            f"{usage.counts[index].argmax() + 1} ({usage.counts[index].max() / totals[index]:.0%})",
            f"{entropies[index]:.3f}",
            f"{usage.agreeing[index] / totals[index]:.0%}",
        )
        for index in np.argsort(-totals, kind="stable")
        if totals[index]
    )
    head = ("class", "masks", "which context wins", "most often", "entropy (bits)", "text agrees")
    legend = "".join(
        f"<span>{_chip_of(colour)}context {index} ({share:.0%})</span>"
        for index, (colour, share) in enumerate(
            zip(colours, usage.counts.sum(axis=0) / usage.counts.sum(), strict=True), start=1
        )
    )
    return (
        "<p>Each mask (a query that is given a class) compares itself with the text of its class in every prompt "
        "context; the most similar context wins. The entropy is 0 if one context always wins, and "
        f"{np.log2(num_contexts):.3f} bits if all win equally often. &ldquo;Text agrees&rdquo;: share of the masks "
        f'whose most similar text, of all classes, is that of the class.</p><p class="legend">{legend}</p>'
        f"{_table(head, rows, 'contexts')}"
    )


def _similarity_section(content: ReportContent) -> str:
    candidates = [image for image in content.examined if image.masks is not None and len(image.classes)]
    if not candidates:
        return ""
    image = max(candidates, key=lambda each: len(np.unique(each.classes)))
    similarity = image.similarity[:MAX_SHOWN_MASKS]
    classes = image.classes[:MAX_SHOWN_MASKS].tolist()
    names = [*content.scores.class_names, "no object"]
    texts = list(range(len(names)))
    if len(texts) > MAX_SHOWN_TEXTS:
        nearest = similarity.argmax(axis=1).tolist()
        texts = sorted({*classes, *nearest, len(names) - 1})
    picture = figures.similarity(
        similarity[:, texts],
        [f"{number} {names[label]}" for number, label in enumerate(classes, start=1)],
        [names[label] for label in texts],
        [texts.index(label) for label in classes],
    )
    marks = "".join(
        f'<b style="left:{x:.1%};top:{y:.1%}">{number}</b>'
        for number, (x, y) in enumerate(image.centres[:MAX_SHOWN_MASKS], start=1)
    )
    return (
        f"<p>{escape(image.name)}, of the {len(content.examined)} examined images the one with masks of the most "
        "classes. Each row is a mask, the most probable first, and its number stands where it is surest; each column "
        "is a class text, in the prompt context in which it is most similar. Cosines; the mask's own class is "
        f'framed.</p>{_legend(content, [image.prediction])}<div class="two">'
        f'<figure class="marked"><img src="{_jpeg(np.asarray(image.image))}" alt="image">{marks}</figure>'
        f'<figure class="marked"><img src="{_png(colorize(image.prediction, content.palette))}" alt="prediction">'
        f'{marks}</figure></div><div class="wide"><img src="{picture}" alt="Cosine of masks and class texts"></div>'
    )


def _embedding_section(content: ReportContent) -> str:
    images = [image for image in content.examined if image.masks is not None]
    if not sum(len(image.classes) for image in images):
        return ""
    contexts = content.scores.contexts.counts.argmax(axis=1)
    picture, num_classes = figures.embeddings(images, contexts, content.scores.class_names, content.palette)
    num_masks = sum(len(image.classes) for image in images)
    return (
        f"<p>{num_masks} masks of {len(images)} images (dots) and the texts of {num_classes} classes (stars), each in "
        "the prompt context that wins most often for it, in the two directions in which they differ most (principal "
        f'components), as in Figure 1b of the paper.</p><img src="{picture}" alt="Masks and class texts in the plane">'
    )


def _option_section(content: ReportContent) -> str:
    if not content.options:
        return ""
    return (
        f"<details><summary>All options of the run</summary><pre>{escape(_as_json(content.options))}</pre></details>"
    )


def _as_json(options: Mapping[str, Any]) -> str:
    return json.dumps(options, indent=2, ensure_ascii=False, default=str)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], name: str) -> str:
    """A table whose cells are HTML already."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return (
        f'<div class="scroll"><table id="{name}"><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _legend(content: ReportContent, label_maps: Iterable[np.ndarray]) -> str:
    """The classes of some label maps, the most frequent first."""
    num_labels = len(content.scores.class_names)
    known = np.concatenate([labels[(labels >= 0) & (labels < num_labels)] for labels in label_maps])
    counts = np.bincount(known, minlength=num_labels)
    chips = "".join(
        f"<span>{_chip(content.palette[index])}{escape(content.scores.class_names[index])}</span>"
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    )
    return f'<p class="legend">{chips}</p>'


def _chip(colour: Sequence[int]) -> str:
    return _chip_of(f"rgb({','.join(map(str, colour))})")


def _chip_of(colour: str) -> str:
    return f'<i class="chip" style="background:{colour}"></i>'


def _bar(parts: Iterable[tuple[float, str]]) -> str:
    """A bar of shares, each with its colour."""
    filled = "".join(f'<i style="width:{share:.1%};background:{colour}"></i>' for share, colour in parts)
    return f'<div class="bar">{filled}</div>'


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.4f}"


def _png(picture: np.ndarray) -> str:
    return _encoded(picture, "PNG", optimize=True)


def _jpeg(picture: np.ndarray) -> str:
    return _encoded(picture, "JPEG", quality=85)


def _encoded(picture: np.ndarray, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return figures.as_data_uri(buffer.getvalue(), f"image/{kind.lower()}")


__all__ = ["ReportContent", "error_map", "reference_iou", "write_report"]
