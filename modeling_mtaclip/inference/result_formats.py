# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What is written for each predicted image: class ids, an overlay, areas, or what a benchmark expects.

A file is there either complete or not at all, and says of what it was made: its fingerprint, a hash of the image, the
model and the options.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from ..data import DATASETS, palette_of
from ..visualization import compare, overlay


ADE20K, CITYSCAPES = DATASETS["ade20k"], DATASETS["cityscapes"]
OVERLAY_QUALITY = 92
CITYSCAPES_NAME = re.compile(r"[^_]+_\d{6}_\d{6}")
# Stands in a text chunk of PNG files, the comment of JPEG files and the first entry of JSON files.
FINGERPRINT = re.compile(rb"fingerprint\W+([0-9a-f]{32}:[0-9a-f]+(?:-\d+)?)")


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint of a file that [`ResultFormat.save`] wrote; `None` for others."""
    with path.open("rb") as file:
        found = FINGERPRINT.search(file.read(4096))
    return found and found[1].decode()


class ResultFormat:
    """One kind of file that is written for each image.

    Args:
        class_names (`Sequence[str]`): in the order of the class ids.

    Attributes:
        ending (`str`): of the files' names.

    Raises:
        ValueError: classes that can't be written in this format.
    """

    ending = ".png"

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    def path(self, name: Path) -> Path:
        """The file for an image of this name (without suffix), relative to the output folder.

        Raises:
            ValueError: a name that the format can't have.
        """
        return name.with_name(name.name + self.ending)

    def write(self, path: Path, source: str, image: Image.Image, labels: np.ndarray, fingerprint: str) -> None:
        """Writes a result.

        Args:
            path (`Path`): the file; its suffix says nothing.
            source (`str`): what the image is called.
            image (`PIL.Image.Image`): the upright RGB image.
            labels (`np.ndarray` of shape `(height, width)`): int64 class ids, of the image's size.
            fingerprint (`str`): of what the result was made.
        """
        about = PngImagePlugin.PngInfo()
        about.add_text("fingerprint", fingerprint)
        self.encode(labels).save(path, "PNG", pnginfo=about)

    def encode(self, labels: np.ndarray) -> Image.Image:
        """The class ids as the image that is written."""
        raise NotImplementedError

    def save(self, path: Path, *result: object) -> None:
        """Writes a result, all of it or nothing; arguments as for `write`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            self.write(partial, *result)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class IndexFormat(ResultFormat):
    """`name.png` with class ids from 0, colored by a palette; more than 256 classes make it a 16-bit image."""

    def encode(self, labels: np.ndarray) -> Image.Image:
        """See [`ResultFormat`]."""
        if len(self.class_names) > 256:
            return Image.fromarray(labels.astype(np.uint16))
        indexed = Image.fromarray(labels.astype(np.uint8))
        indexed.putpalette([channel for color in palette_of(self.class_names) for channel in color])
        return indexed


class OverlayFormat(ResultFormat):
    """`name_overlay.jpg`: the image tinted with the classes' colors above a legend of the classes by area."""

    ending = "_overlay.jpg"

    def write(self, path: Path, source: str, image: Image.Image, labels: np.ndarray, fingerprint: str) -> None:
        """See [`ResultFormat`]."""
        palette = palette_of(self.class_names)
        tinted = overlay(image, labels, palette, ignore_index=-1)
        picture = compare([("", tinted)], self.class_names, palette, [labels], show_shares=True, ignore_index=-1)
        picture.save(path, "JPEG", quality=OVERLAY_QUALITY, comment=f"fingerprint {fingerprint}")


class AreasFormat(ResultFormat):
    """`name.json`: the image's source and size, and pixels and share of each class that it has, largest first."""

    ending = ".json"

    def write(self, path: Path, source: str, image: Image.Image, labels: np.ndarray, fingerprint: str) -> None:
        """See [`ResultFormat`]."""
        counts = np.bincount(labels.ravel())
        classes = [
            {"id": index, "name": self.class_names[index], "pixels": count, "share": count / labels.size}
            for index, count in sorted(enumerate(counts.tolist()), key=lambda each: -each[1])
            if count
        ]
        content = {"fingerprint": fingerprint, "image": source, "height": labels.shape[0], "width": labels.shape[1]}
        path.write_text(json.dumps(content | {"classes": classes}, indent=2, ensure_ascii=False), "utf-8")


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

    def encode(self, labels: np.ndarray) -> Image.Image:
        """See [`ResultFormat`]."""
        return Image.fromarray(self.label_ids[labels])


class ADE20KFormat(ResultFormat):
    """`name.png` with class ids from 1 to 150 (0 is "other"), as the server of SceneParse150 expects it."""

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        if tuple(class_names) != ADE20K.class_names:
            raise ValueError(
                "--format ade20k needs a model with the 150 classes of SceneParse150 by the first names in its "
                f"objectInfo150.csv; this one has {len(class_names)} classes, {list(class_names)[:5]} and so on."
            )

    def encode(self, labels: np.ndarray) -> Image.Image:
        """See [`ResultFormat`]."""
        return Image.fromarray((labels + 1).astype(np.uint8))


FORMATS: dict[str, type[ResultFormat]] = {
    "index": IndexFormat,
    "overlay": OverlayFormat,
    "json": AreasFormat,
    "cityscapes": CityscapesFormat,
    "ade20k": ADE20KFormat,
}


__all__ = ["FORMATS", "ResultFormat", "fingerprint_of"]
