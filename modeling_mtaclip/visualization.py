# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of label maps (colors, overlays, legends, panels side by side, errors, confidences) and plots of matrices.

Label maps are integer arrays, tensors on the CPU or PIL images of shape `(height, width)`. Pictures need Pillow only;
the functions named `plot_…` return matplotlib figures.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont


if TYPE_CHECKING:
    from matplotlib.figure import Figure

Color = Sequence[int]

# Okabe and Ito's colors, which people with any kind of color vision can tell apart (https://jfly.uni-koeln.de/color).
OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (0, 0, 0),
)
# Pixels without a class, in every picture.
VOID_COLOR = (255, 255, 255)
RIGHT_COLOR = (200, 200, 200)
WRONG_COLOR = OKABE_ITO[5]
# From 0 to 1, from dark to light (five colors of matplotlib's viridis).
CONFIDENCE_COLORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
FONT_SIZE = 14
MIN_LEGEND_WIDTH = 240
# Heat maps of up to so many cells have numbers in them.
MAX_NUMBERS = 400


def colorize(labels: Any, palette: Sequence[Color], ignore_index: int = 255) -> Image.Image:
    """Paints a label map.

    Args:
        labels (integer array of shape `(height, width)`): class ids.
        palette (`Sequence[Sequence[int]]`): red, green and blue of each class, 0 … 255.
        ignore_index (`int`, defaults to 255): label of pixels without a class, which become `VOID_COLOR`.

    Returns:
        `PIL.Image.Image`: in RGB, of the label map's size.

    Raises:
        ValueError: no label map, or ids without a color.
    """
    labels = _as_label_map(labels, len(palette), ignore_index)
    colors = np.array([*palette, VOID_COLOR], dtype=np.uint8)
    return Image.fromarray(colors[np.where(labels == ignore_index, len(palette), labels)])


