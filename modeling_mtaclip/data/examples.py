# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What the model trains on and is evaluated on: examples of a split, read and prepared one by one.

Splits are lists, or streams, of which each process reads its own share. A file that can't be used is named in a
warning and counted.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
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
from transformers.utils import logging

from ..loss_mtaclip import classes_of_images
from .augmentation import Augmentation, random_choices
from .catalog import IGNORE_INDEX
from .reading import SegmentationData, allowed_bad


logger = logging.get_logger(__name__)

# A stream is allowed so many unusable examples before their share counts.
MIN_STREAM_LENGTH = 1000
SHUFFLE_BUFFER = 256
# Unusable examples of a stream are remembered by a hash of their name; of 1000, fewer than one shares its place.
NUM_HASHES = 2**20


def seed_of(*parts: int | str) -> int:
    """A seed in 0 … 2^63 - 1 that depends on all parts and looks unlike that of other parts."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class BadExamplesError(RuntimeError):
    """More training examples can't be used than the run allows."""


class _Examples:
    """Examples of a split, and which of them turned out to be unusable in any worker of this process.

    Args:
        data ([`SegmentationData`]): the data set.
        split (`str`): name of the split.
        max_samples (`int`, *optional*): uses the first so many examples only.
        rank, world_size (`int`): of streams: which process of how many this is; each reads its own share.

    Attributes:
        bad (`Tensor`): bool, with a place for each example; those of streams have a place by a hash of their name.

    Raises:
        ValueError: the split is absent or empty.
    """

    def __init__(
        self, data: SegmentationData, split: str, max_samples: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.data, self.dataset = data, data.split(split, max_samples)
        self.share = partial(_share, rank=rank, world_size=world_size, is_limited=max_samples is not None)
        # Shared with the workers of a data loader, which outlive an epoch.
        number = NUM_HASHES if isinstance(self.dataset, datasets.IterableDataset) else len(self.dataset)
        self.bad = torch.zeros(number, dtype=torch.bool).share_memory_()

    @property
    def num_bad(self) -> int:
        """Number of examples that turned out to be unusable."""
        return int(self.bad.sum())

    def _report(self, place: int, remedy: str, error: ValueError) -> None:
        if not self.bad[place]:
            logger.warning("An unusable example was %s: %s", remedy, error)
        self.bad[place] = True


class TrainingExamples(_Examples, Dataset):
    """Augmented examples of a split, for arguments as in [`EvaluationExamples`].

    A file that can't be used is replaced by another of the split, with a warning; too many of them are an error.

    Args:
        augmentation ([`Augmentation`]): what happens to each image.
        seed (`int`): of all random choices.
        max_bad_share (`float`): share of the examples that may be unusable; at least one, unless it is 0.
    """

    def __init__(
        self,
        data: SegmentationData,
        split: str,
        augmentation: Augmentation,
        seed: int = 0,
        max_samples: int | None = None,
        max_bad_share: float = 0.01,
    ) -> None:
        super().__init__(data, split, max_samples)
        self.augmentation, self.seed = augmentation, seed
        self.max_bad = allowed_bad(max_bad_share, len(self.dataset))
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random choices of an epoch."""
        self._epoch[0] = epoch

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """An example: `pixel_values` `(3, h, w)` float32, `labels` `(h, w)` int64, `point_seeds` `()` int64, `names`.

        Raises:
            BadExamplesError: more unusable files than allowed.
        """
        seed = seed_of(self.seed, int(self._epoch[0]), index)
        replacements = random.Random(seed)
        while True:
            example = self.dataset[index]
            try:
                return _augmented(self.augmentation, *self.data.read(example), seed, example["name"])
            except ValueError as error:
                self._report(index, "replaced by another", error)
                if self.num_bad > self.max_bad or self.num_bad == len(self.dataset):
                    raise BadExamplesError(
                        f"{self.num_bad} of {len(self.dataset)} training examples can't be used, and {self.max_bad} "
                        f"may be (`max_bad_share`). The last one: {error}"
                    ) from error
                index = replacements.randrange(len(self.dataset))


class TrainingStream(_Examples, IterableDataset):
    """Augmented examples of a split that is read while training, over and over again.

    Arguments as for [`TrainingExamples`] and [`EvaluationStream`]. An example's random choices depend on the seed, on
    how often all were read, and on its name. Examples are shuffled within a buffer, their order being a function of
    the seed and of the numbers of processes and workers. One that can't be used is left out, with a warning.
    """

    def __init__(
        self,
        data: SegmentationData,
        split: str,
        augmentation: Augmentation,
        seed: int = 0,
        max_samples: int | None = None,
        max_bad_share: float = 0.01,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(data, split, max_samples, rank, world_size)
        self.augmentation, self.seed, self.max_bad_share = augmentation, seed, max_bad_share

    def __iter__(self) -> Iterator[dict[str, Tensor | str]]:
        """Examples as [`TrainingExamples`] gives them, without end.

        Raises:
            BadExamplesError: more unusable files than allowed.
        """
        repetition, is_empty = 0, False
        while not is_empty:
            is_empty = True
            for example in self._read_once(repetition):
                is_empty = False
                yield example
            repetition += 1

    def _read_once(self, repetition: int) -> Iterator[dict[str, Tensor | str]]:
        number, num_bad, order = 0, 0, seed_of(self.seed, repetition) % 2**32
        shuffled = self.dataset.shuffle(order, buffer_size=SHUFFLE_BUFFER)
        for number, example in enumerate(self.share(shuffled), start=1):
            seed = seed_of(self.seed, repetition, example["name"])
            try:
                augmented = _augmented(self.augmentation, *self.data.read(example), seed, example["name"])
            except ValueError as error:
                num_bad += 1
                self._report(seed_of(example["name"]) % NUM_HASHES, "left out", error)
                if num_bad > allowed_bad(self.max_bad_share, max(number, MIN_STREAM_LENGTH)):
                    raise BadExamplesError(
                        f"{num_bad} of {number} training examples can't be used: more than the share of "
                        f"{self.max_bad_share} (`max_bad_share`). The last one: {error}"
                    ) from error
                continue
            yield augmented
        if num_bad and num_bad == number:
            raise BadExamplesError(f"None of {number} training examples can be used; warnings name them.")


class EvaluationExamples(_Examples, Dataset):
    """Examples of a split as they are.

    One that can't be used is an error when it is asked for by its index; data loaders leave it out of their batches,
    with a warning.

    Args:
        data ([`SegmentationData`]): the data set.
        split (`str`): name of the split.
        max_samples (`int`, *optional*): uses the first so many examples only.

    Raises:
        ValueError: the split is absent or empty.
    """

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example: `image` (PIL, RGB), `annotation` `(h, w)` int64 and `name`.

        Raises:
            ValueError: an unusable example.
        """
        return _as_it_is(self.data, self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The usable ones of several examples, as data loaders ask for them."""
        examples = []
        for index in indices:
            try:
                examples.append(self[index])
            except ValueError as error:
                self._report(index, "left out of the evaluation", error)
        return examples


class EvaluationStream(_Examples, IterableDataset):
    """Examples of a split that is read while evaluating, as the data loaders of [`EvaluationExamples`] give them.

    Args as there, and `rank` and `world_size`: which process of how many this is; each reads its own share.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for example in self.share(self.dataset):
            try:
                yield _as_it_is(self.data, example)
            except ValueError as error:
                self._report(seed_of(example["name"]) % NUM_HASHES, "left out of the evaluation", error)


@dataclass
class TrainingCollator:
    """Makes a batch of what examples of [`TrainingExamples`] have, and of the classes that occur in each.

    Attributes:
        num_labels (`int`): number of classes.
        ignore_index (`int`): the label of pixels without class.
    """

    num_labels: int
    ignore_index: int = IGNORE_INDEX

    def __call__(self, examples: Sequence[Mapping[str, Tensor | str]]) -> dict[str, Tensor | list[str]]:
        """Stacks all but `names`, a list; adds `image_classes` `(B, M)` int64, ascending and padded with -1."""
        columns = {key: [example[key] for example in examples] for key in examples[0]}
        batch = {key: values if key == "names" else torch.stack(values) for key, values in columns.items()}
        return batch | {"image_classes": classes_of_images(batch["labels"], self.num_labels, self.ignore_index)}


def _share(
    dataset: datasets.IterableDataset, rank: int, world_size: int, is_limited: bool
) -> Iterator[dict[str, Any]]:
    """The part of a stream that this worker of this process reads: some of its files, if it may read all of them."""
    if not is_limited:
        yield from split_dataset_by_node(dataset, rank, world_size)
        return
    worker = get_worker_info()
    number, index = (1, 0) if worker is None else (worker.num_workers, worker.id)
    # `iter`, unlike `__iter__`, does not deal the examples out to workers.
    rows = ({name: value[0] for name, value in batch.items()} for batch in dataset.iter(batch_size=1))
    yield from islice(rows, rank * number + index, None, world_size * number)


def _augmented(
    augmentation: Augmentation, image: Image.Image, labels: np.ndarray, seed: int, name: str
) -> dict[str, Tensor | str]:
    # Label ids and 255 fit into a byte, which is quicker to move about.
    mask = tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8))[None])
    with random_choices(seed):
        pixel_values, mask = augmentation(F.to_image(image), mask)
    return {
        "pixel_values": pixel_values.as_subclass(Tensor).contiguous(),
        "labels": mask.as_subclass(Tensor)[0],
        "point_seeds": torch.tensor(seed),
        "names": name,
    }


def _as_it_is(data: SegmentationData, example: Mapping[str, Any]) -> dict[str, Any]:
    image, annotation = data.read(example)
    return {"image": image, "annotation": annotation, "name": example["name"]}


__all__ = [
    "BadExamplesError",
    "EvaluationExamples",
    "EvaluationStream",
    "TrainingCollator",
    "TrainingExamples",
    "TrainingStream",
    "seed_of",
]
