# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""How often each (reference value, predicted value) pair occurs, counted image by image in constant memory.

All figures of semantic segmentation that are sums over pixels follow from these counts. They are taken of the values
as they are, so that label maps, label shifts, ignored values and the number of classes may be chosen afterwards.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed


# Values 0 to 255 have a place in the table from the start: those of 8-bit label images.
NUM_BYTE_VALUES = 256
# A table of 4096 x 4096 counts takes 128 MiB: more distinct values are no label maps.
MAX_DISTINCT_VALUES = 4096
# So many pixels at a time stay in a processor's cache, and batches of any size take the same memory.
PIXELS_AT_A_TIME = 2**17


def as_label_tensor(labels: Any, name: str = "labels") -> Tensor:
    """Labels as an integer tensor on the device where they are, without a copy where possible.

    Args:
        labels (`Tensor`, `np.ndarray`, `PIL.Image.Image` or nested list): integers (floats with whole values are
            accepted) of any shape.
        name (`str`, *optional*, defaults to `"labels"`): what an error message calls them.

    Returns:
        `Tensor` of an integer type.

    Raises:
        ValueError: if a value is not a whole number.
    """
    if not isinstance(labels, Tensor):
        array = np.asarray(labels)
        if array.dtype in (np.uint16, np.uint32, np.uint64):
            array = array.astype(np.int64)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be numbers in an array of one shape, but got an array of {array.dtype}.")
        labels = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if labels.dtype == torch.bool:
        return labels.to(torch.uint8)
    if labels.is_floating_point() or labels.is_complex():
        whole = labels.to(torch.int64)
        if not torch.equal(whole.to(labels.dtype), labels):
            raise ValueError(
                f"{name} must be whole numbers, but got {labels.dtype} with other values: pass class indices "
                "(such as the argmax of the scores), not scores."
            )
        return whole
    return labels


def relabel(values: Tensor, label_map: Mapping[int, int] | None = None, reduce_labels: bool = False) -> Tensor:
    """Reference values after a label map and the shift by one of data sets where 0 means "other".

    Args:
        values (`Tensor` of an integer type): any shape.
        label_map (`Mapping[int, int]`, *optional*): old to new values, all applied to the old ones.
        reduce_labels (`bool`, *optional*, defaults to `False`): map 0 and 255 to 255, and any other value to one
            less. This comes after `label_map`.

    Returns:
        `Tensor` of `torch.int64`, the shape of `values`.
    """
    values = values.to(torch.int64)
    mapped = values.clone()
    for old, new in (label_map or {}).items():
        mapped[values == int(old)] = int(new)
    if reduce_labels:
        other = (mapped == 0) | (mapped == 255)
        mapped = torch.where(other, 255, mapped - 1)
    return mapped


def place_by_class(values: Tensor, num_labels: int) -> Tensor:
    """Class of each value, where all values outside `0 .. num_labels - 1` become `num_labels`."""
    return torch.where((values >= 0) & (values < num_labels), values, num_labels)


def all_below(values: Tensor, limit: int) -> bool:
    """Whether all values, of which there must be some, are in `0 .. limit - 1`; the limit is a power of two."""
    if values.device.type == "cpu":
        # A value that is too large has a higher bit, and so has a negative one; this takes half the time of extremes.
        return 0 <= int(np.bitwise_or.reduce(values.numpy())) < limit
    low, high = values.aminmax()
    return int(low) >= 0 and int(high) < limit


