# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Tries a run: loads everything, takes two steps, evaluates one image, and tells what the whole run would need.
Nothing is kept."""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import has_length

from .arguments import DataArguments, ModelArguments, MTAClipTrainingArguments
from .run import Run, prepare_run


# A trial leaves nothing behind and prints nothing but its own report.
SILENT = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "no")
SILENT |= {"load_best_model_at_end": False, "push_to_hub": False, "report_to": [], "disable_tqdm": True}
SILENT |= {"resume_from_checkpoint": None, "do_train": True, "do_eval": True}


class _TwoSteps(TrainerCallback):
    """Notes how long the second step takes, the wait for its images included, and stops the training then."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.seconds, control.should_training_stop = time.perf_counter() - self.start, True
        self.start = time.perf_counter()


def dry_run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: MTAClipTrainingArguments
) -> str:
    """Tries a run and returns the report, as printed."""
    args, steps, output_dir = training_arguments, _TwoSteps(), Path(training_arguments.output_dir)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (SILENT | {"output_dir": folder}).items():
            setattr(args, name, value)
        run = prepare_run(model_arguments, data_arguments, args)
        run.trainer.add_callback(steps)
        run.trainer.pop_callback(PrinterCallback)
        loss = run.trainer.train().training_loss
        memory = _peak_memory(args.device)
        image_seconds = _evaluate_one(run)
    rows = [
        *_describe(run, output_dir),
        ("a step", f"{steps.seconds:.2f} s, mean loss of two {loss:.3f}"),
        ("peak memory", f"{memory} after two steps"),
        ("an image", f"{image_seconds:.2f} s, mean IoU {run.trainer.scores.summary()['mean_iou']:.3f}"),
        ("expected time", _expected_time(run, steps.seconds, image_seconds)),
    ]
    report = "\n".join(["\nDry run: two steps and one image", *(f"  {title:<16}{text}" for title, text in rows)])
    if run.trainer.is_world_process_zero():
        print(report)
    return report


def _describe(run: Run, output_dir: Path) -> Iterator[tuple[str, str]]:
    """Parameters, data, batch, and the room for checkpoints."""
    args, model, dataset = run.trainer.args, run.trainer.model, run.trainer.train_dataset
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    yield "parameters", f"{trained / 1e6:.2f} M trained, {frozen / 1e6:.2f} M frozen"
    images = f"{len(dataset)} images" if has_length(dataset) else "a stream of images"
    height, width = dataset.augmentation.crop_size
    yield "data", f"{images}, {len(run.data.class_names)} classes, crops of {height} x {width}"
    device, processes, accumulated = args.train_batch_size, args.world_size, args.gradient_accumulation_steps
    parts = f"{device} per device x {processes} processes x {accumulated} accumulated, on {args.device.type}"
    yield "batch", f"{device * processes * accumulated} = {parts}"
    weights = sum(value.nbytes for value in model.state_dict().values())
    # AdamW keeps two moments of each trained weight; an average of the weights is one more.
    size = (weights + 4 * trained * (3 if run.trainer.averages else 2)) / 2**20
    existing = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    yield "a checkpoint", f"{size:.0f} MiB; {shutil.disk_usage(existing).free / 2**20:.0f} MiB are free"


def _evaluate_one(run: Run) -> float:
    """Seconds for one image on every process."""
    # Starting workers would take longer than an image.
    run.trainer.args.dataloader_num_workers, start = 0, time.perf_counter()
    dataset, number = run.trainer.eval_dataset, run.trainer.args.world_size
    examples = map(dataset.__getitem__, range(number)) if has_length(dataset) else dataset
    run.trainer.evaluate([example for _, example in zip(range(number), examples, strict=False)])
    return time.perf_counter() - start


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of the GPU"
    try:
        import resource
    except ImportError:  # on Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB of the process"


def _expected_time(run: Run, step_seconds: float, image_seconds: float) -> str:
    num_steps, images = run.trainer.state.max_steps, run.trainer.eval_dataset
    expected = f"{num_steps} steps in {timedelta(seconds=round(num_steps * step_seconds))}"
    if has_length(images):
        seconds = round(len(images) / run.trainer.args.world_size * image_seconds)
        expected += f", each evaluation of {len(images)} images {timedelta(seconds=seconds)}"
    return expected


__all__ = ["dry_run"]
