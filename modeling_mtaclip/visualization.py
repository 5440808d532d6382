# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of label maps: colors, overlays, errors, confidences, legends, panels side by side, masks and class texts.

What the functions have in common: `labels`, `prediction` and `ground_truth` are label maps, that is integer arrays,
tensors on the CPU or PIL images of shape `(height, width)` with class ids from 0; `palette` has red, green and blue,
0 … 255, of each class and `names` its name, both in the order of the ids; `ignore_index` is the label of pixels
without a class, which have `VOID_COLOR` in every picture. Pictures are returned as PIL images in RGB. What can't be
drawn, such as an empty label map, ids without a color or sizes that differ, is a `ValueError`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont


if TYPE_CHECKING:
    from matplotlib.figure import Figure

Color = Sequence[int]

VOID_COLOR = (255, 255, 255)
RIGHT_COLOR = (200, 200, 200)
WRONG_COLOR = (213, 94, 0)
# From 0 to 1, from dark to light (five colors of matplotlib's viridis).
CONFIDENCE_COLORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
FONT_SIZE, MAX_FONT_SIZE = 14, 40
MIN_LEGEND_WIDTH = 320


def colorize(labels: Any, palette: Sequence[Color], ignore_index: int = 255) -> Image.Image:
    """Paints a label map in the colors of its classes."""
    labels = _as_label_map(labels, len(palette), ignore_index)
    colors = np.array([*palette, VOID_COLOR], dtype=np.uint8)
    return Image.fromarray(colors[np.where(labels == ignore_index, len(palette), labels)])


def overlay(
    image: Image.Image, labels: Any, palette: Sequence[Color], opacity: float = 0.5, ignore_index: int = 255
) -> Image.Image:
    """Tints an image with the colors of its label map; `opacity` 0 shows the image only, 1 the colors only."""
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be between 0 and 1, got {opacity}.")
    colors = colorize(labels, palette, ignore_index)
    _check_sizes(image.size, colors.size)
    return Image.blend(image.convert("RGB"), colors, opacity)


def highlight(image: Image.Image, mask: Any, color: Color, opacity: float = 0.5) -> Image.Image:
    """Tints an image with a color where a mask is 1 and makes it gray and pale where it is 0.

    `mask` `(height, width)` is boolean, or has shares between 0 and 1, which mix the two.
    """
    share = np.asarray(mask, dtype=np.float32)
    if share.ndim != 2 or not share.size or share.min() < 0 or share.max() > 1:
        raise ValueError(f"A mask must have the shape (height, width) and values in 0 … 1, got {share.shape}.")
    tinted = np.array(overlay(image, np.zeros(share.shape, dtype=np.uint8), [color], opacity))
    share = share[..., None]
    return Image.fromarray((share * tinted + (1 - share) * _pale(image)[..., None]).round().astype(np.uint8))


def error_map(
    prediction: Any, ground_truth: Any, ignore_index: int = 255, image: Image.Image | None = None
) -> Image.Image:
    """Shows wrong pixels in `WRONG_COLOR`, right ones in gray or, if `image` is given, as it is in pale gray."""
    prediction, ground_truth = _as_label_map(prediction), _as_label_map(ground_truth)
    _check_sizes(prediction.shape[::-1], ground_truth.shape[::-1])
    picture = np.full((*prediction.shape, 3), RIGHT_COLOR, dtype=np.uint8)
    if image is not None:
        _check_sizes(image.size, prediction.shape[::-1])
        picture[:] = _pale(image)[..., None]
    picture[prediction != ground_truth] = WRONG_COLOR
    picture[ground_truth == ignore_index] = VOID_COLOR
    return Image.fromarray(picture)


def confidence_map(values: Any) -> Image.Image:
    """Paints probabilities `(height, width)` from 0 (dark) to 1 (light); NaN is void."""
    values = np.asarray(values, dtype=np.float32)
    wrong = values[(values < 0) | (values > 1)]
    if values.ndim != 2 or not values.size or wrong.size:
        raise ValueError(
            "Confidences must have the shape (height, width) and lie between 0 and 1, got the shape "
            f"{values.shape} and values like {wrong[:3].tolist()}."
        )
    stops = np.linspace(0, 1, len(CONFIDENCE_COLORS))
    channels = [np.interp(values, stops, channel) for channel in zip(*CONFIDENCE_COLORS, strict=True)]
    picture = np.stack(channels, axis=-1).round()
    picture[np.isnan(values)] = VOID_COLOR
    return Image.fromarray(picture.astype(np.uint8))