def count_pairs(rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """How often each pair of a row and a column occurs.

    On the CPU, NumPy prepares the pairs in one thread: PyTorch's threads are no faster at this, and where other
    processes keep the cores busy, waiting for all of them takes many times as long. (For the same reason NumPy adds up
    the tables.) Pairs have 32 bits, since the time is that of moving them.

    Args:
        rows (`Tensor` of shape `(n,)` and an integer type): between 0 and `size - 1`.
        columns (`Tensor` of shape `(n,)` and an integer type): between 0 and `size - 1`, on the same device.
        size (`int`): number of rows and of columns, at most `MAX_DISTINCT_VALUES`.

    Returns:
        `Tensor` of shape `(size, size)` and type `torch.int64`, on the same device.
    """
    if rows.device.type == "cpu":
        numbers = rows.numpy().astype(np.int32)
        numbers *= size
        numbers += columns.numpy().astype(np.int32, copy=False)
        pairs = torch.from_numpy(numbers)
    else:
        pairs = torch.add(columns.to(torch.int32), rows.to(torch.int32), alpha=size)
    return torch.bincount(pairs, minlength=size * size).view(size, size)


class PairCounts:
    """Counts of (reference value, predicted value) pairs of pixels.

    The table has a row (reference) and a column (prediction) for each value from 0 to `num_dense - 1`; another value
    gets its own row and column when it first occurs.

    Args:
        num_values (`int`, *optional*, defaults to 256): how many values have a place from the start, raised to the
            next power of two from 256 on.
    """

    def __init__(self, num_values: int = NUM_BYTE_VALUES) -> None:
        if num_values > MAX_DISTINCT_VALUES:
            raise ValueError(f"num_values must be at most {MAX_DISTINCT_VALUES}, but got {num_values}.")
        self.num_dense = max(1 << (int(num_values) - 1).bit_length(), NUM_BYTE_VALUES)
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self.rare_values = torch.empty(0, dtype=torch.int64)
        self.table: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """The value of each row and column of the table, `torch.int64`, on the CPU."""
        return torch.cat([torch.arange(self.num_dense), self.rare_values])

    def add(self, reference: Any, prediction: Any) -> None:
        """Count the pixels of one image, or of images of one size at once.

        Args:
            reference (integer array or `Tensor` of any shape): the annotation.
            prediction (integer array or `Tensor` of the same shape): the prediction.

        Raises:
            ValueError: if the shapes differ or values are not whole numbers.
        """
        prediction = as_label_tensor(prediction, "predictions")
        reference = as_label_tensor(reference, "references").to(prediction.device)
        if reference.shape != prediction.shape:
            raise ValueError(
                f"A prediction of shape {tuple(prediction.shape)} does not match its reference of shape "
                f"{tuple(reference.shape)}: resize predictions to the size of the annotation first."
            )
        if reference.numel() == 0:
            return
        pixels = PIXELS_AT_A_TIME if reference.device.type == "cpu" else reference.numel()
        pieces = (labels.flatten().split(pixels) for labels in (reference, prediction))
        for rows, columns in zip(*pieces, strict=True):
            self._add_piece(rows, columns)

    def _add_piece(self, reference: Tensor, prediction: Tensor) -> None:
        rows, columns = self._slots(reference), self._slots(prediction)
        size = self.num_dense + len(self.rare_values)
        self._accumulate(count_pairs(rows, columns, size))

    def _slots(self, values: Tensor) -> Tensor:
        if values.dtype == torch.uint8:
            return values
        if all_below(values, self.num_dense):
            return values
        self._make_room_for(torch.unique(values).cpu())
        order = torch.argsort(self.rare_values)
        rare_values = self.rare_values[order].to(values.device)
        values = values.to(torch.int64)
        found = torch.searchsorted(rare_values, values).clamp(max=len(rare_values) - 1)
        rare_slots = self.num_dense + order.to(values.device)[found]
        dense = (values >= 0) & (values < self.num_dense)
        return torch.where(dense, values, rare_slots)

    def _make_room_for(self, values: Tensor) -> None:
        values = values.to(torch.int64)
        rare = values[(values < 0) | (values >= self.num_dense)]
        rare_values = torch.cat([self.rare_values, rare[~torch.isin(rare, self.rare_values)]])
        if self.num_dense + len(rare_values) > MAX_DISTINCT_VALUES:
            raise ValueError(
                f"More than {MAX_DISTINCT_VALUES} distinct values occur in the label maps, such as {int(rare[-1])}: "
                "references and predictions must be class indices."
            )
        self.rare_values = rare_values

    def _accumulate(self, counts: Tensor) -> None:
        if self.table is None:
            self.table = counts
            return
        missing = len(counts) - len(self.table)
        if missing:
            self.table = torch.nn.functional.pad(self.table, (0, missing, 0, missing))
        if self.table.device.type == "cpu":
            table = self.table.numpy()
            table += counts.cpu().numpy()
        else:
            self.table += counts.to(self.table.device)

    def _entries(self) -> Tensor:
        """Pairs that occur: `torch.int64` rows of reference value, predicted value and count, on the CPU."""
        if self.table is None:
            return torch.empty(0, 3, dtype=torch.int64)
        table = self.table.cpu()
        rows, columns = table.nonzero(as_tuple=True)
        values = self.values
        return torch.stack([values[rows], values[columns], table[rows, columns]], dim=1)

    def _add_entries(self, entries: Tensor) -> None:
        if not len(entries):
            return
        rows, columns = self._slots(entries[:, 0]), self._slots(entries[:, 1])
        size = self.num_dense + len(self.rare_values)
        counts = torch.zeros(size, size, dtype=torch.int64)
        counts.index_put_((rows, columns), entries[:, 2], accumulate=True)
        self._accumulate(counts)

    def synchronize(self, group: distributed.ProcessGroup | None = None) -> None:
        """Add up the counts of all processes, exactly; each process then holds the sum.

        All processes of the group must call this. It does nothing where `torch.distributed` is not initialised.

        Args:
            group (`torch.distributed.ProcessGroup`, *optional*): the processes; all by default.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        shares: list[np.ndarray | None] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(shares, self._entries().numpy(), group=group)
        self.reset()
        for share in shares:
            self._add_entries(torch.from_numpy(share))

    def confusion_matrix(
        self,
        num_labels: int,
        ignore_index: int | None = 255,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> Tensor:
        """Confusion matrix of the pixels that are not ignored, with one more row and column for all other values.

        Args:
            num_labels (`int`): number of classes, K.
            ignore_index (`int`, *optional*, defaults to 255): pixels with this reference value (after `label_map` and
                `reduce_labels`) are left out; `None` leaves out none. A prediction of this value counts as wrong.
            label_map (`Mapping[int, int]`, *optional*): see [`relabel`]; for references only.
            reduce_labels (`bool`, *optional*, defaults to `False`): see [`relabel`]; for references only.

        Returns:
            `Tensor` of shape `(K + 1, K + 1)` and type `torch.int64`, on the CPU: rows are references, columns are
            predictions; row and column K count values that are no class.
        """
        values = self.values
        size = len(values)
        table = torch.zeros(size, size, dtype=torch.int64)
        if self.table is not None:
            table[: len(self.table), : len(self.table)] = self.table.cpu()
        labels = relabel(values, label_map, reduce_labels)
        if ignore_index is not None:
            kept = labels != ignore_index
            table, labels = table[kept], labels[kept]
        rows = torch.zeros(num_labels + 1, size, dtype=torch.int64)
        rows.index_add_(0, place_by_class(labels, num_labels), table)
        matrix = torch.zeros(num_labels + 1, num_labels + 1, dtype=torch.int64)
        return matrix.index_add_(1, place_by_class(values, num_labels), rows)


__all__ = ["PairCounts", "all_below", "as_label_tensor", "count_pairs", "place_by_class", "relabel"]
