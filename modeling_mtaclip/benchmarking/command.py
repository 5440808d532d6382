# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Command line of the benchmark: options, cases, the table and the JSON file."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from . import models
from .data import compare_pipelines
from .measuring import compare, environment
from .parts import measure_parts
from .scaling import measure_scaling
from .settings import Settings


DTYPES = ("float32", "bfloat16")


def main(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Runs the benchmark.

    Args:
        arguments (`Sequence[str]`): of the command line.

    Returns:
        `list[dict[str, Any]]`: the rows of the table.
    """
    options = _parse(arguments)
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    settings.prepare()
    around = environment(settings)
    print(", ".join(f"{name}: {value}" for name, value in around.items()))
    print(", ".join(f"{name}: {value}" for name, value in asdict(settings).items()))
    print(HEADING, flush=True)
    rows = []
    for mode in COMPARED if options.mode == "all" else [options.mode]:
        for row in MODES[mode](settings):
            rows.append(row)
            print(_line(row), flush=True)
    if options.json is not None:
        result = {"environment": around, "settings": asdict(settings), "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return rows


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        description="Speed and memory of MTA-CLIP beside transformers' Mask2Former, on random weights and images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = Settings()
    parser.add_argument("--against", choices=["mask2former"], default="mask2former", help="the peer")
    parser.add_argument(
        "--mode", choices=[*MODES, "all"], default="all", help="what to measure; all: everything that has a peer"
    )
    parser.add_argument("--device", default=defaults.device, help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=DTYPES, default=defaults.dtype, help="bfloat16: autocast to it")
    parser.add_argument("--size", type=int, default=defaults.size, help="side of the images, a multiple of 32")
    for name, meaning in {
        "batch": "number of images",
        "classes": "number of classes",
        "contexts": "number of prompt contexts",
        "queries": "number of mask queries",
        "threads": "threads on the CPU",
        "repeats": "measured runs of each figure",
        "warmup": "runs before the measured ones",
        "workers": "processes that read data",
        "seed": "of weights, images and names",
    }.items():
        default = torch.get_num_threads() if name == "threads" else getattr(defaults, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=meaning)
    parser.add_argument("--small", action="store_true", help="tiny layers and data, to try the benchmark itself")
    parser.add_argument("--json", type=Path, help="file for the table, with all runs")
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name in ("batch", "classes", "contexts", "queries", "threads", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}.")
    for name in ("warmup", "workers"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} must not be negative, got {getattr(options, name)}.")
    if options.size < 32 or options.size % 32:
        parser.error(f"--size must be a multiple of 32, got {options.size}.")
    if options.classes > 255 and options.mode in ("data", "all"):
        parser.error(f"--mode {options.mode} needs at most 255 classes, got {options.classes}: choose another mode.")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: the folder does not exist; make it first.")
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} can't be used: {error}")


def _train(settings: Settings) -> list[dict[str, Any]]:
    return compare("train", {"ours": models.our_training, "peer": models.peer_training}, settings, "peak")


def _infer(settings: Settings) -> list[dict[str, Any]]:
    return compare("infer", {"ours": models.our_inference, "peer": models.peer_inference}, settings, "peak")


def _text(settings: Settings) -> list[dict[str, Any]]:
    workloads = {"ours": models.our_text_encoding, "peer": models.peer_text_encoding}
    return compare("text", workloads, settings, "above")


def _postprocess(settings: Settings) -> list[dict[str, Any]]:
    ours, peers = models.our_postprocessing, {"": models.peer_postprocessing, ", exact": models.exact_postprocessing}
    maps = {name: peer(settings)() for name, peer in peers.items()} | {"ours": ours(settings)()}
    rows = []
    for name, peer in peers.items():
        equal = (maps["ours"] == maps[name]).double().mean().item()
        case = f"postprocess{name}"
        rows += [
            row | {"equal_pixels": equal} for row in compare(case, {"ours": ours, "peer": peer}, settings, "above")
        ]
    return rows


COMPARED: dict[str, Callable[[Settings], list[dict[str, Any]]]] = {
    "train": _train,
    "infer": _infer,
    "text": _text,
    "postprocess": _postprocess,
    "data": compare_pipelines,
}
MODES = COMPARED | {"parts": measure_parts, "scaling": measure_scaling}
HEADING = f"{'case':32}{'metric':8}{'unit':9}{'ours':>10}{'peer':>10}{'ratio':>7}  spread of ours, of peer"


def _line(row: dict[str, Any]) -> str:
    peer, ratio = row.get("peer"), row["ratio"]
    figures = (
        f"{row['ours']:10.4g}{'' if peer is None else f'{peer:.4g}':>10}{'' if ratio is None else f'{ratio:.2f}':>7}"
    )
    spreads = [_spread(row[f"{side}_runs"]) for side in ("ours", "peer") if f"{side}_runs" in row]
    notes = [f"{row[name]:.4g} {label}" for name, label in NOTES.items() if name in row]
    return f"{row['case']:32}{row['metric']:8}{row['unit']:9}{figures}  {', '.join(spreads + notes)}"


NOTES = {
    "equal_pixels": "of the pixels equal",
    "ours_images_per_second": "images/s ours",
    "peer_images_per_second": "images/s peer",
    "gflop": "GFLOP",
    "limit": "s at the rate of matrix products",
    "of_limit": "times that",
}


def _spread(runs: list[float]) -> str:
    return f"{min(runs):.4g}-{max(runs):.4g}" if len(runs) > 1 else "1 run"


__all__ = ["main"]
