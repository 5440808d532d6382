# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Tries a run: loads all of it, takes two steps, evaluates one image, and tells what the whole run would need.

Nothing is downloaded and nothing is kept. What is not on the machine is named, and random weights or drawn scenes of
the same sizes stand in for it.
"""

import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, has_length

from .arguments import DataArguments, ModelArguments, MTAClipTrainingArguments
from .run import Run, prepare_run
from .sources import Source, find_sources, stand_in_for_data, stand_in_for_weights
from .trainer import MTAClipTrainer


NUM_STEPS = 2
# A trial leaves nothing behind and prints nothing but its own report.
SILENT = {
    "eval_strategy": IntervalStrategy.NO,
    "save_strategy": SaveStrategy.NO,
    "logging_strategy": IntervalStrategy.NO,
    "load_best_model_at_end": False,
    "report_to": [],
    "disable_tqdm": True,
    "push_to_hub": False,
    "resume_from_checkpoint": None,
    "do_train": True,
    "do_eval": True,
}
PARTS = {
    "model.backbone.": "backbone",
    "model.feature_pyramid.": "feature pyramid",
    "model.pixel_decoder.": "pixel decoder",
    "model.decoder.": "mask-text decoder",
    "model.text_model.text_encoder.": "text encoder",
}


class _StepTimer(TrainerCallback):
    """Notes when steps end, and stops the training after the last one of the trial."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.learning_rates: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: torch.optim.Optimizer | None = None, **kwargs: Any
    ) -> None:
        self.learning_rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())
        control.should_training_stop = len(self.times) > NUM_STEPS

    @property
    def seconds(self) -> list[float]:
        """Of each step, the first one with the start of the data loader."""
        return [end - start for start, end in zip(self.times, self.times[1:], strict=False)]


def dry_run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: MTAClipTrainingArguments
) -> str:
    """Tries a run.

    Returns:
        `str`: the report, as printed.

    Raises:
        ValueError: options, data or weights that don't fit, named.
    """
    sources = find_sources(model_arguments, data_arguments)
    data = stand_in_for_data(data_arguments, sources)
    if data is not None:
        data_arguments = replace(data_arguments, check_data="none")
    model_arguments = stand_in_for_weights(model_arguments, sources)
    lines = ["", "Dry run: two steps and one image", *_describe_sources(sources)]
    schedule = _Schedule(training_arguments)
    with tempfile.TemporaryDirectory() as folder:
        output_dir = Path(training_arguments.output_dir)
        for name, value in (SILENT | {"output_dir": folder}).items():
            setattr(training_arguments, name, value)
        run = prepare_run(model_arguments, data_arguments, training_arguments, data)
        lines += [*_describe_parameters(run.trainer.model), *_describe_batch(run)]
        lines += _describe_checkpoint(run.trainer, output_dir)
        step_seconds, step_lines = _take_steps(run.trainer)
        memory = _peak_memory(run.trainer.args.device)
        image_seconds, image_lines = _evaluate_one(run.trainer)
    memory += f" after the steps, {_peak_memory(run.trainer.args.device)} after the image"
    lines += [*step_lines, *image_lines, f"  {'peak memory':<16}{memory}"]
    lines += schedule.describe(run, step_seconds, image_seconds)
    report = "\n".join(lines)
    if run.trainer.is_world_process_zero():
        print(report)
    return report


def _describe_sources(sources: list[Source]) -> list[str]:
    lines = []
    for source in sources:
        state = "there" if source.is_there else f"missing, a stand-in is used: {source.how_to_get}"
        lines.append(f"  {source.option:<17}{source.value}: {state}")
    return lines


def _describe_parameters(model: nn.Module) -> list[str]:
    trained, frozen = Counter(), Counter()
    for name, parameter in model.named_parameters():
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "heads and prompts")
        (trained if parameter.requires_grad else frozen)[part] += parameter.numel()
    lines = [f"  {'parameters':<16}{_millions(trained.total())} trained, {_millions(frozen.total())} frozen"]
    for part in trained | frozen:
        lines.append(f"    {part:<20}{_millions(trained[part] or frozen[part])}{'' if trained[part] else ' (frozen)'}")
    return lines


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M"


