# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What is written for each predicted image: class ids, an overlay, areas, or what a benchmark expects.

A file is there either complete or not at all, and holds a fingerprint of what it was made of.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ..data import DATASETS, palette_of
from ..visualization import compare, overlay


OVERLAY_QUALITY = 92
CITYSCAPES_NAME = re.compile(r"[^_]+_\d{6}_\d{6}")
# In a text chunk of PNG files, the comment of JPEG and MPEG-4 files and the first entry of JSON files.
FINGERPRINT = re.compile(rb"fingerprint\W+([0-9a-f]{64})")


class OtherResultError(Exception):
    """A file is in a result's place that something else made: another input, model or option."""


@dataclass(frozen=True)
class Result:
    """A file, and the fingerprint of what it is made of, 64 digits of a hash."""

    path: Path
    fingerprint: str

    def is_there(self) -> bool:
        """Whether it is there; raises an `OtherResultError` if something else is in its place."""
        if not self.path.exists():
            return False
        if fingerprint_of(self.path) != self.fingerprint:
            raise OtherResultError(
                f"{self.path} is there already, and was not made from this input by this model with these options. "
                "Delete it, choose another --output_dir, or --overwrite existing results."
            )
        return True

    @contextmanager
    def written(self) -> Iterator[Path]:
        """Gives a path to write to, which takes the file's place if that ends well."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        incomplete = self.path.with_name(f".{self.path.name}.partial")
        try:
            yield incomplete
            incomplete.replace(self.path)
        finally:
            incomplete.unlink(missing_ok=True)


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint in a file, at its start or end; `None` for files that are no results."""
    with path.open("rb") as file:
        start = file.read(4096)
        file.seek(-min(4096, path.stat().st_size), os.SEEK_END)
        found = FINGERPRINT.search(start) or FINGERPRINT.search(file.read())
    return found and found[1].decode()


def index_map(labels: np.ndarray, class_names: Sequence[str], *_: Any) -> Image.Image:
    """Class ids from 0, colored by a palette; more than 256 classes make it a 16-bit image."""
    if len(class_names) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    indexed = Image.fromarray(labels.astype(np.uint8))
    indexed.putpalette([channel for color in palette_of(class_names) for channel in color])
    return indexed


def overlay_with_legend(
    labels: np.ndarray, class_names: Sequence[str], image: Image.Image, source: str
) -> Image.Image:
    """The image tinted with the classes' colors above a legend of the classes by area."""
    palette = palette_of(class_names)
    tinted = overlay(image, labels, palette, ignore_index=-1)
    return compare([("", tinted)], class_names, palette, [labels], show_shares=True, ignore_index=-1)


def areas(labels: np.ndarray, class_names: Sequence[str], image: Image.Image, source: str) -> dict[str, Any]:
    """The image's source and size, and pixels and share of each class that it has, largest first."""
    counts = sorted(enumerate(np.bincount(labels.ravel()).tolist()), key=lambda each: -each[1])
    classes = [
        {"id": index, "name": class_names[index], "pixels": count, "share": count / labels.size}
        for index, count in counts
        if count
    ]
    return {"image": source, "height": image.height, "width": image.width, "classes": classes}


def benchmark_map(dataset: str, labels: np.ndarray, class_names: Sequence[str], *_: Any) -> Image.Image:
    """The values that the classes have in the data set's own annotations."""
    values = dict(zip(DATASETS[dataset].class_names, DATASETS[dataset].values, strict=True))
    return Image.fromarray(np.array([values[name] for name in class_names], np.uint8)[labels])


@dataclass(frozen=True)
class ResultFormat:
    """One kind of result: the ending of its files' names, what is in them, and whose classes the model must have."""

    ending: str
    content: Callable[[np.ndarray, Sequence[str], Image.Image, str], Image.Image | dict[str, Any]]
    dataset: str | None = None

    def check(self, class_names: Sequence[str]) -> None:
        """Raises a `ValueError` for classes that can't be written in this format."""
        expected = DATASETS[self.dataset].class_names if self.dataset else class_names
        if sorted(class_names) != sorted(expected):
            raise ValueError(
                f"--format {self.dataset} needs a model with the classes of {DATASETS[self.dataset].title}, "
                f"{list(expected)}; this one has {list(class_names)}."
            )

    def path(self, name: Path) -> Path:
        """The file for an image of this name (without suffix); a `ValueError` for one that the format can't have."""
        stem = name.name
        if self.dataset == "cityscapes":
            match = CITYSCAPES_NAME.match(stem)
            if match is None:
                raise ValueError(
                    "--format cityscapes needs images with names like aachen_000000_000019_leftImg8bit.png, got "
                    f"{name}."
                )
            stem = match[0]
        return name.with_name(stem + self.ending)

    def write(
        self, result: Result, source: str, image: Image.Image, class_names: Sequence[str], labels: np.ndarray
    ) -> None:
        """Writes a result for the class ids `(height, width)` of an upright RGB image that is called `source`."""
        content, fingerprint = self.content(labels, class_names, image, source), result.fingerprint
        with result.written() as path:
            if self.ending.endswith(".json"):
                text = json.dumps({"fingerprint": fingerprint} | content, indent=2, ensure_ascii=False)
                path.write_text(text, "utf-8")
            elif self.ending.endswith(".jpg"):
                content.save(path, "JPEG", quality=OVERLAY_QUALITY, comment=f"fingerprint {fingerprint}")
            else:
                about = PngImagePlugin.PngInfo()
                about.add_text("fingerprint", fingerprint)
                content.save(path, "PNG", pnginfo=about)


FORMATS = {
    "index": ResultFormat(".png", index_map),
    "overlay": ResultFormat("_overlay.jpg", overlay_with_legend),
    "json": ResultFormat(".json", areas),
    "cityscapes": ResultFormat("_pred.png", partial(benchmark_map, "cityscapes"), "cityscapes"),
    "ade20k": ResultFormat(".png", partial(benchmark_map, "ade20k"), "ade20k"),
}


__all__ = ["FORMATS", "OtherResultError", "Result", "ResultFormat", "fingerprint_of"]
