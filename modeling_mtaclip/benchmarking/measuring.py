# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Times of alternating runs, peak memory of fresh processes, and what there is to know about the machine."""

import gc
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from .settings import Settings


MEBIBYTE = 2**20
ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
# Side of the matrices, and number of products, that measure what the machine's arithmetic gives.
MATRIX_SIZE, MATRIX_PRODUCTS = 2048, 4

Workload = Callable[[Settings], Callable[[], Any]]


def alternate(workloads: dict[str, Workload], settings: Settings) -> dict[str, list[float]]:
    """Seconds of each measured run of each workload; their runs take turns, so that all meet the same machine.

    Args:
        workloads (`dict[str, Workload]`): by name; each makes, from the settings, the function that is timed.
        settings ([`Settings`]): how often they run.
    """
    runs = {name: make(settings) for name, make in workloads.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(settings.warmup + settings.repeats):
        for name, run in runs.items():
            gc.collect()
            settings.synchronize()
            start = time.perf_counter()
            run()
            settings.synchronize()
            if turn >= settings.warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(workload: Workload, settings: Settings, runs: int = 2) -> dict[str, float]:
    """Memory of a workload in a process of its own, in MiB.

    Args:
        workload (`Workload`): a function of a module, which the process imports.
        settings ([`Settings`]): under which it runs.
        runs (`int`): number of runs.

    Returns:
        `dict[str, float]`: `peak`, of the whole process (on CUDA: of the tensors on the device), and `above`, how far
        above what the process held before the first run.
    """
    return in_fresh_process(_measure_memory, workload, settings, runs)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process that has imported the models and done nothing else.

    Args:
        function (`Callable`): a function of a module.
        *arguments: of the function.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        # One process does the imports, and each new one is a copy of it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["modeling_mtaclip.benchmarking.models"])
    else:
        context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _measure_memory(workload: Workload, settings: Settings, runs: int) -> dict[str, float]:
    settings.prepare()
    run = workload(settings)
    gc.collect()
    before = _memory_now(settings.device)
    for _ in range(runs):
        run()
    settings.synchronize()
    peak = _memory_peak(settings.device)
    return {"peak": peak, "above": peak - before}


def _memory_now(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / MEBIBYTE
    # Forgets the peak so far, which may lie in loading libraries and making weights.
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return _process_memory("VmRSS")


def _memory_peak(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEBIBYTE
    return _process_memory("VmHWM")


def _process_memory(field: str) -> float:
    """A field of the process's status, in MiB; where there is none, the peak as the C library tells it."""
    status = Path("/proc/self/status")
    # Preferred, because what the C library tells includes the memory of the process that started this one.
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines[field].split()[0]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBIBYTE


def matrix_rate(settings: Settings) -> float:
    """Operations per second of large matrix products: what a workload could reach at most."""
    left, right = torch.randn(
        2, MATRIX_SIZE, MATRIX_SIZE, device=settings.device, dtype=getattr(torch, settings.dtype)
    )

    def multiply() -> None:
        for _ in range(MATRIX_PRODUCTS):
            left @ right

    (seconds,) = alternate({"product": lambda _: multiply}, settings).values()
    return 2 * MATRIX_SIZE**3 * MATRIX_PRODUCTS / statistics.median(seconds)


def environment(settings: Settings) -> dict[str, Any]:
    """Processor, allocator, threads and versions."""
    return {
        "cpu": _processor(),
        "device": torch.cuda.get_device_name() if settings.device.startswith("cuda") else settings.device,
        "threads": torch.get_num_threads(),
        "allocator": loaded_allocator(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def loaded_allocator() -> str:
    """The allocator of this process: one that was preloaded, or that of the C library."""
    maps = Path("/proc/self/maps")
    libraries = maps.read_text() if maps.exists() else ""
    return next((name for name in ALLOCATORS if name in libraries), platform.libc_ver()[0] or platform.system())


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def compare(case: str, workloads: dict[str, Workload], settings: Settings, memory: str | None) -> list[dict[str, Any]]:
    """Rows of a case: its time, and with `memory` (`"peak"` or `"above"`) its memory.

    Args:
        case (`str`): name of the case.
        workloads (`dict[str, Workload]`): `"ours"` and `"peer"`.
        settings ([`Settings`]): of the measurement.
        memory (`str`, *optional*): which figure of [`peak_memory`] to measure.
    """
    measured = alternate(workloads, settings)
    rows = [make_row(case, "time", "s", measured)]
    del measured
    gc.collect()
    if memory is not None:
        figures = {name: [peak_memory(make, settings)[memory]] for name, make in workloads.items()}
        rows.append(make_row(case, "memory", "MiB", figures) | {"of": memory})
    return rows


def make_row(case: str, metric: str, unit: str, runs: dict[str, list[float]]) -> dict[str, Any]:
    """A row of the result: medians, their ratio, and all runs.

    Args:
        case (`str`): what was measured.
        metric (`str`): `"time"` or `"memory"`.
        unit (`str`): of the figures.
        runs (`dict[str, list[float]]`): of `"ours"` and, where there is one, of `"peer"`.
    """
    row: dict[str, Any] = {"case": case, "metric": metric, "unit": unit}
    row |= {name: statistics.median(values) for name, values in runs.items()}
    row["ratio"] = row["ours"] / row["peer"] if row.get("peer") else None
    return row | {f"{name}_runs": values for name, values in runs.items()}


__all__ = [
    "MEBIBYTE",
    "alternate",
    "compare",
    "environment",
    "in_fresh_process",
    "loaded_allocator",
    "make_row",
    "matrix_rate",
    "peak_memory",
]
