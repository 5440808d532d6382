# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with image side, classes, batch and contexts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .measuring import alternate, in_fresh_process, make_row, peak_memory
from .models import our_inference, our_training
from .settings import Settings


GROWTH = {
    "size": (256, 384, 512, 768, 1024),
    "classes": (19, 150, 847),
    "batch": (1, 2, 4),
    "contexts": (1, 3, 8),
}
SMALL_GROWTH = {"size": (64, 96), "contexts": (1, 2)}
WORKLOADS = {"train": our_training, "infer": our_inference}


def measure_scaling(settings: Settings) -> Iterator[dict[str, Any]]:
    """Rows of the case `scaling`: one of time and one of memory for each value, all else as in the settings."""
    for step, workload in WORKLOADS.items():
        for field, value, point in _points(settings):
            place = {"field": field, "value": value}
            # A process of its own, so that what other points left in the memory doesn't matter.
            seconds = in_fresh_process(_seconds, step, point)
            memory = peak_memory(workload, point)["peak"]
            case = f"scaling, {step}, {field} {value}"
            yield make_row(case, "time", "s", {"ours": seconds}) | place
            yield make_row(case, "memory", "MiB", {"ours": [memory]}) | place


def _points(settings: Settings) -> Iterator[tuple[str, int, Settings]]:
    for field, values in (SMALL_GROWTH if settings.small else GROWTH).items():
        for value in values:
            yield field, value, replace(settings, **{field: value})


def _seconds(step: str, settings: Settings) -> list[float]:
    settings.prepare()
    return alternate({step: WORKLOADS[step]}, settings)[step]


__all__ = ["measure_scaling"]
