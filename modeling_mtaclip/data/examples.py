# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A segmentation data set's way from files to batches: examples are read, checked, augmented and collated.

Splits are lists, or streams of which each process reads its own share. Files that can't be used are named and counted.
"""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm
from transformers.utils import logging

from ..loss_mtaclip import classes_of_images
from .augmentation import Augmentation, random_choices
from .catalog import IGNORE_INDEX, MAX_VALUE, DatasetInfo
from .image_files import MAX_PIXELS, image_size, name_of, open_image, open_label_map


logger = logging.get_logger(__name__)

# How many examples are looked at of a part of a split, by how it is checked.
SAMPLE_SIZES = {"sample": 50, "full": 2**63 - 1, "none": 8}
MAX_NAMES = 20
MAX_CHECK_THREADS = 8
# A stream is allowed so many unusable examples before their share counts.
MIN_STREAM_LENGTH = 1000
SHUFFLE_BUFFER = 256
# Unusable examples of a stream are remembered by a hash of their name; of 1000, fewer than one shares its place.
NUM_HASHES = 2**20

Split = datasets.Dataset | datasets.IterableDataset


@dataclass
class SegmentationData:
    """A data set and how to read it.

    Attributes:
        splits (`DatasetDict` or `IterableDatasetDict`): "train", "validation" and "test", as far as there are any,
            with the columns `image` and `annotation`, files or images, and `name`.
        info ([`DatasetInfo`]): its classes, and what the values in the annotations stand for.
        max_pixels (`int`, *optional*): larger images are refused; `None`: none are.
    """

    splits: datasets.DatasetDict | datasets.IterableDatasetDict
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

    def split(self, name: str, max_samples: int | None = None) -> Split:
        """The first examples of a split, or all; an absent or empty one is a `ValueError`."""
        if name not in self.splits:
            advice = " Or split some images off the training set: `train_val_split`." if name == "validation" else ""
            raise ValueError(f"The data set has no {name} split, only {sorted(self.splits)}.{advice}")
        dataset = self.splits[name]
        if isinstance(dataset, datasets.IterableDataset):
            return dataset if max_samples is None else dataset.take(max_samples)
        if len(dataset) == 0:
            raise ValueError(f"The {name} split is empty.")
        return dataset if max_samples is None else dataset.select(range(min(max_samples, len(dataset))))

    def read(self, example: Mapping[str, Any]) -> tuple[Image.Image, np.ndarray]:
        """Reads the image of an example, RGB and upright as its EXIF data say, and its label map, int64
        `(height, width)` with label ids and 255.

        Raises:
            ValueError: a file that can't be read, no annotation, one of another size than the image, or with a value
                that stands for no class; the message names file and value.
        """
        image, annotation = self._read_image(example), self._read_annotation(example)
        _require_one_size(example, annotation, image.size)
        return image, self._to_label_ids(annotation, _source(example, "annotation"))

    def _read_image(self, example: Mapping[str, Any]) -> Image.Image:
        return open_image(example["image"], self.max_pixels, _source(example, "image"))

    def _read_annotation(self, example: Mapping[str, Any]) -> np.ndarray:
        if example["annotation"] is None:
            raise ValueError(
                f"The image {_source(example, 'image')} has no annotation: it can neither be trained on nor evaluated."
            )
        return open_label_map(example["annotation"], self.max_pixels, _source(example, "annotation"))

    def _to_label_ids(self, annotation: np.ndarray, source: str) -> np.ndarray:
        # Values of one or two bytes are in the table.
        labels = self.info.label_table[annotation if annotation.itemsize < 4 else annotation.clip(-1, MAX_VALUE + 1)]
        if labels.min(initial=0) < 0:
            wrong, found = np.unique(annotation[labels < 0]).tolist(), np.unique(annotation)
            values, ignored = sorted(self.info.values), sorted(self.info.ignored_values)
            gray = f" With {len(found)} different values it looks like a gray picture."
            raise ValueError(
                f"The annotation {source} has the values {wrong[:10]}, but the data set has {len(values)} classes: "
                f"expected values from {values[0]} to {values[-1]}, or {ignored} for pixels to ignore. Mend the file "
                f"or the list of classes.{gray if len(found) > len(values) + len(ignored) else ''}"
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
            ValueError: more unusable examples than allowed, each with the reason, or labels that can only be a
                mistake: none at all, or nothing but 0 and 255.
        """
        dataset, number = self.split(split, max_samples), SAMPLE_SIZES[how]
        is_stream = isinstance(dataset, datasets.IterableDataset)
        headers_only = how == "sample" and split != "train" and not is_stream
        if is_stream:
            dataset = dataset.take(number)
        elif not headers_only:
            dataset = dataset.select(np.linspace(0, len(dataset) - 1, min(number, len(dataset))).astype(int))
        files, problems, pixels = [], [], Counter()
        for source, found in self._look_at_all(tqdm(dataset, desc=f"Checking {split}", leave=False), headers_only):
            if isinstance(found, str):
                problems.append(found)
            else:
                files.append((source, found))
                pixels.update(found)
        if problems and how != "none":
            message = "\n- ".join([f"{len(problems)} unusable examples in the {split} split:", *problems])
            if len(problems) > allowed_bad(max_bad_share, len(problems) + len(files)):
                more = ", or allow more with `max_bad_share`" if split == "train" else ""
                raise ValueError(f"{message}\nMend or remove these files{more}.")
            logger.warning("%s", message)
        try:
            _judge(files, pixels, self.info, f"{len(files)} examples of the {split} split")
        except ValueError as error:
            if how != "none":
                raise
            logger.warning("%s", error)
        return np.array([pixels[value] * (how != "none") for value in self.info.values], dtype=np.int64)

    def _look_at_all(
        self, dataset: Iterable[Mapping[str, Any]], headers_only: bool
    ) -> Iterator[tuple[str, dict[int, int] | str]]:
        rows, look = iter(dataset), partial(self._look, headers_only=headers_only)
        with ThreadPoolExecutor(min(MAX_CHECK_THREADS, os.cpu_count() or 1)) as pool:
            # Not all at once: rows may hold the content of their files.
            while some := list(islice(rows, 8 * MAX_CHECK_THREADS)):
                yield from pool.map(look, some)

    def _look(self, example: Mapping[str, Any], headers_only: bool) -> tuple[str, dict[int, int] | str]:
        """The annotation of an example, and how many pixels have each value, or what is wrong."""
        source = _source(example, "annotation")
        try:
            annotation, size = self._read_annotation(example), None
            if headers_only:
                size = image_size(example["image"], self.max_pixels, _source(example, "image"))
            # What turns an image may stand after its pixels, where headers don't tell.
            if size != annotation.shape[::-1]:
                _require_one_size(example, annotation, self._read_image(example).size)
            self._to_label_ids(annotation, source)
        except ValueError as error:
            return source, str(error)
        pixels = np.bincount(annotation.ravel())
        return source, {value: int(pixels[value]) for value in np.flatnonzero(pixels).tolist()}


