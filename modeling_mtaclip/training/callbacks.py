# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What happens beside the steps of a training: progress, epochs, broken gradients, termination, averaged weights."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import ProgressCallback, TrainerCallback
from transformers.utils import logging

from .checkpoints import TrainingStopped


logger = logging.get_logger(__name__)

EMA_FILE = "ema.safetensors"
# What the progress bar shows, and what the log calls it.
SHOWN_FIGURES = {"loss": "loss", "mIoU": "eval_mean_iou"}


class BriefProgressCallback(ProgressCallback):
    """Progress bar with the remaining time, loss, mean IoU and speed, and lines with the main figures of the log.

    Loggers get all figures; the lines leave out the loss terms of the earlier layers and the IoU of each class.
    """

    def __init__(self) -> None:
        super().__init__()
        self._start: tuple[float, int] | None = None
        self._latest: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._start = (time.monotonic(), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            seconds = time.monotonic() - self._start[0]
            images = (state.global_step - self._start[1]) * args.train_batch_size * args.world_size
            rate = images * args.gradient_accumulation_steps / seconds
            figures = [f"{name} {self._latest[key]:.3g}" for name, key in SHOWN_FIGURES.items() if key in self._latest]
            self.training_bar.set_postfix_str(", ".join([*figures, f"{rate:.2f} images/s"]), refresh=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        self._latest |= {key: logs[key] for key in SHOWN_FIGURES.values() if key in logs}
        brief = {name: value for name, value in logs.items() if not _is_detail(name)}
        super().on_log(args, state, control, logs=brief, **kwargs)


def _is_detail(name: str) -> bool:
    return name.startswith("eval_iou_") or (name.startswith("loss_") and name[-1].isdigit())


class EpochCallback(TrainerCallback):
    """Tells the data set which epoch begins; with several processes, accelerate's loaders tell only their samplers.

    Args:
        dataset (`Dataset`): with a method `set_epoch`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.set_epoch(int(state.epoch or 0))


class FiniteGradientsCallback(TrainerCallback):
    """Leaves out a step whose gradients are NaN or infinite, up to a limit.

    Gradients are the same on all processes, so that all leave out the same steps.

    Args:
        max_skipped_steps (`int`): more of them are an error.
    """

    def __init__(self, max_skipped_steps: int) -> None:
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        self._statistics: list[Tensor] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        self._statistics = [value.clone() for value in _statistics(model)]

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        statistics = _statistics(model)
        if torch.nn.utils.get_total_norm(gradients).isfinite():
            for kept, value in zip(self._statistics, statistics, strict=True):
                kept.copy_(value)
            return
        self.skipped_steps += 1
        if self.skipped_steps > self.max_skipped_steps:
            raise TrainingStopped(
                f"{self.skipped_steps} steps had NaN or infinite gradients, last step {state.global_step + 1}; "
                f"`max_skipped_steps` is {self.max_skipped_steps}. Lower the learning rate, or look for broken "
                "images; the log names the loss terms."
            )
        logger.warning("Step %d is left out: its gradients are NaN or infinite.", state.global_step + 1)
        # An optimizer passes over parameters without gradient; batch norms have seen the broken images already.
        model.zero_grad(set_to_none=True)
        for value, before in zip(statistics, self._statistics, strict=True):
            value.copy_(before)


def _statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics of all batch norms."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


class TerminationCallback(TrainerCallback):
    """Saves a checkpoint and stops after the step in which any process gets SIGTERM.

    Attributes:
        terminated (`bool`): whether that has happened.
    """

    def __init__(self) -> None:
        self.terminated = False
        self._received = False
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._previous = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: Any) -> None:
        self._received = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        received = torch.tensor(float(self._received), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(received)
        if received > 0:
            self.terminated = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self._previous)


class AveragedWeightsCallback(TrainerCallback):
    """Exponential moving average of the trained weights (arXiv 1806.05594 and others), kept in checkpoints.

    Args:
        model (`nn.Module`): whose trainable parameters are averaged.
        decay (`float`): share of the old average in the new one; at the start less, so that it forgets the beginning.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.averages: dict[str, Tensor] = {}

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.averages:
            self.averages = {name: value.detach().clone() for name, value in self._parameters().items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        parameters = self._parameters()
        averages = [self.averages[name] for name in parameters]
        torch._foreach_lerp_(averages, [value.detach() for value in parameters.values()], 1 - decay)

    def save(self, folder: str | Path) -> None:
        """Writes the averages into a checkpoint."""
        save_file({name: value.contiguous() for name, value in self.averages.items()}, Path(folder) / EMA_FILE)

    def load(self, folder: str | Path) -> None:
        """Takes the averages from a checkpoint.

        Raises:
            ValueError: it has none.
        """
        path = Path(folder) / EMA_FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no averaged weights ({EMA_FILE}): it was saved without `--ema_decay`.")
        device = next(self.model.parameters()).device
        self.averages = {name: value.to(device) for name, value in load_file(path).items()}

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Gives the averages to the model, for good."""
        for name, parameter in self._parameters().items():
            parameter.copy_(self.averages[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the averages to the model, and its own weights back afterwards."""
        own = {name: value.detach().clone() for name, value in self._parameters().items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters().items():
                    parameter.copy_(own[name])


__all__ = [
    "AveragedWeightsCallback",
    "BriefProgressCallback",
    "EpochCallback",
    "FiniteGradientsCallback",
    "TerminationCallback",
]
