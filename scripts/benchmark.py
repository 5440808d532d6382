#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of MTA-CLIP beside transformers' Mask2Former, on random weights and images.

python scripts/benchmark.py [--mode train|infer|text|postprocess|exact|data|launches|all] [--dtype bfloat16]
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


# Threads that wait must not spin: on a machine with other work they would slow everything down several times. OpenMP
# reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from benchmark_workloads import WORKLOADS, num_data_images, prepare
from device_counts import count_device_work


SIDES = ("ours", "peer")
LAUNCHES_BATCHES, LAUNCHES_SIZE = (2, 16), 64
MEBIBYTE = 2**20
PROCESS_STATUS = Path("/proc/self/status")
HEADING = f"{'case':34}{'metric':13}{'unit':9}{'ours':>10}{'peer':>10}{'ratio':>7}  spread of ours, of peer"

Row = dict[str, Any]


def main(arguments: Sequence[str]) -> list[Row]:
    """Prints the table that the options ask for, and returns its rows."""
    options = parse_arguments(arguments)
    prepare(options)
    around = environment(options)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    for described in (around, settings):
        print(", ".join(f"{name}: {value}" for name, value in described.items()))
    print(HEADING, flush=True)
    rows = []
    for mode in WORKLOADS if options.mode == "all" else [options.mode]:
        for row in count_launches(options) if mode == "launches" else compare(mode, options):
            rows.append(row)
            print(_line(row), flush=True)
    if options.json is not None:
        table = {"environment": around, "settings": settings, "rows": rows}
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    return rows


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    modes = [*WORKLOADS, "launches", "all"]
    parser.add_argument("--mode", choices=modes, default="all", help="what to measure; all: all but launches")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="others than float32: autocast to it")
    for name, (default, lowest, meaning) in {
        "size": (512, 32, "side of the images, a multiple of 32"),
        "batch_size": (2, 1, "number of images"),
        "classes": (150, 1, "number of classes"),
        "contexts": (3, 1, "number of prompt contexts"),
        "num_threads": (torch.get_num_threads(), 1, "threads on the CPU"),
        "num_workers": (2, 0, "processes that read data"),
        "repeats": (5, 1, "measured runs of each figure, after one that is not measured"),
    }.items():
        parser.add_argument(f"--{name}", type=_integer_from(lowest), default=default, help=meaning)
    parser.add_argument("--small", action="store_true", help="tiny layers and data, to try the benchmark itself")
    parser.add_argument("--json", type=Path, help="file for the table, with all runs")
    options = parser.parse_args(arguments)
    if options.size % 32:
        parser.error(f"--size must be a multiple of 32, got {options.size}.")
    if options.classes > 255 and options.mode in ("data", "all"):
        parser.error(f"--mode {options.mode} needs at most 255 classes, got {options.classes}: choose another mode.")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: the folder does not exist; make it first.")
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} can't be used: {error}")
    return options


