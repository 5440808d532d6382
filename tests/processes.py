# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes that know each other, as torchrun starts them, but forked: they import nothing anew."""

import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import distributed, multiprocessing


def run_on_processes(num_processes: int, log_folder: Path, function: Callable[..., None], *arguments: Any) -> str:
    """Calls `function(*arguments)` on each process and returns what all of them printed, one after the other."""
    # Where there is an accelerator, its threads can't be forked.
    method = "fork" if sys.platform == "linux" and not torch.accelerator.is_available() else "spawn"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log_folder.mkdir(parents=True, exist_ok=True)
    context = (num_processes, port, log_folder, function, arguments)
    multiprocessing.start_processes(_run, context, num_processes, start_method=method)
    return "".join(path.read_text() for path in sorted(log_folder.glob("process_*.log")))


def _run(
    rank: int, num_processes: int, port: int, log_folder: Path, function: Callable[..., None], arguments: tuple
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {name: str(num_processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    sys.stdout = sys.stderr = (log_folder / f"process_{rank}.log").open("w", buffering=1)
    for descriptor in (1, 2):
        os.dup2(sys.stdout.fileno(), descriptor)
    logging.basicConfig(stream=sys.stderr, force=True)
    torch.set_num_threads(1)
    # What the forked process knows of the one that it comes from.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    function(*arguments)
    if distributed.is_initialized():
        distributed.destroy_process_group()
