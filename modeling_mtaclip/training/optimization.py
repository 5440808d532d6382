# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameter groups and learning-rate schedule of the paper's recipe."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.utils import is_timm_available


# Parameters without weight decay that are no norm's: learned queries, positions, levels and prompts, and what
# transformers' and timm's backbones call their position tables and class tokens.
UNDECAYED_NAMES = ("mask_queries", "query_positions", "level_embed", "text_model.contexts")
UNDECAYED_NAMES += ("pos_embed", "position_embedding", "relative_position_bias")
UNDECAYED_NAMES += ("cls_token", "class_embedding", "register_tokens")
# The feature pyramid is a part of the backbone in the authors' code.
BACKBONE = ("model.backbone.", "model.feature_pyramid.")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, backbone_lr_factor: float
) -> list[dict[str, Any]]:
    """Sorts the trainable parameters into an optimizer's groups; the frozen text encoder is in none.

    Backbone and feature pyramid learn at `backbone_lr_factor` times the rate of the rest; norms, learned queries,
    positions, levels and prompts don't decay. Groups have a `name` and the parameters' names in `param_names`.
    """
    rates = {"decoder": learning_rate, "backbone": learning_rate * backbone_lr_factor}
    decays = {"": weight_decay, ", no decay": 0.0}
    groups: dict[str, dict[str, Any]] = {
        part + kind: {"name": part + kind, "params": [], "param_names": [], "lr": rate, "weight_decay": decay}
        for part, rate in rates.items()
        for kind, decay in decays.items()
    }
    for module_name, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            if parameter.requires_grad:
                is_undecayed = is_norm or any(part in name for part in UNDECAYED_NAMES)
                part = "backbone" if name.startswith(BACKBONE) else "decoder"
                group = groups[part + (", no decay" if is_undecayed else "")]
                group["params"].append(parameter)
                group["param_names"].append(name)
    return [group for group in groups.values() if group["params"]]


def create_schedule(arguments: TrainingArguments, optimizer: Optimizer, num_steps: int) -> LRScheduler:
    """Creates the schedule that the arguments name, with the paper's polynomial one in place of transformers'; options
    that it does not know or lacks are a `ValueError`."""
    kind, options = arguments.lr_scheduler_type, dict(arguments.lr_scheduler_kwargs or {})
    warmup_steps = arguments.get_warmup_steps(num_steps)
    if kind in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        # What the schedule waits for is the metric of the best checkpoint.
        options.setdefault("mode", "max" if arguments.greater_is_better else "min")
    try:
        if kind == SchedulerType.POLYNOMIAL:
            return polynomial_schedule(optimizer, warmup_steps, num_steps, arguments.warmup_start_factor, **options)
        return get_scheduler(kind, optimizer, warmup_steps, num_steps, options)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`lr_scheduler_type` {kind.value} does not work with `lr_scheduler_kwargs` {options}: {error}"
        ) from error


def polynomial_schedule(
    optimizer: Optimizer,
    warmup_steps: int,
    num_steps: int,
    warmup_start_factor: float = 0.1,
    power: float = 0.9,
    lr_end: float = 0.0,
) -> LambdaLR:
    """Linear warm-up from a share of the learning rate, then polynomial decay (DeepLab, arXiv 1606.00915) to `lr_end`,
    the learning rate of the group with the highest one; the others keep their share of it."""
    # DeepSpeed's optimizers have no `defaults`.
    highest = max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    if not 0 <= lr_end <= highest:
        raise ValueError(f"`lr_end` must be between 0 and the learning rate {highest}, got {lr_end}")
    end_factor = lr_end / highest if lr_end else 0.0

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup_start_factor + (1 - warmup_start_factor) * step / warmup_steps
        remaining = max(0.0, (num_steps - step) / max(1, num_steps - warmup_steps))
        return end_factor + (1 - end_factor) * remaining**power

    return LambdaLR(optimizer, factor)


def synchronize_batch_norms(backbone: nn.Module) -> None:
    """Lets the batch norms of a backbone take their statistics over all processes, each on its GPU."""
    if is_timm_available():
        # Its batch norms have an activation in them, which PyTorch's function would lose.
        from timm.layers import convert_sync_batchnorm
    else:
        convert_sync_batchnorm = nn.SyncBatchNorm.convert_sync_batchnorm
    convert_sync_batchnorm(backbone)


def keep_strides(model: nn.Module) -> None:
    """Gives gradients their parameters' strides along sides of length 1, which say nothing, but which DDP compares."""

    def with_strides(gradient: Tensor, strides: tuple[int, ...]) -> Tensor:
        pairs = zip(gradient.stride(), strides, gradient.shape, strict=True)
        same = all(own == wanted or size == 1 for own, wanted, size in pairs)
        return gradient.as_strided(gradient.shape, strides) if same else gradient

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dim() == 4 and 1 in parameter.shape:
            parameter.register_hook(partial(with_strides, strides=parameter.stride()))


__all__ = ["create_schedule", "keep_strides", "parameter_groups", "polynomial_schedule", "synchronize_batch_norms"]