def legend(
    names: Sequence[str],
    palette: Sequence[Color],
    shares: Sequence[float] | None = None,
    width: int = 640,
    font_size: int = FONT_SIZE,
) -> Image.Image:
    """Draws names beside their colors in as many columns as fit, with their shares in per cent if these are given.

    The legend is `width` pixels wide, but not less than `MIN_LEGEND_WIDTH`, and as high as it needs to be. A name that
    is wider ends with dots.
    """
    suffixes = [""] * len(names) if shares is None else [f" {100 * share:.1f} %" for share in shares]
    if not len(names) or not len(names) == len(palette) == len(suffixes):
        raise ValueError(
            "A legend needs at least one name, and a color (and a share) for each, got "
            f"{len(names)} names, {len(palette)} colors and {len(suffixes)} shares."
        )
    width, gap = max(width, MIN_LEGEND_WIDTH), font_size // 2
    font, row_height = ImageFont.load_default(font_size), font_size + gap
    room = width - font_size - 4 * gap
    names = [" ".join(name.split()) for name in names]
    texts = [_shortened(*each, font, room) for each in zip(names, suffixes, strict=True)]
    column_width = int(max(map(font.getlength, texts))) + font_size + 3 * gap
    num_columns = max(1, (width - gap) // column_width)
    picture = Image.new("RGB", (width, -(-len(texts) // num_columns) * row_height + gap), "white")
    draw = ImageDraw.Draw(picture)
    for place, (text, color) in enumerate(zip(texts, palette, strict=True)):
        row, column = divmod(place, num_columns)
        x, y = gap + column * column_width, gap + row * row_height
        draw.rectangle((x, y, x + font_size - 1, y + font_size - 1), fill=tuple(map(int, color)), outline="gray")
        draw.text((x + font_size + gap, y + font_size / 2), text, fill="black", font=font, anchor="lm")
    return picture


def legend_entries(
    label_maps: Sequence[Any], names: Sequence[str], palette: Sequence[Color], ignore_index: int = 255
) -> tuple[list[str], list[Color], list[float]]:
    """Names, colors and shares of the pixels of the classes that occur in label maps, the most frequent first, and at
    the end "not annotated" if there are pixels without a class: what [`legend`] takes."""
    if len(names) != len(palette):
        raise ValueError(f"Each class needs a name and a color, got {len(names)} names and {len(palette)} colors.")
    counts = np.zeros(len(names) + 1, dtype=np.int64)
    for labels in label_maps:
        labels = _as_label_map(labels, len(names), ignore_index)
        places = np.where(labels == ignore_index, len(names), labels)
        counts += np.bincount(places.ravel(), minlength=len(counts))
    order = [index for index in np.argsort(-counts[:-1], kind="stable").tolist() if counts[index]]
    order += [len(names)] if counts[-1] else []
    all_names, colors = [*names, "not annotated"], [*palette, VOID_COLOR]
    return [all_names[i] for i in order], [colors[i] for i in order], (counts[order] / counts.sum()).tolist()


def compare(
    panels: Sequence[tuple[str, Image.Image]],
    names: Sequence[str],
    palette: Sequence[Color],
    label_maps: Sequence[Any] | None = None,
    show_shares: bool = False,
    ignore_index: int = 255,
) -> Image.Image:
    """Draws pictures side by side, each at its own size under its title (which may be empty), above a legend.

    Text grows with the pictures. The legend has the [`legend_entries`] of `label_maps`, with their shares if
    `show_shares` is true, or, without label maps, all classes.
    """
    if not panels:
        raise ValueError("`compare` needs at least one panel.")
    shares = None
    if label_maps is not None:
        names, palette, shares = legend_entries(label_maps, names, palette, ignore_index)
    font_size = min(max(FONT_SIZE, max(picture.width for _, picture in panels) // 45), MAX_FONT_SIZE)
    font, gap = ImageFont.load_default(font_size), font_size // 2
    widths = [max(picture.width, int(font.getlength(title)) + 1) for title, picture in panels]
    top = 2 * gap + font_size if any(title for title, _ in panels) else 0
    width, height = sum(widths) + gap * (len(panels) - 1), top + max(picture.height for _, picture in panels)
    below = legend(names, palette, shares if show_shares else None, width, font_size)
    whole = Image.new("RGB", (max(width, below.width), height + below.height), "white")
    draw, x = ImageDraw.Draw(whole), 0
    for (title, picture), panel_width in zip(panels, widths, strict=True):
        draw.text((x, top / 2), title, fill="black", font=font, anchor="lm")
        whole.paste(picture.convert("RGB"), (x, top))
        x += panel_width + gap
    whole.paste(below, (0, height))
    return whole


def plot_alignment(
    masks: np.ndarray,
    mask_classes: Sequence[int],
    texts: Mapping[int, np.ndarray],
    names: Sequence[str],
    palette: Sequence[Color],
) -> "Figure":
    """Plots masks and class texts in the two directions in which they differ most (Figure 1b of the paper).

    `masks` are embeddings `(M, E)`, drawn as dots in the colors of their classes; `texts` has the embedding `(E,)` of
    some classes' text, drawn as a star with the class's name.
    """
    from matplotlib.figure import Figure

    points, shares = _principal_components(np.concatenate((masks, np.stack(list(texts.values())))))
    mask_points, text_points = np.split(points, [len(masks)])
    colors = np.array(palette) / 255
    figure = Figure(figsize=(10.5, 6.5), layout="constrained")
    axis = figure.subplots()
    axis.scatter(*mask_points.T, c=colors[mask_classes], s=22, alpha=0.75, linewidths=0.3, edgecolors="white")
    axis.scatter(*text_points.T, c=colors[list(texts)], marker="*", s=170, edgecolors="black", linewidths=0.7)
    for place, (point, label) in enumerate(sorted(zip(text_points.tolist(), texts, strict=True))):
        # Names of neighbors stand above and below in turn, so that they seldom overlap.
        offset = (7, 5 if place % 2 else -13)
        axis.annotate(names[label], point, xytext=offset, textcoords="offset points", parse_math=False)
    axis.set_xlabel(f"{shares[0]:.0%} of the variance")
    axis.set_ylabel(f"{shares[1]:.0%} of the variance")
    return figure


def _principal_components(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates `(n, 2)` of points `(n, E)` on their two principal axes, and these axes' shares of the variance."""
    padded = np.pad(points - points.mean(axis=0), ((0, max(0, 2 - len(points))), (0, max(0, 2 - points.shape[1]))))
    left, values, _ = np.linalg.svd(padded, full_matrices=False)
    return (left * values)[: len(points), :2], values[:2] ** 2 / max((values**2).sum(), np.finfo(float).tiny)


def _pale(image: Image.Image) -> np.ndarray:
    """The image in pale gray, float32 `(height, width)`."""
    return 90 + 0.5 * np.asarray(image.convert("L"), dtype=np.float32)


def _as_label_map(labels: Any, num_classes: int | None = None, ignore_index: int = 255) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "A label map must be an integer array of shape (height, width) with at least one pixel, got "
            f"{labels.dtype} of shape {labels.shape}."
        )
    if num_classes is not None:
        unknown = np.unique(labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)])
        if unknown.size:
            raise ValueError(
                f"The label map has the ids {unknown[:5].tolist()}, but there are {num_classes} classes (ids from 0) "
                f"and pixels to be ignored have {ignore_index}. Give a longer palette or another `ignore_index`."
            )
    return labels.astype(np.int64)


def _check_sizes(first: tuple[int, int], second: tuple[int, int]) -> None:
    if tuple(first) != tuple(second):
        raise ValueError(f"Images and label maps must have the same size, got {first} and {second} (width, height).")


def _shortened(text: str, suffix: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text with its suffix, or as much of its beginning as has room in front of three dots."""
    if font.getlength(text + suffix) <= room:
        return text + suffix
    while text and font.getlength(f"{text}...{suffix}") > room:
        text = text[:-1]
    return f"{text}...{suffix}"


__all__ = [
    "VOID_COLOR",
    "WRONG_COLOR",
    "colorize",
    "compare",
    "confidence_map",
    "error_map",
    "highlight",
    "legend",
    "legend_entries",
    "overlay",
    "plot_alignment",
]