def _require_one_size(example: Mapping[str, Any], annotation: np.ndarray, size: tuple[int, int]) -> None:
    height, width = annotation.shape
    if (width, height) != size:
        raise ValueError(
            f"The annotation {_source(example, 'annotation')} has the size {width} x {height}, but its image, upright "
            f"as its EXIF orientation says, {size[0]} x {size[1]}. Mend or turn the annotation, or move both away."
        )


def _source(example: Mapping[str, Any], column: str) -> str:
    """The file of an image, or the name of its example."""
    return name_of(example[column], f"of {example['name']}")


def _judge(
    files: Sequence[tuple[str, Mapping[int, int]]], pixels: Mapping[int, int], info: DatasetInfo, where: str
) -> None:
    """Warns of what looks wrong in the values of all files together; what can only be a mistake is a `ValueError`."""
    if not files:
        return
    names, example = info.class_names, files[0][0]
    present = [name for name, value in zip(names, info.values, strict=True) if pixels[value]]
    absent = [name for name in names if name not in present]
    unlabeled = [source for source, found in files if found.keys() <= info.ignored_values]
    if not present:
        raise ValueError(
            f"No pixel of {where} is labeled, e.g. in {example}: the values {sorted(pixels)} all stand for 'no "
            "label'. Give each class its id, or choose another `ignore_index` in classes.json."
        )
    if pixels.keys() == {0, IGNORE_INDEX} and info.values[:2] == (0, 1):
        raise ValueError(
            f"The annotations of {where} hold only the values 0 and 255, e.g. {example}: 255 stands for 'no label', "
            f"so that no pixel of {names[1]!r} would be trained on or scored. If 255 is meant to be {names[1]!r}, "
            "write 1 in its place: `mask[mask == 255] = 1`."
        )
    for what, those in (
        ("Without any labeled pixel, adding nothing", unlabeled),
        ("Classes that don't occur", absent),
    ):
        if those:
            listed = ", ".join(those[:MAX_NAMES]) + " …" * (len(those) > MAX_NAMES)
            logger.warning("%s in %s: %d, %s.", what, where, len(those), listed)
    if absent and len(present) == 1:
        logger.warning(
            "Every labeled pixel of %s is %r: a model that always answers this would score perfectly. Check the "
            "values in the annotations, e.g. %s.",
            *(where, present[0], example),
        )


