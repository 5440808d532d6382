# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What the model trains on and is evaluated on: examples of a split, read and prepared one by one."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F
from transformers.utils import logging

from .augmentation import Augmentation, random_choices
from .reading import SegmentationData, undecoded


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


class TrainingExamples(Dataset):
    """Augmented examples of a split.

    A file that can't be used is replaced by another of the split, with a warning; too many of them are an error.

    Args:
        data ([`SegmentationData`]): the data set.
        split (`str`): name of the split.
        augmentation ([`Augmentation`]): what happens to each image.
        seed (`int`): of all random choices.
        max_samples (`int`, *optional*): uses the first so many examples only.
        max_bad_share (`float`): share of the examples that may be unusable.

    Raises:
        ValueError: the split is absent or empty.
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
        self.data, self.augmentation, self.seed = data, augmentation, seed
        self.dataset = _take(data, split, max_samples)
        self.max_bad = int(max_bad_share * len(self.dataset))
        # Shared with the workers of a data loader, which outlive an epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.bad = torch.zeros(len(self.dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def num_bad(self) -> int:
        """Number of examples that turned out to be unusable, over all workers of this process."""
        return int(self.bad.sum())

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
            try:
                example = self.dataset[index]
                image, labels = self.data.read(example)
                break
            except ValueError as error:
                self._report(index, error)
                index = replacements.randrange(len(self.dataset))
        return _augmented(self.augmentation, image, labels, seed) | {"names": example["name"]}

    def _report(self, index: int, error: ValueError) -> None:
        if not self.bad[index]:
            logger.warning("An unusable example was replaced by another: %s", error)
        self.bad[index] = True
        if self.num_bad > self.max_bad:
            raise BadExamplesError(
                f"{self.num_bad} of {len(self.dataset)} training examples can't be used, and {self.max_bad} may be "
                f"(`max_bad_share`). The last one: {error}"
            ) from error


class TrainingStream(IterableDataset):
    """Augmented examples of a split that is read while training.

    An example's random choices depend on seed, epoch and its name. Examples are shuffled within a buffer, their order
    being a function of seed, epoch and the number of workers. One that can't be used is left out, with a warning.

    Args:
        data ([`SegmentationData`]): the data set, loaded with `streaming=True`.
        split (`str`): name of the split.
        augmentation ([`Augmentation`]): what happens to each image.
        seed (`int`): of all random choices.
        max_samples (`int`, *optional*): uses the first so many examples only.
        max_bad_share (`float`): share of the examples that may be unusable.

    Raises:
        ValueError: the split is absent.
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
        self.data, self.augmentation, self.seed = data, augmentation, seed
        self.dataset = _take(data, split, max_samples)
        self.max_bad_share = max_bad_share
        # Shared with the workers of a data loader, which outlive an epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.bad = torch.zeros(NUM_HASHES, dtype=torch.bool).share_memory_()

    @property
    def num_bad(self) -> int:
        """Number of examples that turned out to be unusable, over all workers of this process."""
        return int(self.bad.sum())

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the random choices of an epoch."""
        self._epoch[0] = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Examples as [`TrainingExamples`] gives them, without `names`.

        Raises:
            BadExamplesError: more unusable files than allowed.
        """
        epoch, num_bad = int(self._epoch[0]), 0
        shuffled = self.dataset.shuffle(seed=seed_of(self.seed, epoch) % 2**32, buffer_size=SHUFFLE_BUFFER)
        for number, example in enumerate(shuffled, start=1):
            seed = seed_of(self.seed, epoch, example["name"])
            try:
                image, labels = self.data.read(example)
            except ValueError as error:
                num_bad += 1
                self._report(example["name"], error, num_bad, number)
                continue
            yield _augmented(self.augmentation, image, labels, seed)

    def _report(self, name: str, error: ValueError, num_bad: int, number: int) -> None:
        logger.warning("An unusable example was left out: %s", error)
        self.bad[seed_of(name) % NUM_HASHES] = True
        if num_bad > self.max_bad_share * max(number, MIN_STREAM_LENGTH):
            raise BadExamplesError(
                f"{num_bad} of {number} training examples can't be used: more than the share of {self.max_bad_share} "
                f"(`max_bad_share`). The last one: {error}"
            ) from error


class EvaluationExamples(Dataset):
    """Examples of a split as they are.

    Args:
        data ([`SegmentationData`]): the data set.
        split (`str`): name of the split.
        max_samples (`int`, *optional*): uses the first so many examples only.

    Raises:
        ValueError: the split is absent or empty.
    """

    def __init__(self, data: SegmentationData, split: str, max_samples: int | None = None) -> None:
        self.data = data
        self.dataset = _take(data, split, max_samples)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example: `image` (PIL, RGB), `annotation` `(h, w)` int64 and `name`.

        Raises:
            ValueError: an unusable example; evaluation leaves none out.
        """
        return _as_it_is(self.data, self.dataset[index])


class EvaluationStream(IterableDataset):
    """Examples of a split that is read while evaluating, as [`EvaluationExamples`] gives them.

    Every worker of a data loader gives all examples; whoever uses several must share them out.

    Args:
        data ([`SegmentationData`]): the data set, loaded with `streaming=True`.
        split (`str`): name of the split.
        max_samples (`int`, *optional*): uses the first so many examples only.

    Raises:
        ValueError: the split is absent.
    """

    def __init__(self, data: SegmentationData, split: str, max_samples: int | None = None) -> None:
        self.data = data
        self.dataset = _take(data, split, max_samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # `iter`, unlike `__iter__`, does not deal the examples out to workers.
        for batch in self.dataset.iter(batch_size=1):
            yield _as_it_is(self.data, {column: values[0] for column, values in batch.items()})


def collate_examples(examples: Sequence[Mapping[str, Tensor | str]]) -> dict[str, Tensor | list[str]]:
    """Stacks examples of [`TrainingExamples`] into a batch; `names` become a list."""
    columns = {key: [example[key] for example in examples] for key in examples[0]}
    return {key: values if key == "names" else torch.stack(values) for key, values in columns.items()}


def _augmented(augmentation: Augmentation, image: Image.Image, labels: np.ndarray, seed: int) -> dict[str, Tensor]:
    # Label ids and 255 fit into a byte, which is quicker to move about.
    mask = tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8))[None])
    with random_choices(seed):
        pixel_values, mask = augmentation(F.to_image(image), mask)
    return {
        "pixel_values": pixel_values.as_subclass(Tensor).contiguous(),
        "labels": mask.as_subclass(Tensor)[0],
        "point_seeds": torch.tensor(seed),
    }


def _as_it_is(data: SegmentationData, example: Mapping[str, Any]) -> dict[str, Any]:
    image, annotation = data.read(example)
    return {"image": image, "annotation": annotation, "name": example["name"]}


def _take(data: SegmentationData, split: str, max_samples: int | None) -> Any:
    if split not in data.splits:
        raise ValueError(f"The data set has no {split} split, only {sorted(data.splits)}.")
    dataset = undecoded(data.splits[split])
    if isinstance(dataset, datasets.IterableDataset):
        return dataset if max_samples is None else dataset.take(max_samples)
    if max_samples is not None:
        dataset = dataset.select(np.arange(min(max_samples, len(dataset))))
    if len(dataset) == 0:
        raise ValueError(f"The {split} split is empty.")
    return dataset


__all__ = [
    "BadExamplesError",
    "EvaluationExamples",
    "EvaluationStream",
    "TrainingExamples",
    "TrainingStream",
    "collate_examples",
    "seed_of",
]
