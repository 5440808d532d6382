# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What is written for each predicted image: class ids, a coloured overlay, areas, or what a benchmark expects.

A file is there either complete or not at all: it is written under another name first.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data import DATASETS, palette_of


ADE20K, CITYSCAPES = DATASETS["ade20k"], DATASETS["cityscapes"]
OVERLAY_OPACITY = 0.5
OVERLAY_QUALITY = 92
CITYSCAPES_NAME = re.compile(r"[^_]+_\d{6}_\d{6}")


class ResultFormat(ABC):
    """One kind of file that is written for each image.

    Args:
        class_names (`Sequence[str]`): in the order of the class ids.

    Raises:
        ValueError: classes that can't be written in this format.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    @abstractmethod
    def path(self, name: Path) -> Path:
        """The file for an image of this name (without suffix), relative to the output folder.

        Raises:
            ValueError: a name that the format can't have.
        """

    @abstractmethod
    def write(self, file: BinaryIO, source: str, image: Image.Image, labels: np.ndarray) -> None:
        """Writes a result.

        Args:
            file (`BinaryIO`): where to.
            source (`str`): what the image is called.
            image (`PIL.Image.Image`): the upright RGB image.
            labels (`np.ndarray` of shape `(height, width)`): int64 class ids, of the image's size.
        """

    def save(self, folder: Path, name: Path, source: str, image: Image.Image, labels: np.ndarray) -> None:
        """Writes a result into the output folder, all of it or nothing."""
        path = folder / self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            self.write(file, source, image, labels)
        partial.replace(path)


class IndexFormat(ResultFormat):
    """`name.png` with class ids from 0, coloured by a palette; more than 256 classes make it a 16-bit image."""

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        self.palette = [channel for colour in palette_of(class_names) for channel in colour]

    def path(self, name: Path) -> Path:
        """See [`ResultFormat`]."""
        return _with_ending(name, ".png")

    def write(self, file: BinaryIO, source: str, image: Image.Image, labels: np.ndarray) -> None:
        """See [`ResultFormat`]."""
        if len(self.class_names) > 256:
            Image.fromarray(labels.astype(np.uint16)).save(file, "PNG")
            return
        indexed = Image.fromarray(labels.astype(np.uint8))
        indexed.putpalette(self.palette)
        indexed.save(file, "PNG")


class OverlayFormat(ResultFormat):
    """`name_overlay.jpg`: the image tinted with the classes' colours above a legend of the classes by area."""

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        self.palette = np.array(palette_of(class_names), dtype=np.uint8)

    def path(self, name: Path) -> Path:
        """See [`ResultFormat`]."""
        return _with_ending(name, "_overlay.jpg")

    def write(self, file: BinaryIO, source: str, image: Image.Image, labels: np.ndarray) -> None:
        """See [`ResultFormat`]."""
        tinted = Image.blend(image, Image.fromarray(self.palette[labels]), OVERLAY_OPACITY)
        entries = [
            (f"{self.class_names[index]} {100 * count / labels.size:.1f} %", tuple(self.palette[index].tolist()))
            for index, count in _areas(labels)
        ]
        legend = _draw_legend(entries, image.width)
        picture = Image.new("RGB", (max(image.width, legend.width), image.height + legend.height), "white")
        picture.paste(tinted)
        picture.paste(legend, (0, image.height))
        picture.save(file, "JPEG", quality=OVERLAY_QUALITY)


class AreasFormat(ResultFormat):
    """`name.json`: the image's source and size, and pixels and share of each class that it has, largest first."""

    def path(self, name: Path) -> Path:
        """See [`ResultFormat`]."""
        return _with_ending(name, ".json")

    def write(self, file: BinaryIO, source: str, image: Image.Image, labels: np.ndarray) -> None:
        """See [`ResultFormat`]."""
        classes = [
            {"id": index, "name": self.class_names[index], "pixels": count, "share": count / labels.size}
            for index, count in _areas(labels)
        ]
        content = {"image": source, "height": labels.shape[0], "width": labels.shape[1], "classes": classes}
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode())


class CityscapesFormat(ResultFormat):
    """`city_000000_000000_pred.png` with label ids (not train ids), as Cityscapes' server and scripts expect it."""

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        if sorted(class_names) != sorted(CITYSCAPES.class_names):
            raise ValueError(
                f"--format cityscapes needs a model with the classes of Cityscapes, {list(CITYSCAPES.class_names)}; "
                f"this one has {list(class_names)}."
            )
        values = dict(zip(CITYSCAPES.class_names, CITYSCAPES.values, strict=True))
        self.label_ids = np.array([values[name] for name in class_names], dtype=np.uint8)

    def path(self, name: Path) -> Path:
        """See [`ResultFormat`]."""
        match = CITYSCAPES_NAME.match(name.name)
        if match is None:
            raise ValueError(
                f"--format cityscapes needs images with names like aachen_000000_000019_leftImg8bit.png, got {name}."
            )
        return name.with_name(f"{match[0]}_pred.png")

    def write(self, file: BinaryIO, source: str, image: Image.Image, labels: np.ndarray) -> None:
        """See [`ResultFormat`]."""
        Image.fromarray(self.label_ids[labels]).save(file, "PNG")


class ADE20KFormat(ResultFormat):
    """`name.png` with class ids from 1 to 150 (0 is "other"), as the server of SceneParse150 expects it."""

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        if tuple(class_names) != ADE20K.class_names:
            raise ValueError(
                "--format ade20k needs a model with the 150 classes of SceneParse150 by the first names in its "
                f"objectInfo150.csv; this one has {len(class_names)} classes, {list(class_names)[:5]} and so on."
            )

    def path(self, name: Path) -> Path:
        """See [`ResultFormat`]."""
        return _with_ending(name, ".png")

    def write(self, file: BinaryIO, source: str, image: Image.Image, labels: np.ndarray) -> None:
        """See [`ResultFormat`]."""
        Image.fromarray((labels + 1).astype(np.uint8)).save(file, "PNG")


FORMATS: dict[str, type[ResultFormat]] = {
    "index": IndexFormat,
    "overlay": OverlayFormat,
    "json": AreasFormat,
    "cityscapes": CityscapesFormat,
    "ade20k": ADE20KFormat,
}


def _with_ending(name: Path, ending: str) -> Path:
    return name.with_name(name.name + ending)


def _areas(labels: np.ndarray) -> list[tuple[int, int]]:
    """Class ids that occur and their numbers of pixels, most first."""
    counts = np.bincount(labels.ravel())
    return [(int(index), int(counts[index])) for index in np.argsort(-counts, kind="stable") if counts[index]]


def _draw_legend(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> Image.Image:
    """Coloured boxes with their texts, from left to right in as many lines as they need."""
    size = max(11, min(width // 45, 40))
    font, gap = ImageFont.load_default(size), size // 2
    lengths = [size + gap + int(font.getlength(text)) + 2 * gap for text, _ in entries]
    width = max(width, gap + max(lengths))
    places, x, y = [], gap, gap
    for length in lengths:
        if x + length > width and x > gap:
            x, y = gap, y + size + gap
        places.append((x, y))
        x += length
    legend = Image.new("RGB", (width, y + size + gap), "white")
    draw = ImageDraw.Draw(legend)
    for (text, colour), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=colour, outline="black")
        draw.text((x + size + gap, y + size / 2), text, fill="black", font=font, anchor="lm")
    return legend


__all__ = ["FORMATS", "ResultFormat"]