def overlay(
    image: Image.Image, labels: Any, palette: Sequence[Color], opacity: float = 0.5, ignore_index: int = 255
) -> Image.Image:
    """Tints an image with the colors of its label map.

    Args:
        image (`PIL.Image.Image`): of the label map's size.
        labels, palette, ignore_index: as for [`colorize`].
        opacity (`float`, defaults to 0.5): of the colors; 0 shows the image only, 1 the colors only.

    Returns:
        `PIL.Image.Image`: in RGB.

    Raises:
        ValueError: as [`colorize`], or sizes that differ, or an opacity outside 0 … 1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be between 0 and 1, got {opacity}.")
    colors = colorize(labels, palette, ignore_index)
    _check_size(image, colors.size)
    return Image.blend(image.convert("RGB"), colors, opacity)


def error_map(
    prediction: Any, ground_truth: Any, ignore_index: int = 255, image: Image.Image | None = None
) -> Image.Image:
    """Shows where a prediction is wrong.

    Args:
        prediction (integer array of shape `(height, width)`): predicted class ids.
        ground_truth (integer array of shape `(height, width)`): annotated class ids.
        ignore_index (`int`, defaults to 255): annotation of pixels that don't count.
        image (`PIL.Image.Image`, *optional*): shown in pale gray where the prediction is right.

    Returns:
        `PIL.Image.Image`: in RGB: right pixels gray, wrong ones `WRONG_COLOR`, those that don't count `VOID_COLOR`.

    Raises:
        ValueError: no label maps, or sizes that differ.
    """
    prediction, ground_truth = _as_label_map(prediction), _as_label_map(ground_truth)
    if prediction.shape != ground_truth.shape:
        raise ValueError(
            f"Prediction and ground truth must have the same size, got {prediction.shape} and {ground_truth.shape}."
        )
    picture = np.full((*prediction.shape, 3), RIGHT_COLOR, dtype=np.uint8)
    if image is not None:
        _check_size(image, prediction.shape[::-1])
        picture[:] = (90 + 0.5 * np.asarray(image.convert("L"), dtype=np.float32))[..., None]
    picture[prediction != ground_truth] = WRONG_COLOR
    picture[ground_truth == ignore_index] = VOID_COLOR
    return Image.fromarray(picture)


def confidence_map(values: Any) -> Image.Image:
    """Paints probabilities.

    Args:
        values (array of shape `(height, width)`): 0 (dark) … 1 (light); NaN becomes `VOID_COLOR`.

    Returns:
        `PIL.Image.Image`: in RGB.

    Raises:
        ValueError: no such array, or values outside 0 … 1.
    """
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"Confidences must have the shape (height, width), got {values.shape}.")
    known = ~np.isnan(values)
    if ((values < 0) | (values > 1)).any():
        raise ValueError(
            f"Confidences must be between 0 and 1, got {values[known].min():g} to {values[known].max():g}."
        )
    stops = np.linspace(0, 1, len(CONFIDENCE_COLORS))
    channels = [np.interp(values, stops, channel) for channel in zip(*CONFIDENCE_COLORS, strict=True)]
    picture = np.full((*values.shape, 3), VOID_COLOR, dtype=np.uint8)
    picture[known] = np.stack(channels, axis=-1)[known].round()
    return Image.fromarray(picture)


def legend(
    names: Sequence[str],
    palette: Sequence[Color],
    shares: Sequence[float] | None = None,
    width: int = 640,
    font_size: int = FONT_SIZE,
) -> Image.Image:
    """Draws the names of classes beside their colors, in as many columns as fit.

    Args:
        names (`Sequence[str]`): of the classes; a name wider than the legend ends with dots.
        palette (`Sequence[Sequence[int]]`): a color for each name, 0 … 255.
        shares (`Sequence[float]`, *optional*): shown as per cent behind the names.
        width (`int`, defaults to 640): in pixels; the legend has at least `MIN_LEGEND_WIDTH`, to be readable.
        font_size (`int`, defaults to 14): in pixels.

    Returns:
        `PIL.Image.Image`: in RGB, as high as it needs to be.

    Raises:
        ValueError: no names, or names, colors and shares that are not equally many.
    """
    shares = [None] * len(names) if shares is None else shares
    if not len(names) or not len(names) == len(palette) == len(shares):
        raise ValueError(
            "A legend needs at least one name, and a color (and a share) for each, got "
            f"{len(names)} names, {len(palette)} colors and {len(shares)} shares."
        )
    width, gap = max(width, MIN_LEGEND_WIDTH), font_size // 2
    font, row_height = ImageFont.load_default(font_size), font_size + gap
    texts = []
    for name, share in zip(names, shares, strict=True):
        suffix = "" if share is None else f" {100 * share:.1f} %"
        room = width - font_size - 4 * gap - font.getlength(suffix)
        texts.append(_shortened(" ".join(name.split()), font, room) + suffix)
    column_width = int(max(map(font.getlength, texts))) + font_size + 3 * gap
    num_columns = max(1, (width - gap) // column_width)
    num_rows = -(-len(texts) // num_columns)
    picture = Image.new("RGB", (width, num_rows * row_height + gap), "white")
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
    """Finds what the legend of some label maps should show.

    Args:
        label_maps (`Sequence`): as for [`colorize`].
        names, palette: name and color of each class, in the order of the ids.
        ignore_index (`int`, defaults to 255): label of pixels without a class.

    Returns:
        `tuple[list[str], list[Sequence[int]], list[float]]`: names, colors and shares (of all pixels) of the classes
        that occur, the most frequent first, and at the end "not annotated" if pixels are ignored.
    """
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
    """Draws pictures side by side, with titles above and a legend below.

    Args:
        panels (`Sequence[tuple[str, PIL.Image.Image]]`): title (may be empty) and picture of each, at its own size.
        names (`Sequence[str]`): of the classes, in the order of their ids.
        palette (`Sequence[Sequence[int]]`): their colors, 0 … 255.
        label_maps (`Sequence`, *optional*): what is shown, as for [`colorize`]: the legend then has only the classes
            that occur, the most frequent first, and "not annotated" where pixels are ignored. By default all classes.
        show_shares (`bool`, defaults to `False`): whether the legend has the classes' shares of the pixels.
        ignore_index (`int`, defaults to 255): label of pixels without a class.

    Returns:
        `PIL.Image.Image`: in RGB.

    Raises:
        ValueError: no panels, or label maps as for [`colorize`].
    """
    if not panels:
        raise ValueError("`compare` needs at least one panel.")
    shares = None
    if label_maps is not None:
        names, palette, shares = legend_entries(label_maps, names, palette, ignore_index)
    font, gap = ImageFont.load_default(FONT_SIZE), FONT_SIZE // 2
    widths = [max(picture.width, int(font.getlength(title)) + 1) for title, picture in panels]
    top = 2 * gap + FONT_SIZE if any(title for title, _ in panels) else 0
    width, height = sum(widths) + gap * (len(panels) - 1), top + max(picture.height for _, picture in panels)
    below = legend(names, palette, shares if show_shares else None, width) if len(names) else None
    size = (max(width, below.width), height + below.height) if below else (width, height)
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)
    x = 0
    for (title, picture), panel_width in zip(panels, widths, strict=True):
        draw.text((x, top / 2), title, fill="black", font=font, anchor="lm")
        whole.paste(picture.convert("RGB"), (x, top))
        x += panel_width + gap
    if below:
        whole.paste(below, (0, height))
    return whole


def plot_alignment(
    similarity: np.ndarray, mask_names: Sequence[str], text_names: Sequence[str], own_texts: Sequence[int | None]
) -> "Figure":
    """Plots how similar masks are to class texts.

    Args:
        similarity (`np.ndarray` of shape `(M, T)`): cosine of each mask with each text.
        mask_names (`Sequence[str]`): of the rows.
        text_names (`Sequence[str]`): of the columns.
        own_texts (`Sequence[int | None]`): the column of each mask's own class, which gets a frame.

    Returns:
        `matplotlib.figure.Figure`: a heat map, with numbers if there are not too many.
    """
    from matplotlib.patches import Rectangle

    limits = (similarity.min(), similarity.max()) if similarity.size else (0, 1)
    size = (3.2 + 0.5 * len(text_names), 1.8 + 0.32 * len(mask_names))
    figure = plot_matrix(similarity, mask_names, text_names, limits, size, ".2f")
    for row, column in enumerate(own_texts):
        if column is not None:
            frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color=np.array(WRONG_COLOR) / 255, lw=2)
            figure.axes[0].add_patch(frame)
    return figure


def plot_matrix(
    values: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    limits: tuple[float, float] = (0.0, 1.0),
    size: tuple[float, float] | None = None,
    number_format: str = ".0%",
) -> "Figure":
    """Plots a matrix, such as a confusion matrix of shares, as a heat map.

    Args:
        values (`np.ndarray` of shape `(R, C)`): NaN is left empty.
        row_names, column_names (`Sequence[str]`): R and C names.
        limits (`tuple[float, float]`, defaults to 0 and 1): values of the lightest and the darkest color.
        size (`tuple[float, float]`, *optional*): in inches; by default enough for the names.
        number_format (`str`, defaults to `".0%"`): of the numbers in the cells, if there are not too many.

    Returns:
        `matplotlib.figure.Figure`: to be saved or shown.

    Raises:
        ValueError: an empty matrix, or names that don't fit it.
    """
    from matplotlib.figure import Figure

    if not values.size or values.shape != (len(row_names), len(column_names)):
        raise ValueError(
            f"A heat map needs a value for each row and column, got {values.shape} for {len(row_names)} rows and "
            f"{len(column_names)} columns."
        )
    length = max(values.shape)
    side = max(5.0, 1.8 + 0.42 * length if length <= 20 else 3 + 0.19 * length)
    figure = Figure(figsize=size or (side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(values, vmin=limits[0], vmax=limits[1], cmap="Blues", aspect="auto", interpolation="none")
    options = {"fontsize": 10 if length <= 30 else 8, "parse_math": False}
    axis.set_xticks(range(len(column_names)), column_names, rotation=90, **options)
    axis.set_yticks(range(len(row_names)), row_names, **options)
    figure.colorbar(picture, ax=axis, fraction=0.04, pad=0.02)
    for (row, column), value in np.ndenumerate(values if values.size <= MAX_NUMBERS else np.empty((0, 0))):
        if np.isfinite(value):
            color = "white" if value > sum(limits) / 2 else "black"
            axis.text(column, row, format(value, number_format), ha="center", va="center", color=color, fontsize=8)
    return figure


def plot_curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> "Figure":
    """Plots curves over the steps of a training, four panels to a figure at most.

    Args:
        panels (`Mapping`): title of each panel → name of each of its curves → steps and values.

    Returns:
        `matplotlib.figure.Figure`: to be saved or shown.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(2, 2).flat, panels.items(), strict=False):
        for name, (steps, values) in curves.items():
            if len(steps):
                axis.plot(steps, values, label=name, marker="o" if len(steps) < 25 else None, markersize=3)
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(axis.lines) > 1:
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=9)
    return figure


