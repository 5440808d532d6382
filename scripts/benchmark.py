#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of MTA-CLIP beside transformers' Mask2Former, on random weights and images.

python scripts/benchmark.py [--mode train|infer|text|postprocess|data|scaling|launches|all] [--dtype bfloat16]
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any


# Threads that wait must not spin: on a machine with other work they would slow everything down several times. OpenMP
# reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import psutil
import torch
import transformers
from benchmark_workloads import WORKLOADS, num_data_images, prepare
from device_counts import count_device_work


ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
MEBIBYTE = 2**20
GROWTH = {
    "size": (256, 384, 512, 768, 1024),
    "classes": (19, 150, 847),
    "batch_size": (1, 2, 4),
    "contexts": (1, 3, 8),
}
LAUNCHES_BATCHES, LAUNCHES_SIZE = (2, 16), 64
SMALL_GROWTH = {"size": (64, 96), "contexts": (1, 2)}
HEADING = f"{'case':34}{'metric':8}{'unit':9}{'ours':>10}{'peer':>10}{'ratio':>7}  spread of ours, of peer"

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
        measure = {"scaling": measure_scaling, "launches": count_launches}.get(mode, partial(compare, mode))
        for row in measure(options):
            rows.append(row)
            print(_line(row), flush=True)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"environment": around, "settings": settings, "rows": rows}, indent=1) + "\n"
        )
    return rows


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    modes = [*WORKLOADS, "scaling", "launches", "all"]
    parser.add_argument("--mode", choices=modes, default="all", help="what to measure; all: the first five")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="others than float32: autocast to it")
    for name, (default, lowest, meaning) in {
        "size": (512, 32, "side of the images, a multiple of 32"),
        "batch_size": (2, 1, "number of images"),
        "classes": (150, 1, "number of classes"),
        "contexts": (3, 1, "number of prompt contexts"),
        "queries": (100, 1, "number of mask queries"),
        "num_threads": (torch.get_num_threads(), 1, "threads on the CPU"),
        "num_workers": (2, 0, "processes that read data"),
        "repeats": (5, 1, "measured runs of each figure"),
        "warmup": (1, 0, "runs before the measured ones"),
        "seed": (0, 0, "of weights, images and names"),
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
    """Rows of a workload: time, and memory of fresh processes, beside the peer's, and the plain formula's if any."""
    peers = ("peer", "exact") if mode == "postprocess" else ("peer",)
    images = {"data": num_data_images(options), "train": options.batch_size, "infer": options.batch_size}.get(mode)
    ours = None
    for peer in peers:
        case = mode if peer == "peer" else f"{mode}, {peer}"
        runs = {"ours": WORKLOADS[mode](options, "ours"), "peer": WORKLOADS[mode](options, peer)}
        equal = {}
        if mode == "postprocess":
            equal = {"equal_pixels": (runs["ours"]() == runs["peer"]()).double().mean().item()}
        row = make_row(case, "time", "s", alternate(runs, options)) | equal
        del runs
        yield row | {f"{side}_images_per_second": images / row[side] for side in ("ours", "peer") if images}
        if mode != "data":
            ours = ours or in_fresh_process(memory_of, mode, options, "ours")
            memory = {"ours": ours, "peer": in_fresh_process(memory_of, mode, options, peer)}
            row = make_row(case, "memory", "MiB", {side: [peak] for side, (peak, _) in memory.items()})
            yield row | {f"{side}_above_start": above for side, (_, above) in memory.items()}


def measure_scaling(options: argparse.Namespace) -> Iterator[Row]:
    """How our time and memory grow: rows for each value of a size, all else as in the options."""
    for mode in ("train", "infer"):
        for name, values in (SMALL_GROWTH if options.small else GROWTH).items():
            for value in values:
                point = argparse.Namespace(**(vars(options) | {name: value}))
                case = f"scaling, {mode}, {name} {value}"
                yield make_row(case, "time", "s", in_fresh_process(seconds_of, mode, point))
                memory, _ = in_fresh_process(memory_of, mode, point, "ours")
                yield make_row(case, "memory", "MiB", {"ours": [memory]})


def count_launches(options: argparse.Namespace) -> Iterator[Row]:
    """What a step asks of an accelerator: kernels, waits and copies by kind, counted on the CPU, whatever the size."""
    for mode in ("train", "infer"):
        for batch_size in LAUNCHES_BATCHES:
            changes = {"device": "cpu", "size": LAUNCHES_SIZE, "batch_size": batch_size}
            point, totals = argparse.Namespace(**(vars(options) | changes)), {}
            for side in ("ours", "peer"):
                run = WORKLOADS[mode](point, side)
                run()
                totals[side] = count_device_work(run).totals()
            for kind in totals["ours"]:
                counts = {side: [number[kind]] for side, number in totals.items()}
                yield make_row(f"{mode}, batch {batch_size}, {kind}", "count", "", counts)


def alternate(runs: dict[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each measured run; the sides take turns, so that both meet the same machine."""
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    for turn in range(options.warmup + options.repeats):
        for side, run in runs.items():
            gc.collect()
            _synchronize(options)
            start = time.perf_counter()
            run()
            _synchronize(options)
            if turn >= options.warmup:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def _synchronize(options: argparse.Namespace) -> None:
    if torch.device(options.device).type == "cuda":
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


def seconds_of(mode: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of our runs of a workload."""
    return alternate({"ours": WORKLOADS[mode](options, "ours")}, options)


def memory_of(mode: str, options: argparse.Namespace, side: str) -> tuple[float, float]:
    """Peak memory of two runs in MiB, and how far it is above what was held before: on CUDA that of tensors on the
    device, else that of the whole process, libraries included.
    """
    run = WORKLOADS[mode](options, side)
    gc.collect()
    on_cuda = torch.device(options.device).type == "cuda"
    before = torch.cuda.memory_allocated(options.device) if on_cuda else psutil.Process().memory_info().rss
    for _ in range(2):
        run()
    peak = torch.cuda.max_memory_allocated(options.device) if on_cuda else _peak_of_process()
    return peak / MEBIBYTE, max(0, peak - before) / MEBIBYTE


def _peak_of_process() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # Preferred, because what `resource` tells includes the memory of the process that started this one.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def environment(options: argparse.Namespace) -> Row:
    """Processor, device, allocator, threads and versions."""
    information, maps = Path("/proc/cpuinfo"), Path("/proc/self/maps")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    libraries = maps.read_text() if maps.exists() else ""
    allocator = platform.libc_ver()[0] or platform.system()
    return {
        "cpu": f"{len(names)} x {names[0]}" if names else platform.machine(),
        "device": torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device,
        "threads": torch.get_num_threads(),
        "allocator": next((name for name in ALLOCATORS if name in libraries), allocator),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def make_row(case: str, metric: str, unit: str, runs: dict[str, list[float]]) -> Row:
    """A row of the table: medians of `"ours"` and, where there is one, of `"peer"`, their ratio, and all runs."""
    row: Row = {"case": case, "metric": metric, "unit": unit}
    row |= {side: statistics.median(values) for side, values in runs.items()}
    row["ratio"] = row["ours"] / row["peer"] if row.get("peer") else None
    return row | {f"{side}_runs": values for side, values in runs.items()}


NOTES = {
    "equal_pixels": "of the pixels equal",
    "ours_images_per_second": "images/s ours",
    "peer_images_per_second": "images/s peer",
    "ours_above_start": "MiB above start ours",
    "peer_above_start": "MiB above start peer",
}


def _line(row: Row) -> str:
    form = ".0f" if row["metric"] == "count" else ".4g"
    figures = [format(row[side], form) if side in row else "" for side in ("ours", "peer")]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    spreads = [_spread(row[f"{side}_runs"]) for side in ("ours", "peer") if f"{side}_runs" in row]
    notes = [f"{row[name]:.4g} {label}" for name, label in NOTES.items() if name in row]
    table = f"{row['case']:34}{row['metric']:8}{row['unit']:9}{figures[0]:>10}{figures[1]:>10}{ratio:>7}"
    return f"{table}  {', '.join(spreads + notes)}"


def _spread(runs: list[float]) -> str:
    return f"{min(runs):.4g}-{max(runs):.4g}" if len(runs) > 1 else "1 run"


if __name__ == "__main__":
    main(sys.argv[1:])
