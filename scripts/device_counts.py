# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts what a model asks of its device: kernels, copies by kind, and how often the host waits.

On an accelerator a step takes at least as long as the host needs to start its kernels, and each time the host waits,
the device runs dry. None of this depends on the device's speed, so that it can be counted on any machine: on a CPU,
with the forms of operators that an accelerator would run.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_mtaclip.deformable_attention_mtaclip import MultiScaleDeformableAttention


# Operators that start nothing on the device: views have a mark of their own.
NO_KERNELS = ("empty", "new_empty", "_unsafe_view", "lift_fresh", "promote_types", "_local_scalar_dense")
# Their results' sizes or values are needed on the host.
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
    "equal",
    "is_nonzero",
)
ASSIGNMENT = "mtaclip::assign_queries"


@dataclass
class DeviceCounts:
    """What a run asked of the device, by operator or call.

    Attributes:
        kernels (`Counter`): operators that start work; views and allocations are left out.
        waits (`Counter`): operators for which the host waits, because it needs values or the size of a result.
        to_host (`Counter`): copies to the host, each of which is waited for.
        to_device (`Counter`): copies to the device that are waited for, such as those of `torch.tensor(..., device=)`.
        pinned_to_device (`Counter`): copies to the device from pinned memory, which nobody waits for.
    """

    kernels: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    to_host: Counter = field(default_factory=Counter)
    to_device: Counter = field(default_factory=Counter)
    pinned_to_device: Counter = field(default_factory=Counter)

    def totals(self) -> dict[str, int]:
        """The number of each kind."""
        return {kind: counter.total() for kind, counter in vars(self).items()}


def count_device_work(run: Callable[[], Any]) -> DeviceCounts:
    """Counts what a function asks of the device.

    Args:
        run (`Callable`): such as a training step; it should have run once before, so that constants are made.
    """
    counts = DeviceCounts()
    with _forms_of_accelerators(), _Calls(counts) as calls, _Operators(counts, calls):
        run()
    return counts


@contextmanager
def _forms_of_accelerators() -> Iterator[None]:
    """The CPU runs what an accelerator would."""
    on_accelerators = MultiScaleDeformableAttention.attend_on_accelerators
    with mock.patch.object(MultiScaleDeformableAttention, "forward", on_accelerators):
        yield


class _Calls(TorchFunctionMode):
    """Counts calls that would copy on an accelerator: on a CPU they do nothing that operators could tell."""

    def __init__(self, counts: DeviceCounts) -> None:
        super().__init__()
        self.counts = counts
        self.on_host = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if not self.on_host and name in ("cpu", "tolist", "numpy", "__array__"):
            self.counts.to_host[name] += 1
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Counts operators, forward and backward."""

    def __init__(self, counts: DeviceCounts, calls: _Calls) -> None:
        super().__init__()
        self.counts = counts
        self.calls = calls

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name()
        # What an operator does inside is no business of the device's, as far as it doesn't call operators itself.
        self.calls.on_host = True
        try:
            result = function(*args, **(kwargs or {}))
        finally:
            self.calls.on_host = False
        short_name = name.removeprefix("aten::").split(".")[0]
        if name == ASSIGNMENT:
            self.counts.to_host[name] += 1
            self.counts.pinned_to_device[name] += 1
        elif not function.is_view and not short_name.startswith(NO_KERNELS):
            self.counts.kernels[short_name] += 1
        if short_name == "lift_fresh":
            self.counts.to_device["torch.tensor"] += 1
        if short_name in WAITS or (short_name in ("index", "index_put", "index_put_") and _has_mask(args[1])):
            self.counts.waits[short_name] += 1
        has_size = name.endswith(".self_int") or (kwargs or {}).get("output_size")
        if short_name == "repeat_interleave" and not has_size:
            self.counts.waits[short_name] += 1
        return result


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