def _integer_from(lowest: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {text}.")
        return int(text)

    return integer


def compare(mode: str, options: argparse.Namespace) -> Iterator[Row]:
    """Time, images per second and memory of a workload beside the peer's."""
    seconds = alternate({side: WORKLOADS[mode](options, side) for side in SIDES}, options)
    yield make_row(mode, "time", "s", seconds)
    images = {"data": num_data_images(options), "train": options.batch_size, "infer": options.batch_size}.get(mode)
    if images is not None:
        yield make_row(mode, "speed", "images/s", {side: [images / each for each in seconds[side]] for side in SIDES})
    if mode != "data" and (_is_cuda(options) or PROCESS_STATUS.exists()):
        memory = {side: in_fresh_process(memory_of, mode, options, side) for side in SIDES}
        for metric in ("peak memory", "above start"):
            yield make_row(mode, metric, "MiB", {side: [memory[side][metric]] for side in SIDES})


def count_launches(options: argparse.Namespace) -> Iterator[Row]:
    """What a step asks of an accelerator: kernels, waits and copies by kind, counted on the CPU, whatever the size."""
    for mode in ("train", "infer"):
        for batch_size in LAUNCHES_BATCHES:
            changes = {"device": "cpu", "size": LAUNCHES_SIZE, "batch_size": batch_size}
            point, totals = argparse.Namespace(**(vars(options) | changes)), {}
            for side in SIDES:
                run = WORKLOADS[mode](point, side)
                run()
                totals[side] = count_device_work(run).totals()
            for kind in totals["ours"]:
                counts = {side: [number[kind]] for side, number in totals.items()}
                yield make_row(f"{mode}, batch {batch_size}, {kind}", "count", "", counts)


def alternate(runs: dict[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each measured run; the sides take turns, so that both meet the same machine."""
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    for turn in range(1 + options.repeats):
        for side, run in runs.items():
            gc.collect()
            _synchronize(options)
            start = time.perf_counter()
            run()
            _synchronize(options)
            if turn > 0:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def _is_cuda(options: argparse.Namespace) -> bool:
    return torch.device(options.device).type == "cuda"


def _synchronize(options: argparse.Namespace) -> None:
    if _is_cuda(options):
        torch.cuda.synchronize(options.device)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, where nothing ran before."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        # One process does the imports, and each new one is a copy of it.
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        context.set_forkserver_preload(["benchmark_workloads"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def memory_of(mode: str, options: argparse.Namespace, side: str) -> dict[str, float]:
    """Peak memory of two runs in MiB, and how far it is above what was held before: on CUDA that of tensors on the
    device, else, where Linux tells, that of the whole process, libraries included.
    """
    run = WORKLOADS[mode](options, side)
    gc.collect()
    before = torch.cuda.memory_allocated(options.device) if _is_cuda(options) else _memory_of_process("VmRSS")
    for _ in range(2):
        run()
    peak = torch.cuda.max_memory_allocated(options.device) if _is_cuda(options) else _memory_of_process("VmHWM")
    return {"peak memory": peak / MEBIBYTE, "above start": max(0, peak - before) / MEBIBYTE}


def _memory_of_process(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s*(\d+)", PROCESS_STATUS.read_text())[1])


def environment(options: argparse.Namespace) -> Row:
    """Processor, device, allocator, threads and versions."""
    information = Path("/proc/cpuinfo")
    cores = re.findall(r"model name\s*: (.*)", information.read_text()) if information.exists() else []
    return {
        "cpu": f"{len(cores)} x {cores[0]}" if cores else platform.machine(),
        "device": torch.cuda.get_device_name(options.device) if _is_cuda(options) else options.device,
        "threads": torch.get_num_threads(),
        "allocator": os.environ.get("LD_PRELOAD") or "the system's",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def make_row(case: str, metric: str, unit: str, runs: dict[str, list[float]]) -> Row:
    """A row of the table: the sides' medians, their ratio, and all runs."""
    row: Row = {"case": case, "metric": metric, "unit": unit}
    row |= {side: statistics.median(values) for side, values in runs.items()}
    row["ratio"] = row["ours"] / row["peer"] if row["peer"] else None
    return row | {f"{side}_runs": values for side, values in runs.items()}


def _line(row: Row) -> str:
    form = ".0f" if row["metric"] == "count" else ".4g"
    ours, peer = (format(row[side], form) for side in SIDES)
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    spreads = ", ".join(_spread(row[f"{side}_runs"]) for side in SIDES)
    return f"{row['case']:34}{row['metric']:13}{row['unit']:9}{ours:>10}{peer:>10}{ratio:>7}  {spreads}"


def _spread(runs: list[float]) -> str:
    return f"{min(runs):.4g}-{max(runs):.4g}" if len(runs) > 1 else "1 run"


if __name__ == "__main__":
    main(sys.argv[1:])