def allowed_bad(max_bad_share: float, number: int) -> int:
    """How many of so many examples may be unusable: at least one, unless none is asked for."""
    return max(1, int(max_bad_share * number)) if max_bad_share > 0 else 0


def seed_of(*parts: int | str) -> int:
    """A seed in 0 … 2^63 - 1 that depends on all parts and looks unlike that of other parts."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class BadExamplesError(RuntimeError):
    """More training examples can't be used than the run allows."""


@dataclass(eq=False, repr=False)
class _Examples:
    """What lists and streams of examples have in common."""

    data: SegmentationData
    split: str
    augmentation: Augmentation | None = None
    seed: int = 0
    max_samples: int | None = None
    max_bad_share: float = 0.01
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.dataset = self.data.split(self.split, self.max_samples)
        number = NUM_HASHES if isinstance(self.dataset, datasets.IterableDataset) else len(self.dataset)
        # Shared with the workers of a data loader, which outlive an epoch.
        self.bad = torch.zeros(number, dtype=torch.bool).share_memory_()
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def num_bad(self) -> int:
        """Number of examples that turned out to be unusable."""
        return int(self.bad.sum())

    def _read(self, example: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
        image, labels = self.data.read(example)
        if self.augmentation is None:
            return {"image": image, "annotation": labels, "name": example["name"]}
        # Label ids and 255 fit into a byte, which is quicker to move about.
        mask = tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8))[None])
        with random_choices(seed):
            pixel_values, mask = self.augmentation(F.to_image(image), mask)
        return {
            "pixel_values": pixel_values.as_subclass(Tensor).contiguous(),
            "labels": mask.as_subclass(Tensor)[0],
            "point_seeds": torch.tensor(seed),
            "names": example["name"],
        }

    def _report(self, place: int, remedy: str, error: ValueError) -> None:
        if not self.bad[place]:
            logger.warning("An unusable example was %s: %s", remedy, error)
        self.bad[place] = True

    def _require_few(self, num_bad: int, number: int, allowed: int, error: ValueError) -> None:
        if self.augmentation is not None and num_bad > allowed:
            raise BadExamplesError(
                f"{num_bad} of {number} training examples can't be used, and {allowed} may be (`max_bad_share`). The "
                f"last one: {error}"
            ) from error


