# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A segmentation data set, and how its examples are read and checked.

Images are decoded here rather than by `datasets`, so that a file that can't be read is reported by its name.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image, IterableDataset, IterableDatasetDict
from PIL import Image as PILImage
from tqdm.auto import tqdm
from transformers.utils import logging


logger = logging.get_logger(__name__)

IGNORE_INDEX = 255
SAMPLES_TO_CHECK = 50
# What Pillow's decoders raise on files that are no images, cut off, or too large.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    PILImage.DecompressionBombError,
)
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")


@dataclass
class SegmentationData:
    """A data set and how to read it.

    Attributes:
        splits (`DatasetDict` or `IterableDatasetDict`): "train", "validation" and "test", as far as there are any,
            with the columns `image`, `annotation` and `name`.
        class_names (`list[str]`): in the order of the label ids.
        palette (`list[tuple[int, int, int]]`): a colour for each class.
        label_ids (`dict[int, int]`): values in the annotations and the label ids that they stand for; values that are
            neither here nor in `ignored_values` are errors.
        ignored_values (`set[int]`): values in the annotations that stand for "no label".
        ignore_index (`int`): the label id for "no label".
    """

    splits: DatasetDict | IterableDatasetDict
    class_names: list[str]
    palette: list[tuple[int, int, int]]
    label_ids: dict[int, int]
    ignored_values: set[int] = field(default_factory=lambda: {IGNORE_INDEX})
    ignore_index: int = IGNORE_INDEX

    @cached_property
    def label_table(self) -> np.ndarray:
        """Label id of each value in the annotations, int64; -1 for values that must not occur. The last one stands for
        all greater values, and for negative ones."""
        table = np.full(max(*self.label_ids, *self.ignored_values, IGNORE_INDEX) + 2, -1, dtype=np.int64)
        table[list(self.ignored_values)] = self.ignore_index
        table[list(self.label_ids)] = list(self.label_ids.values())
        return table

    def read(self, example: Mapping[str, Any]) -> tuple[PILImage.Image, np.ndarray]:
        """Reads an example.

        Args:
            example (`Mapping[str, Any]`): of one of the splits, decoded or not.

        Returns:
            `tuple[PIL.Image.Image, np.ndarray]`: the RGB image, upright as its EXIF data say, and the int64 label map
            `(height, width)` with label ids and `ignore_index`.

        Raises:
            ValueError: a file that is missing or can't be decoded, no annotation, an annotation of another size than
                the image, or with a value that stands for no class; the message names file and value.
        """
        image = self.read_image(example)
        if example["annotation"] is None:
            raise ValueError(
                f"The image {_source(example, 'image')} has no annotation: it can neither be trained on nor evaluated."
            )
        source = _source(example, "annotation")
        picture = _decode(example["annotation"], source)
        annotation = np.array(picture)
        if annotation.ndim != 2 or annotation.dtype.kind == "f":
            raise ValueError(
                f"The annotation {source} has the mode {picture.mode!r}: expected one label id per pixel, as a grey "
                "or palette image."
            )
        if annotation.shape != (image.height, image.width):
            raise ValueError(
                f"The annotation {source} has the size {annotation.shape[1]} x {annotation.shape[0]}, but its image "
                f"{image.width} x {image.height}."
            )
        return image, self._to_label_ids(annotation, source)

    def read_image(self, example: Mapping[str, Any]) -> PILImage.Image:
        """Reads the image of an example, as [`~SegmentationData.read`] does, whether or not it has an annotation."""
        return read_rgb(example["image"], _source(example, "image"))

    def _to_label_ids(self, annotation: np.ndarray, source: str) -> np.ndarray:
        table = self.label_table
        if annotation.dtype != np.uint8:
            annotation = annotation.astype(np.int64)
        labels = table[annotation if annotation.dtype == np.uint8 else annotation.clip(-1, len(table) - 1)]
        if labels.min(initial=0) < 0:
            wrong = np.unique(annotation[labels < 0]).tolist()
            values = sorted(self.label_ids)
            raise ValueError(
                f"The annotation {source} has the values {wrong[:10]}, but the data set has {len(self.class_names)} "
                f"classes: expected values from {values[0]} to {values[-1]}, or {sorted(self.ignored_values)} for "
                "pixels to ignore. Mend the file or the list of classes."
            )
        return labels

    def check(self, split: str, how: str = "sample") -> np.ndarray:
        """Reads examples of a split and reports all that are unusable.

        Args:
            split (`str`): name of the split.
            how (`str`): `"sample"` reads 50 examples spread over the split (the first ones of a stream), `"full"` all,
                `"none"` none.

        Returns:
            `np.ndarray`: number of pixels of each class in what was read, int64.

        Raises:
            ValueError: an unknown `how`, or unusable examples, each with the reason.
        """
        if how not in ("sample", "full", "none"):
            raise ValueError(f"`how` must be 'sample', 'full' or 'none', got {how!r}.")
        counts = np.zeros(len(self.class_names), dtype=np.int64)
        if how == "none" or split not in self.splits:
            return counts
        problems = []
        for example in tqdm(_examples_to_check(self.splits[split], how), desc=f"Checking {split}", leave=False):
            try:
                _, labels = self.read(example)
            except ValueError as error:
                problems.append(str(error))
                continue
            counts += np.bincount(labels[labels != self.ignore_index], minlength=len(counts))
        if problems:
            listed = "\n".join(f"- {problem}" for problem in problems)
            raise ValueError(f"{len(problems)} unusable examples in the {split} split:\n{listed}")
        if how == "full" and not counts.all():
            absent = [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]
            logger.warning("Classes that don't occur in the %s split: %s.", split, ", ".join(absent))
        return counts


def read_rgb(value: Any, source: str) -> PILImage.Image:
    """Decodes an image, upright as its EXIF data say, in RGB.

    Args:
        value (`Any`): an image as `datasets` keeps it: a mapping with `path` and `bytes`, one of which may be `None`.
        source (`str`): names the image in errors.

    Raises:
        ValueError: a file that is missing or can't be decoded, or has more than 8 bits per channel.
    """
    image = _decode(value, source)
    if image.mode not in COLOUR_MODES:
        raise ValueError(
            f"The image {source} has the mode {image.mode!r}: expected 8 bits per channel. Convert it first, in the "
            "way that keeps what matters in it."
        )
    return image.convert("RGB")


def undecoded(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The same data set with files instead of decoded images, for [`SegmentationData.read`]."""
    for column in ("image", "annotation"):
        if isinstance((dataset.features or {}).get(column), Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def _examples_to_check(dataset: Dataset | IterableDataset, how: str) -> Iterable[Mapping[str, Any]]:
    dataset = undecoded(dataset)
    if how == "full":
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(SAMPLES_TO_CHECK)
    number = min(SAMPLES_TO_CHECK, len(dataset))
    return dataset.select(np.linspace(0, len(dataset) - 1, number).astype(int))


def _source(example: Mapping[str, Any], column: str) -> str:
    """The file of an image, or the name of its example."""
    value = example[column]
    path = value.get("path") if isinstance(value, Mapping) else getattr(value, "filename", None)
    return path or f"of {example['name']}"


def _decode(value: Any, source: str) -> PILImage.Image:
    try:
        image = Image().decode_example(value)
        image.load()
    except DECODING_ERRORS as error:
        raise ValueError(f"The file {source} can't be read: {error}.") from error
    return image


__all__ = ["IGNORE_INDEX", "SegmentationData", "read_rgb", "undecoded"]
