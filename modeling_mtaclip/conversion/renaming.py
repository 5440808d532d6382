# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Renames and reshapes the tensors of foreign checkpoints, and keeps the account of it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class ConversionReport:
    """The account of a conversion.

    Attributes:
        used (`dict[str, list[str]]`): for each original tensor that was used, our tensors made from it.
        left_out (`dict[str, str]`): for each one that was not, the reason.
    """

    used: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used:"]
        lines += [f"  {name} -> {', '.join(targets)}" for name, targets in self.used.items()]
        lines += [f"{len(self.left_out)} tensors left out:"]
        lines += [f"  {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)


def rename_tensors(
    original: Mapping[str, Tensor],
    renames: Mapping[str, str],
    left_out: Mapping[str, str],
    reshape: Callable[[str, Tensor], dict[str, Tensor]],
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Turns a foreign state dict into one of ours.

    Args:
        original (`Mapping[str, Tensor]`): the foreign state dict.
        renames (`Mapping[str, str]`): regular expressions for whole foreign names, and our names, in which `{0}`
            stands for the expression's first group.
        left_out (`Mapping[str, str]`): regular expressions of tensors that we don't use, and the reasons.
        reshape (`Callable[[str, Tensor], dict[str, Tensor]]`): makes our tensors from our name and the foreign tensor.

    Returns:
        `tuple[dict[str, Tensor], ConversionReport]`: our state dict and the account.

    Raises:
        ValueError: a tensor that is neither used nor known to be unused.
    """
    converted, report, unknown = {}, ConversionReport(), []
    for name, tensor in original.items():
        target = _rename(name, renames)
        reason = next((reason for pattern, reason in left_out.items() if re.fullmatch(pattern, name)), None)
        if target is not None:
            tensors = reshape(target, tensor)
            converted |= tensors
            report.used[name] = list(tensors)
        elif reason is not None:
            report.left_out[name] = reason
        else:
            unknown.append(f"{name} {tuple(tensor.shape)}")
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors of the checkpoint are unknown, e.g. {unknown[:5]}. Is it a checkpoint of the "
            "kind that is being converted?"
        )
    return converted, report


def split_packed_projection(target: str, tensor: Tensor) -> dict[str, Tensor]:
    """Splits `….in_proj_weight` or `….in_proj_bias`, which pack three projections, into `….{q,k,v}_proj.…`."""
    module, kind = target.rsplit(".in_proj_", 1)
    return {
        f"{module}.{letter}_proj.{kind}": part.clone() for letter, part in zip("qkv", tensor.chunk(3), strict=True)
    }


def keep_shape(target: str, tensor: Tensor) -> dict[str, Tensor]:
    """For [`rename_tensors`]: the tensor as it is."""
    return {target: tensor}


def leave_out(tensors: dict[str, Tensor], report: ConversionReport, reasons: Mapping[str, str]) -> None:
    """Takes converted tensors back, in place.

    Args:
        tensors (`dict[str, Tensor]`): by our names.
        report ([`ConversionReport`]): of them.
        reasons (`Mapping[str, str]`): regular expressions of our names, and why they are left out.
    """
    for original, targets in list(report.used.items()):
        reason = next(
            (reason for pattern, reason in reasons.items() if all(re.fullmatch(pattern, name) for name in targets)),
            None,
        )
        if reason is not None:
            report.left_out[original] = reason
            for name in report.used.pop(original):
                del tensors[name]


def _rename(name: str, renames: Mapping[str, str]) -> str | None:
    for pattern, target in renames.items():
        match = re.fullmatch(pattern, name)
        if match:
            return target.format(*match.groups())
    return None


__all__ = ["ConversionReport", "keep_shape", "leave_out", "rename_tensors", "split_packed_projection"]
