# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A segmentation data set: how its examples are read, and what is wrong with them before a run starts."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image, IterableDataset, IterableDatasetDict
from PIL import Image as PILImage
from tqdm.auto import tqdm
from transformers.utils import logging

from .catalog import IGNORE_INDEX, DatasetInfo
from .image_files import MAX_PIXELS, UNNAMED, image_size, name_of, open_image, open_label_map


logger = logging.get_logger(__name__)

CHECKS = ("sample", "full", "none")
SAMPLES_TO_CHECK, SAMPLES_WITHOUT_CHECK = 50, 8
MAX_NAMES = 20
MAX_CHECK_THREADS = 8


@dataclass
class SegmentationData:
    """A data set and how to read it.

    Attributes:
        splits (`DatasetDict` or `IterableDatasetDict`): "train", "validation" and "test", as far as there are any,
            with the columns `image`, `annotation` and `name`.
        info ([`DatasetInfo`]): its classes, and what the values in the annotations stand for.
        max_pixels (`int`, *optional*): larger images are refused; `None`: none are.
    """

    splits: DatasetDict | IterableDatasetDict
    info: DatasetInfo
    max_pixels: int | None = MAX_PIXELS

    ignore_index = IGNORE_INDEX

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their label ids."""
        return list(self.info.class_names)

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """A color for each class."""
        return list(self.info.palette)

    @cached_property
    def label_table(self) -> np.ndarray:
        """Label id of each value in the annotations, int64; -1 for values that must not occur. The last one stands for
        all greater values, and for negative ones."""
        table = np.full(max(*self.info.values, *self.info.ignored_values, IGNORE_INDEX) + 2, -1, dtype=np.int64)
        table[list(self.info.ignored_values)] = IGNORE_INDEX
        table[list(self.info.values)] = np.arange(len(self.info.values))
        return table

    def split(self, name: str, max_samples: int | None = None) -> Dataset | IterableDataset:
        """The first examples of a split, or all, with files in place of decoded images.

        Raises:
            ValueError: the split is absent or empty.
        """
        if name not in self.splits:
            advice = " Or split some images off the training set: `train_val_split`." if name == "validation" else ""
            raise ValueError(f"The data set has no {name} split, only {sorted(self.splits)}.{advice}")
        dataset = undecoded(self.splits[name])
        if isinstance(dataset, IterableDataset):
            return dataset if max_samples is None else dataset.take(max_samples)
        if len(dataset) == 0:
            raise ValueError(f"The {name} split is empty.")
        return dataset if max_samples is None else dataset.select(range(min(max_samples, len(dataset))))

    def read(self, example: Mapping[str, Any]) -> tuple[PILImage.Image, np.ndarray]:
        """Reads an example.

        Args:
            example (`Mapping[str, Any]`): of one of the splits, decoded or not.

        Returns:
            `tuple[PIL.Image.Image, np.ndarray]`: the RGB image, upright as its EXIF data say, and the int64 label map
            `(height, width)` with label ids and 255.

        Raises:
            ValueError: a file that is missing or can't be decoded, no annotation, an annotation of another size than
                the image, or with a value that stands for no class; the message names file and value.
        """
        image, annotation = self.read_image(example), self._read_annotation(example)
        _require_one_size(example, annotation, image.size)
        return image, self._to_label_ids(annotation, _source(example, "annotation"))

    def read_image(self, example: Mapping[str, Any]) -> PILImage.Image:
        """Reads the image of an example, as [`~SegmentationData.read`] does, whether or not it has an annotation."""
        return open_image(example["image"], self.max_pixels, _source(example, "image"))

    def _read_annotation(self, example: Mapping[str, Any]) -> np.ndarray:
        if example["annotation"] is None:
            raise ValueError(
                f"The image {_source(example, 'image')} has no annotation: it can neither be trained on nor evaluated."
            )
        return open_label_map(example["annotation"], self.max_pixels, _source(example, "annotation"))

    def _to_label_ids(self, annotation: np.ndarray, source: str) -> np.ndarray:
        table = self.label_table
        if annotation.dtype != np.uint8:
            annotation = annotation.astype(np.int64)
        labels = table[annotation if annotation.dtype == np.uint8 else annotation.clip(-1, len(table) - 1)]
        if labels.min(initial=0) < 0:
            wrong, found = np.unique(annotation[labels < 0]).tolist(), np.unique(annotation)
            values = sorted(self.info.values)
            looks_gray = len(found) > len(values) + len(self.info.ignored_values)
            raise ValueError(
                f"The annotation {source} has the values {wrong[:10]}, but the data set has {len(values)} classes: "
                f"expected values from {values[0]} to {values[-1]}, or {sorted(self.info.ignored_values)} for pixels "
                "to ignore. Mend the file or the list of classes."
                + (f" With {len(found)} different values it looks like a gray picture." if looks_gray else "")
            )
        return labels

    def check(
        self, split: str, how: str = "sample", max_bad_share: float = 0.0, max_samples: int | None = None
    ) -> np.ndarray:
        """Reads examples of a split, and reports all that are unusable and what looks wrong in them together.

        Args:
            split (`str`): name of the split.
            how (`str`): `"sample"` reads the annotations and the beginnings of all images, of the training split and
                of streams 50 examples; `"full"` reads all. `"none"` only judges the labels of a few.
            max_bad_share (`float`): share of the examples that may be unusable.
            max_samples (`int`, *optional*): the first so many examples only.

        Returns:
            `np.ndarray`: number of pixels of each class in what was read, int64; zeros for `"none"`.

        Raises:
            ValueError: an unknown `how`, more unusable examples than allowed, each with the reason, or labels that can
                only be a mistake: none at all, or nothing but 0 and 255.
        """
        if how not in CHECKS:
            raise ValueError(f"`how` must be 'sample', 'full' or 'none', got {how!r}.")
        findings = _Findings(split, self.info)
        if split in self.splits:
            self._look_at(self.split(split, max_samples), how, findings)
        if how != "none":
            findings.report_unusable(max_bad_share)
        findings.judge(strictly=how != "none")
        return findings.counts * (how != "none")

    def _look_at(self, dataset: Dataset | IterableDataset, how: str, findings: "_Findings") -> None:
        is_stream = isinstance(dataset, IterableDataset)
        reads_all = how == "full" or (how == "sample" and findings.split != "train" and not is_stream)
        if not reads_all:
            number = SAMPLES_WITHOUT_CHECK if how == "none" else SAMPLES_TO_CHECK
            if is_stream:
                findings.part, dataset = f"the first {number} examples of ", dataset.take(number)
            elif len(dataset) > number:
                findings.part = f"{number} of {len(dataset)} examples of "
                dataset = dataset.select(np.linspace(0, len(dataset) - 1, number).astype(int))
        look = partial(self._look, whole=how == "full" or not reads_all)
        rows = iter(tqdm(dataset, desc=f"Checking {findings.split}", leave=False))
        with ThreadPoolExecutor(min(MAX_CHECK_THREADS, os.cpu_count() or 1)) as pool:
            # Not all at once: rows may hold the content of their files.
            while some := list(islice(rows, 8 * MAX_CHECK_THREADS)):
                for each in pool.map(look, some):
                    findings.add(*each)

    def _look(self, example: Mapping[str, Any], whole: bool) -> tuple[str, np.ndarray, np.ndarray | str]:
        """The annotation of an example, its values and the number of pixels of each label id, or what is wrong."""
        source = _source(example, "annotation")
        try:
            annotation = self._read_annotation(example)
            name = _source(example, "image")
            size = self.read_image(example).size if whole else image_size(example["image"], self.max_pixels, name)
            if size != annotation.shape[::-1]:
                self.read(example)
            values, pixels = _histogram(annotation)
            labels = self._to_label_ids(values, source)
        except ValueError as error:
            return source, np.array([]), str(error)
        return source, values, np.bincount(labels, pixels, minlength=IGNORE_INDEX + 1).astype(np.int64)


@dataclass
class _Findings:
    """What was seen in the annotations of a split, and what it means."""

    split: str
    info: DatasetInfo
    part: str = ""
    values: set[int] = field(default_factory=set)
    sources: list[str] = field(default_factory=list)
    unlabeled: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.info.class_names), dtype=np.int64)

    def add(self, source: str, values: np.ndarray, result: np.ndarray | str) -> None:
        if isinstance(result, str):
            self.problems.append(result)
            return
        self.sources.append(source)
        self.values.update(values.tolist())
        counts = result[: len(self.counts)]
        self.counts += counts
        if not counts.any():
            self.unlabeled.append(source)

    @property
    def where(self) -> str:
        return f"{self.part}the {self.split} split"

    def report_unusable(self, max_bad_share: float) -> None:
        if self.problems:
            listed = "\n".join(f"- {problem}" for problem in self.problems)
            message = f"{len(self.problems)} unusable examples in {self.where}:\n{listed}"
            if len(self.problems) > allowed_bad(max_bad_share, len(self.problems) + len(self.sources)):
                more = ", or allow more with `max_bad_share`" if self.split == "train" else ""
                raise ValueError(f"{message}\nMend or remove these files{more}.")
            logger.warning("%s", message)

    def judge(self, strictly: bool) -> None:
        if not self.sources:
            return
        mistake = self._surest_mistake()
        if mistake and strictly:
            raise ValueError(mistake)
        for remark in [mistake] if mistake else self._remarks():
            logger.warning("%s", remark)

    def _surest_mistake(self) -> str:
        first = self.sources[0]
        if not self.counts.any():
            return (
                f"No pixel of {self.where} is labeled, e.g. in {first}: the values {sorted(self.values)} all stand "
                "for 'no label'. Give each class its id, or choose another `ignore_index` in classes.json."
            )
        if self.values == {0, IGNORE_INDEX} and self.info.values[:2] == (0, 1):
            object_name = self.info.class_names[1]
            return (
                f"The annotations of {self.where} hold only the values 0 and 255, e.g. {first}: 255 stands for 'no "
                f"label', so that no pixel of {object_name!r} would be trained on or scored. If 255 is meant to be "
                f"{object_name!r}, write 1 in its place: `mask[mask == 255] = 1`."
            )
        return ""

    def _remarks(self) -> Iterator[str]:
        if self.unlabeled:
            files = f"{len(self.unlabeled)} files of {self.where}"
            yield f"{files} have no labeled pixel, and add nothing: {_listed(self.unlabeled)}."
        present = [name for name, count in zip(self.info.class_names, self.counts, strict=True) if count]
        if absent := [name for name in self.info.class_names if name not in present]:
            yield f"Classes that don't occur in {self.where}: {_listed(absent)}."
        if absent and len(present) == 1:
            yield (
                f"Every labeled pixel of {self.where} is {present[0]!r}: a model that always answers {present[0]!r} "
                f"would score perfectly. Check the values in the annotations, e.g. {self.sources[0]}."
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" … ({len(names)})" if len(names) > MAX_NAMES else "")


def allowed_bad(max_bad_share: float, number: int) -> int:
    """How many of so many examples may be unusable: at least one, unless none is asked for."""
    return max(1, int(max_bad_share * number)) if max_bad_share > 0 else 0


def undecoded(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The same data set with files instead of decoded images, for [`SegmentationData.read`]."""
    for column in ("image", "annotation"):
        if isinstance((dataset.features or {}).get(column), Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def _histogram(annotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values in an annotation and the number of pixels of each."""
    if annotation.dtype != np.uint8:
        return np.unique(annotation, return_counts=True)
    pixels = np.bincount(annotation.ravel(), minlength=256)
    values = np.flatnonzero(pixels)
    return values, pixels[values]


def _require_one_size(example: Mapping[str, Any], annotation: np.ndarray, size: tuple[int, int]) -> None:
    height, width = annotation.shape
    if (width, height) == size:
        return
    advice = "Mend the annotation, or move both away."
    if (height, width) == size:
        advice = (
            "Width and height are exchanged: turn the annotation. Images are turned as their EXIF orientation says, "
            "and annotations belong to the upright image."
        )
    raise ValueError(
        f"The annotation {_source(example, 'annotation')} has the size {width} x {height}, but its image {size[0]} x "
        f"{size[1]}. {advice}"
    )


def _source(example: Mapping[str, Any], column: str) -> str:
    """The file of an image, or the name of its example."""
    name = name_of(example[column])
    return f"of {example['name']}" if name == UNNAMED else name


__all__ = ["SegmentationData", "allowed_bad", "undecoded"]
