# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts what a model asks of its device: kernels, copies by kind, and how often the host waits.

On an accelerator a step takes at least as long as the host needs to start its kernels, and each time the host waits,
the device runs dry. None of this depends on the device's speed, so that it can be counted on any machine: on a CPU,
with the forms of operators that an accelerator would run.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_mtaclip.deformable_attention_mtaclip import MultiScaleDeformableAttention


# Operators that start work (views and allocations are left out), those for which the host waits because it needs
# values or the size of a result, copies that are waited for, and copies from pinned memory, for which nobody waits.
KINDS = ("kernels", "waits", "to_host", "to_device", "pinned_to_device")
# Operators that start nothing on the device: views have a mark of their own.
NO_KERNELS = ("empty", "new_empty", "_unsafe_view", "lift_fresh", "promote_types", "_local_scalar_dense")
# Their results' sizes or values are needed on the host.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "is_nonzero")
WAITS += ("_unique2", "unique_dim")
ASSIGNMENT = "mtaclip::assign_queries"


def count_device_work(run: Callable[[], Any]) -> dict[str, Counter]:
    """Counts what a function, such as a training step, asks of the device.

    Args:
        run (`Callable`): the function, which is called twice: the first time, constants are made.

    Returns:
        `dict[str, Counter]`: how often each operator or call, for each of [`KINDS`].
    """
    run()
    counts = {kind: Counter() for kind in KINDS}
    attention = MultiScaleDeformableAttention
    as_on_accelerators = mock.patch.object(attention, "forward", attention.attend_on_accelerators)
    with as_on_accelerators, _Calls(counts), _Operators(counts):
        run()
    return counts


class _Counting:
    def __init__(self, counts: dict[str, Counter]) -> None:
        super().__init__()
        self.counts = counts


class _Calls(_Counting, TorchFunctionMode):
    """Counts calls that would copy on an accelerator: on a CPU they do nothing that operators could tell."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("cpu", "tolist", "numpy", "__array__"):
            self.counts["to_host"][name] += 1
        return function(*args, **(kwargs or {}))


class _Operators(_Counting, TorchDispatchMode):
    """Counts operators, forward and backward."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Calls inside an operator, as in the assignment, are the host's own business.
        with torch._C.DisableTorchFunction():
            result = function(*args, **(kwargs or {}))
        name = function.name()
        short_name = name.removeprefix("aten::").split(".")[0]
        kinds = ["waits"] * _needs_result(name, short_name, args, kwargs or {})
        kinds += ["to_device"] * (short_name == "lift_fresh")
        if name == ASSIGNMENT:
            kinds += ["to_host", "pinned_to_device"]
        elif not function.is_view and not short_name.startswith(NO_KERNELS):
            kinds.append("kernels")
        for kind in kinds:
            self.counts[kind][short_name] += 1
        return result


def _needs_result(name: str, short_name: str, args: Any, kwargs: Any) -> bool:
    """Whether the host needs the values or the size of an operator's result."""
    if short_name in ("index", "index_put", "index_put_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if short_name == "repeat_interleave":
        return not name.endswith(".self_int") and not kwargs.get("output_size")
    return short_name in WAITS