def _describe_batch(run: Run) -> list[str]:
    trainer = run.trainer
    args, dataset = trainer.args, trainer.train_dataset
    whole = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    images = f"{len(dataset)} images" if has_length(dataset) else "a stream of images"
    return [
        f"  {'data':<16}{images}, {len(run.data.class_names)} classes, crops of "
        f"{' x '.join(str(side) for side in dataset.augmentation.crop_size)}",
        f"  {'batch':<16}{whole} = {args.train_batch_size} per device x {args.world_size} processes x "
        f"{args.gradient_accumulation_steps} accumulated, on {args.device.type}",
    ]


def _describe_checkpoint(trainer: MTAClipTrainer, output_dir: Path) -> list[str]:
    args, model = trainer.args, trainer.model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    # AdamW keeps two moments of each trained weight; an average of the weights is one more.
    size = weights + 4 * trained * (3 if args.ema_decay > 0 else 2)
    number = (args.save_total_limit or 0) + 1
    existing = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    enough = "" if free > number * size else ": NOT ENOUGH"
    return [
        f"  {'checkpoint':<16}{size / 2**20:.0f} MiB each; {number} at once need {number * size / 2**20:.0f} MiB, "
        f"{free / 2**20:.0f} MiB are free{enough}"
    ]


def _take_steps(trainer: MTAClipTrainer) -> tuple[float, list[str]]:
    timer = _StepTimer()
    trainer.add_callback(timer)
    trainer.pop_callback(PrinterCallback)
    loss = trainer.train().training_loss
    first, last = timer.seconds[0], timer.seconds[-1]
    rates = " and ".join(f"{rate:.3g}" for rate in timer.learning_rates)
    return last, [
        f"  {'two steps':<16}{first:.2f} s and {last:.2f} s, mean loss {loss:.3f}",
        f"  {'learning rates':<16}{rates} at first, {trainer.args.learning_rate:.3g} after warm-up; the backbone's is "
        f"{trainer.args.backbone_lr_factor:g} of that",
    ]


def _evaluate_one(trainer: MTAClipTrainer) -> tuple[float, list[str]]:
    """Evaluates an image on every process."""
    # Starting workers would take longer than an image.
    trainer.args.dataloader_num_workers = 0
    number = trainer.args.world_size
    dataset = trainer.eval_dataset
    examples = [dataset[index] for index in range(number)] if has_length(dataset) else list(islice(dataset, number))
    start = time.perf_counter()
    metrics = trainer.evaluate(examples)
    seconds = time.perf_counter() - start
    return seconds, [f"  {'one image':<16}{seconds:.2f} s, mean IoU {metrics['eval_mean_iou']:.3f}"]


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of the GPU"
    unit = 1 if sys.platform == "darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB of the process"


class _Schedule:
    """How often the whole run trains and evaluates; read before the trial changes the options."""

    def __init__(self, arguments: MTAClipTrainingArguments) -> None:
        self.eval_steps = arguments.eval_steps if arguments.eval_strategy == IntervalStrategy.STEPS else None

    def describe(self, run: Run, step_seconds: float, image_seconds: float) -> list[str]:
        """How long the whole run takes."""
        num_steps = run.trainer.state.max_steps
        lines = [f"  {'expected time':<16}{num_steps} steps in {_duration(num_steps * step_seconds)}"]
        if has_length(run.trainer.eval_dataset):
            interval = self.eval_steps or num_steps
            interval = interval if interval >= 1 else interval * num_steps
            times = 1 + int(num_steps // interval)
            images = len(run.trainer.eval_dataset)
            seconds = times * images / run.trainer.args.world_size * image_seconds
            lines.append(f"  {'':<16}and {times} evaluations of {images} images in {_duration(seconds)}")
        return lines


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


__all__ = ["dry_run"]
