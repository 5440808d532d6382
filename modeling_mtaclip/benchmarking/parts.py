# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the time goes: forward pass of each part, beside what its arithmetic would take at the machine's best rate."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .measuring import alternate, make_row, matrix_rate
from .models import our_inference, our_model, our_training, peer_inference, peer_training, random_images, random_labels
from .settings import Settings


def measure_parts(settings: Settings) -> list[dict[str, Any]]:
    """Rows of the case `parts`: each part of our training step, going forward, and whole runs of both models.

    `limit` is the time of the part's multiplications at the rate of large matrix products.
    """
    rate = matrix_rate(settings)
    rows = []
    for name, workload in {
        "train": our_training,
        "train, peer": peer_training,
        "infer": our_inference,
        "infer, peer": peer_inference,
    }.items():
        (runs,) = alternate({name: workload}, settings).values()
        # The text embeddings of inference are there, so that they are not counted.
        rows.append(_row(name, runs, count_operations(_warm(workload, settings)), rate))
    return [*_forward_parts(settings, rate), *rows]


def count_operations(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _warm(workload: Callable[[Settings], Callable[[], Any]], settings: Settings) -> Callable[[], Any]:
    run = workload(settings)
    run()
    return run


def _forward_parts(settings: Settings, rate: float) -> list[dict[str, Any]]:
    model, images, labels = our_model(settings).train(), random_images(settings), random_labels(settings)
    parts = {
        "backbone": model.model.backbone,
        "pixel decoder": model.model.pixel_decoder,
        "text": model.model.text_model,
        "decoder": model.model.decoder,
        "heads: text": model.text_head,
        "losses": model.criterion,
    }

    def forward() -> Tensor:
        with settings.autocast():
            return model(pixel_values=images, labels=labels, output_logits=False).loss

    seconds = _time_modules(parts, forward, settings)
    operations = _count_in_modules(parts, forward)
    return [_row(f"forward: {name}", seconds[name], operations[name], rate) for name in parts]


def _time_modules(parts: dict[str, nn.Module], forward: Callable[[], Any], settings: Settings) -> dict[str, list]:
    seconds: dict[str, list[float]] = defaultdict(list)
    starts: dict[str, float] = {}

    def begin(name: str, *_: Any) -> None:
        settings.synchronize()
        starts[name] = time.perf_counter()

    def end(name: str, *_: Any) -> None:
        settings.synchronize()
        seconds[name].append(time.perf_counter() - starts[name])

    hooks = [module.register_forward_pre_hook(partial(begin, name)) for name, module in parts.items()]
    hooks += [module.register_forward_hook(partial(end, name)) for name, module in parts.items()]
    for _ in range(settings.warmup + settings.repeats):
        forward()
    for hook in hooks:
        hook.remove()
    return {name: runs[settings.warmup :] for name, runs in seconds.items()}


def _count_in_modules(parts: dict[str, nn.Module], forward: Callable[[], Any]) -> dict[str, int]:
    operations: dict[str, int] = {}
    with FlopCounterMode(display=False) as counter:

        def begin(name: str, *_: Any) -> None:
            operations[name] = -counter.get_total_flops()

        def end(name: str, *_: Any) -> None:
            operations[name] += counter.get_total_flops()

        hooks = [module.register_forward_pre_hook(partial(begin, name)) for name, module in parts.items()]
        hooks += [module.register_forward_hook(partial(end, name)) for name, module in parts.items()]
        forward()
    for hook in hooks:
        hook.remove()
    return operations


def _row(name: str, seconds: list[float], operations: int, rate: float) -> dict[str, Any]:
    row = make_row(f"parts, {name}", "time", "s", {"ours": seconds})
    limit = operations / rate
    return row | {"gflop": operations / 1e9, "limit": limit, "of_limit": statistics.median(seconds) / limit}


__all__ = ["count_operations", "measure_parts"]
