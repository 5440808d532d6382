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
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from .checkpoints import TrainingStopped


logger = logging.get_logger(__name__)

EMA_FILE = "ema.safetensors"
# What the progress bar shows, and what the log calls it.
SHOWN_FIGURES = {"loss": "loss", "mIoU": "eval_mean_iou"}
# Several processes ask each other about SIGTERM every so many steps.
TERMINATION_INTERVAL = 10


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


class FirstCheckpointCallback(TrainerCallback):
    """Saves a checkpoint just before the first evaluation, so that no evaluation can lose a whole training."""

    def __init__(self) -> None:
        self._saved = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A training that was resumed has one already.
        self._saved = state.global_step > 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy == IntervalStrategy.STEPS:
            evaluates = state.global_step + 1 == state.eval_steps
        else:
            evaluates = args.eval_strategy == IntervalStrategy.EPOCH and state.epoch == int(state.epoch)
        if evaluates and not self._saved and args.save_strategy != SaveStrategy.NO:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = True


class BrokenStepsCallback(TrainerCallback):
    """Skips steps whose gradients are NaN or infinite, and ends a training in which there are too many in a row.

    Nothing is read from the device before the next line of the log: the optimizer gets the verdict as a tensor, as
    from a gradient scaler. Gradients are the same on all processes, so that all skip the same steps. With a gradient
    scaler, which skips such steps by itself, only those count that it can't mend by a smaller scale.

    Args:
        max_skipped_steps (`int`): more of them in a row are an error.
        scaler (`torch.amp.GradScaler`, *optional*): of the training.
    """

    def __init__(self, max_skipped_steps: int, scaler: torch.amp.GradScaler | None = None) -> None:
        self.max_skipped_steps, self.scaler = max_skipped_steps, scaler
        self._statistics: list[Tensor] = []
        self._gradient_norm: Tensor | None = None
        self._loss_is_broken: Tensor | bool = False
        # Skipped steps; in a row: now, and at most; the same of those in which the loss itself was broken.
        self._counts: Tensor | None = None
        self._num_reported = 0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        self._statistics = [value.clone() for value in _statistics(model)]
        self._counts, self._num_reported = None, 0

    def see_loss(self, loss: Tensor) -> None:
        """Notes the loss of a part of the step's batch."""
        self._loss_is_broken = self._loss_is_broken | ~loss.detach().isfinite()

    def see_gradient_norm(self, norm: Tensor) -> None:
        """Notes the norm of the step's gradients before they are clipped."""
        self._gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    @torch.no_grad()
    def on_pre_optimizer_step(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        if self._gradient_norm is None:
            return
        broken = ~self._gradient_norm.isfinite()
        # Batch norms have seen the broken images already.
        for kept, value in zip(self._statistics, _statistics(model), strict=True):
            value.copy_(torch.where(broken, kept, value))
            kept.copy_(value)
        self._count(broken)
        if self.scaler is not None:
            return
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if getattr(optimizer, "_step_supports_amp_scaling", False) and not _is_sharded(model):
            optimizer.found_inf = broken.float()
        elif broken:
            # An optimizer passes over parameters without gradient.
            model.zero_grad(set_to_none=True)

    def _count(self, broken: Tensor) -> None:
        if self._counts is None:
            self._counts = torch.zeros(5, dtype=torch.long, device=broken.device)
        total, row, longest, loss_row, longest_loss = self._counts.unbind()
        row = (row + 1) * broken
        loss_row = (loss_row + (broken & self._loss_is_broken)) * broken
        self._counts = torch.stack(
            [total + broken, row, longest.maximum(row), loss_row, longest_loss.maximum(loss_row)]
        )
        self._loss_is_broken = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log:
            self.report(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step)

    def report(self, step: int) -> None:
        """Warns of steps that were skipped since the last time; all processes must call this.

        Raises:
            TrainingStopped: too many in a row.
        """
        if self._counts is None:
            return
        counts = self._counts.clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts, distributed.ReduceOp.MAX)
        total, _, longest, _, longest_loss = counts.tolist()
        if self.scaler is not None and self.scaler.get_scale() >= 1:
            # Gradients that only overflow are the scaler's way to find its scale.
            longest = longest_loss
        if longest > self.max_skipped_steps:
            raise TrainingStopped(
                f"{longest} steps in a row had NaN or infinite gradients up to step {step}; `max_skipped_steps` is "
                f"{self.max_skipped_steps}. Lower the learning rate, or look for broken images; the log names them."
            )
        if total > self._num_reported and self.scaler is None:
            logger.warning(
                "Up to step %d, %d step(s) are left out, as their gradients are NaN or infinite.",
                step,
                total - self._num_reported,
            )
        self._num_reported = total


def _statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics of all batch norms."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


class TerminationCallback(TrainerCallback):
    """Saves a checkpoint and stops soon after any process gets SIGTERM: one process after its step, several within
    ten steps.

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
        received = self._received
        if args.world_size > 1:
            if state.global_step % TERMINATION_INTERVAL:
                return
            anywhere = torch.tensor(float(received), device=args.device)
            distributed.all_reduce(anywhere)
            received = anywhere > 0
        if received:
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
        self.decay = decay
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._averages: list[Tensor] = []

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averages by name; before the first step the model's own weights."""
        if not self._averages:
            self._averages = [value.detach().clone() for value in self._parameters.values()]
        return dict(zip(self._parameters, self._averages, strict=True))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _ = self.averages

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        # Not `AveragedModel`, which copies a number to the device in each step.
        get_ema_multi_avg_fn(decay)(self._averages, list(self._parameters.values()), None)

    def save(self, folder: str | Path) -> None:
        """Writes the averages into a checkpoint."""
        save_file({name: value.contiguous() for name, value in self.averages.items()}, Path(folder) / EMA_FILE)

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Takes the averages from a checkpoint.

        Raises:
            ValueError: it has none.
        """
        path = Path(folder) / EMA_FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no averaged weights ({EMA_FILE}): it was saved without `--ema_decay`.")
        saved = load_file(path)
        for name, average in self.averages.items():
            average.copy_(saved[name])

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Gives the averages to the model, for good."""
        for name, average in self.averages.items():
            self._parameters[name].copy_(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the averages to the model, and its own weights back afterward."""
        own = [parameter.detach().clone() for parameter in self._parameters.values()]
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters.values(), own, strict=True):
                    parameter.copy_(value)


__all__ = [
    "AveragedWeightsCallback",
    "BriefProgressCallback",
    "BrokenStepsCallback",
    "EpochCallback",
    "FirstCheckpointCallback",
    "TerminationCallback",
]