class SegmentationExamples(_Examples, Dataset):
    """Examples of a split: to train on with an augmentation, else as they are in the files.

    With one, an example that can't be used is replaced by another, with a warning. Without, it is an error when it is
    asked for by its index, and data loaders leave it out of their batches, with a warning. `bad` (bool `Tensor`) tells
    which examples turned out to be unusable in any worker of this process.

    Args:
        data ([`SegmentationData`]), split (`str`): what is read; an absent or empty split is a `ValueError`.
        augmentation ([`Augmentation`], *optional*): what happens to each image.
        seed (`int`): of all random choices.
        max_samples (`int`, *optional*): uses the first so many examples only.
        max_bad_share (`float`): share of the training examples that may be unusable; at least one, unless it is 0.
    """

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random choices of an epoch."""
        self._epoch[0] = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example: `image` (PIL, RGB), `annotation` `(h, w)` int64 and `name`; or, augmented, `pixel_values`
        `(3, h, w)` float32, `labels` `(h, w)` int64, `point_seeds` `()` int64 and `names`.

        Raises:
            ValueError: without augmentation, an unusable example.
            BadExamplesError: with it, more unusable examples than allowed.
        """
        if self.augmentation is None:
            return self._read(self.dataset[index])
        seed = seed_of(self.seed, int(self._epoch[0]), index)
        replacements = random.Random(seed)
        while True:
            try:
                return self._read(self.dataset[index], seed)
            except ValueError as error:
                self._report(index, "replaced by another", error)
                allowed = min(allowed_bad(self.max_bad_share, len(self)), len(self) - 1)
                self._require_few(self.num_bad, len(self), allowed, error)
            index = replacements.randrange(len(self))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The usable ones of several examples, as data loaders ask for them."""
        examples = []
        for index in indices:
            try:
                examples.append(self[index])
            except ValueError as error:
                self._report(index, "left out", error)
        return examples


class SegmentationStream(_Examples, IterableDataset):
    """Examples of a split that is read while they are used; those that can't be are left out, with a warning.

    Arguments and examples as of [`SegmentationExamples`], and `rank` and `world_size`: which process of how many this
    is; each reads its own share. With an augmentation, examples come over and over again, shuffled within a buffer, in
    an order that depends on the seed and the numbers of processes and workers. The random choices for an example
    depend on the seed, on how often all were read, and on its name.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Examples; a [`BadExamplesError`] ends training when more are unusable than allowed."""
        for repetition in count():
            number, num_bad = 0, 0
            for number, example in enumerate(self._share(repetition), start=1):
                try:
                    yield self._read(example, seed_of(self.seed, repetition, example["name"]))
                except ValueError as error:
                    num_bad, last_error = num_bad + 1, error
                    self._report(seed_of(example["name"]) % NUM_HASHES, "left out", error)
                    allowed = allowed_bad(self.max_bad_share, max(number, MIN_STREAM_LENGTH))
                    self._require_few(num_bad, number, allowed, error)
            if self.augmentation is None or number == 0:
                return
            if num_bad == number:
                self._require_few(num_bad, number, number - 1, last_error)

    def _share(self, repetition: int) -> Iterator[dict[str, Any]]:
        """The part of the stream that this worker of this process reads: some of its files, if all are wanted."""
        dataset = self.dataset
        if self.augmentation is not None:
            dataset = dataset.shuffle(seed_of(self.seed, repetition) % 2**32, buffer_size=SHUFFLE_BUFFER)
        if self.max_samples is None:
            yield from split_dataset_by_node(dataset, self.rank, self.world_size)
            return
        worker = get_worker_info()
        number, index = (1, 0) if worker is None else (worker.num_workers, worker.id)
        # `iter`, unlike `__iter__`, does not deal the examples out to workers.
        rows = ({name: value[0] for name, value in batch.items()} for batch in dataset.iter(batch_size=1))
        yield from islice(rows, self.rank * number + index, None, self.world_size * number)


@dataclass
class TrainingCollator:
    """Makes a batch of augmented examples of a data set with `num_labels` classes."""

    num_labels: int

    def __call__(self, examples: Sequence[Mapping[str, Tensor | str]]) -> dict[str, Tensor | list[str]]:
        """Stacks all but `names`, a list; adds `image_classes` `(B, M)` int64, ascending and padded with -1."""
        columns = {key: [example[key] for example in examples] for key in examples[0]}
        batch = {key: values if key == "names" else torch.stack(values) for key, values in columns.items()}
        return batch | {"image_classes": classes_of_images(batch["labels"], self.num_labels, IGNORE_INDEX)}


__all__ = ["BadExamplesError", "SegmentationData", "SegmentationExamples", "SegmentationStream", "TrainingCollator"]
