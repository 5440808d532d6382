# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What happens beside the steps of a training: progress, epochs, loss terms, broken gradients, averaged weights."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset
from transformers import ProgressCallback, TrainerCallback
from transformers.utils import logging

from .checkpoints import TrainingStopped


logger = logging.get_logger(__name__)

EMA_FILE = "ema.safetensors"


class BriefProgressCallback(ProgressCallback):
    """Prints less of the log: neither the loss terms of the earlier layers nor the IoU of each class."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        brief = {name: value for name, value in (logs or {}).items() if not re.match(r"eval_iou_|loss_.*\d$", name)}
        super().on_log(args, state, control, logs=brief, **kwargs)


class EpochCallback(TrainerCallback):
    """Tells the data set which epoch begins; with several processes, accelerate's loaders tell only their samplers."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.set_epoch(int(state.epoch or 0))


class LossTerms:
    """Losses and their terms since the last line of the log, which stay on the device until then."""

    def __init__(self) -> None:
        self._names: list[str] = []
        # Of each batch: step, loss and its terms, whether each image has only finite values, images' names.
        self._batches: list[tuple[int, Tensor, Tensor, Sequence[str]]] = []

    @torch.no_grad()
    def add(self, step: int, outputs: Any, pixel_values: Tensor, names: Sequence[str] | None) -> None:
        """Keeps the terms of a batch, and what tells which of its images are broken."""
        self._names = ["loss", *(f"loss_{name}" for name in outputs.loss_components)]
        terms = torch.stack([outputs.loss, *outputs.loss_components.values()]).float()
        names = names or [f"{index} of the batch" for index in range(len(pixel_values))]
        self._batches.append((step, terms, pixel_values.flatten(1).isfinite().all(dim=1), names))

    def take_means(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean of each term over the finite losses of all processes, which must all call this; images of the
        others are named. All are forgotten then."""
        batches, self._batches = self._batches, []
        values = torch.stack([terms for _, terms, _, _ in batches])
        finite = values[:, :1].isfinite()
        for (step, _, are_whole, images), is_finite in zip(batches, finite.flatten().tolist(), strict=True):
            if not is_finite:
                broken = [name for name, is_whole in zip(images, are_whole.tolist(), strict=True) if not is_whole]
                what = "images" if broken else "weights or one of the images"
                names = ", ".join(broken or images)
                logger.warning("Step %d: the loss is NaN or infinite because of the %s %s.", step, what, names)
        sums = torch.cat((torch.where(finite, values, 0).sum(dim=0), finite.sum(dim=0)))
        *sums, number = accelerator.reduce(sums, reduction="sum").tolist()
        return {name: value / number for name, value in zip(self._names, sums, strict=True) if number}


class BrokenStepsCallback(TrainerCallback):
    """Skips steps whose gradients are NaN or infinite, and ends a training in which there are too many in a row.

    Nothing is read from the device before the next line of the log: the optimizer gets the verdict as a tensor, as
    from a gradient scaler. Gradients are the same on all processes, so that all skip the same steps. With a gradient
    scaler, which skips such steps by itself to find its scale, they count only when no smaller scale can mend them.

    Args:
        max_skipped_steps (`int`): more of them in a row are an error.
        scaler (`torch.amp.GradScaler`, *optional*): of the training.
    """

    def __init__(self, max_skipped_steps: int, scaler: torch.amp.GradScaler | None = None) -> None:
        self.max_skipped_steps, self.scaler = max_skipped_steps, scaler

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self._statistics = [value.clone() for value in _statistics(model)]
        # Skipped steps: all, in a row now, and in a row at most.
        self._counts = [torch.tensor(0)] * 3
        self._num_reported = 0

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Optimizer, **kwargs: Any
    ) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not gradients:  # DeepSpeed keeps them to itself
            return
        norm = nn.utils.get_total_norm(gradients)
        broken = ~(norm.full_tensor() if hasattr(norm, "full_tensor") else norm).isfinite()
        # Batch norms have seen the broken images already.
        for kept, value in zip(self._statistics, _statistics(model), strict=True):
            value.copy_(torch.where(broken, kept, value))
            kept.copy_(value)
        total, row, longest = (count.to(broken.device) for count in self._counts)
        row = (row + 1) * broken
        self._counts = [total + broken, row, longest.maximum(row)]
        if self.scaler is not None:
            return
        optimizer = getattr(optimizer, "optimizer", optimizer)
        is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
        if getattr(optimizer, "_step_supports_amp_scaling", False) and not is_sharded:
            optimizer.found_inf = broken.float()
        elif broken:
            # An optimizer passes over parameters without gradient.
            model.zero_grad(set_to_none=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log:
            self.report(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step)

    def report(self, step: int) -> None:
        """Warns of steps that were skipped since the last time; too many in a row end the training."""
        total, _, longest = torch.stack(self._counts).tolist()
        if self.scaler is not None and self.scaler.get_scale() >= 1:
            return
        if longest > self.max_skipped_steps:
            raise TrainingStopped(
                f"{longest} steps in a row had NaN or infinite gradients up to step {step}; `max_skipped_steps` is "
                f"{self.max_skipped_steps}. Lower the learning rate, or look for broken images; the log names them."
            )
        if total > self._num_reported and self.scaler is None:
            number, self._num_reported = total - self._num_reported, total
            logger.warning(
                "Up to step %d, %d step(s) are left out: their gradients are NaN or infinite.", step, number
            )


def _statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics of all batch norms."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


class AveragedWeightsCallback(TrainerCallback):
    """Exponential moving average of the trained weights (arXiv 1806.05594 and others), kept in checkpoints.

    Args:
        model (`nn.Module`): whose trainable parameters are averaged.
        decay (`float`): share of the old average in the new one; at the start less, so that it forgets the beginning.

    Attributes:
        averages (`dict[str, Tensor]`): by the parameters' names; before the first step the model's own weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}

    @cached_property
    def averages(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._parameters.items()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _ = self.averages

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        # Not `AveragedModel`, which copies a number to the device in each step.
        get_ema_multi_avg_fn(decay)(list(self.averages.values()), list(self._parameters.values()), None)

    def save(self, folder: str | Path) -> None:
        """Writes the averages into a checkpoint."""
        save_file({name: value.contiguous() for name, value in self.averages.items()}, Path(folder) / EMA_FILE)

    def load(self, folder: str | Path) -> None:
        """Takes the averages from a checkpoint; one without them is a `ValueError`."""
        path = Path(folder) / EMA_FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no averaged weights ({EMA_FILE}): it was saved without `--ema_decay`.")
        _copy(load_file(path), self.averages)

    def copy_to_model(self) -> None:
        """Gives the averages to the model, for good."""
        _copy(self.averages, self._parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the averages to the model, and its own weights back afterward."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            _copy(own, self._parameters)


@torch.no_grad()
def _copy(values: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])


__all__ = ["AveragedWeightsCallback", "BriefProgressCallback", "BrokenStepsCallback", "EpochCallback", "LossTerms"]