def plot_embeddings(
    masks: np.ndarray,
    mask_classes: Sequence[int],
    texts: Mapping[int, np.ndarray],
    names: Sequence[str],
    palette: Sequence[Color],
) -> "Figure":
    """Plots masks and class texts in the two directions in which they differ most (Figure 1b of the paper).

    Args:
        masks (`np.ndarray` of shape `(M, E)`): embeddings of masks, drawn as dots.
        mask_classes (`Sequence[int]`): the class of each.
        texts (`Mapping[int, np.ndarray]`): class → embedding `(E,)` of its text, drawn as a star with its name.
        names, palette: name and color of each class, in the order of the ids.

    Returns:
        `matplotlib.figure.Figure`: to be saved or shown.
    """
    from matplotlib.figure import Figure

    points, shares = _principal_components(np.concatenate((masks, np.stack(list(texts.values())))))
    mask_points, text_points = np.split(points, [len(masks)])
    colors = np.array(palette) / 255
    figure = Figure(figsize=(10.5, 6.5), layout="constrained")
    axis = figure.subplots()
    axis.scatter(*mask_points.T, c=colors[mask_classes], s=22, alpha=0.75, linewidths=0.3, edgecolors="white")
    axis.scatter(*text_points.T, c=colors[list(texts)], marker="*", s=170, edgecolors="black", linewidths=0.7)
    order = sorted(zip(text_points.tolist(), texts, strict=True))
    for place, (point, label) in enumerate(order):
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


def _check_size(image: Image.Image, size: tuple[int, int]) -> None:
    if image.size != tuple(size):
        raise ValueError(f"Image and label map must have the same size, got {image.size} and {tuple(size)} (w, h).")


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, or as much of its beginning as has room in front of three dots."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


__all__ = [
    "OKABE_ITO",
    "VOID_COLOR",
    "WRONG_COLOR",
    "colorize",
    "compare",
    "confidence_map",
    "error_map",
    "legend",
    "legend_entries",
    "overlay",
    "plot_alignment",
    "plot_curves",
    "plot_embeddings",
    "plot_matrix",
]
