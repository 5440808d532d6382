# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Tries a run: names what is not on this machine, or loads all of it, takes two steps, evaluates one image, and tells
what the whole run would need. Nothing is downloaded and nothing is kept."""

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import has_length

from ..data import DATASETS
from .arguments import DataArguments, ModelArguments, MTAClipTrainingArguments
from .run import Run, prepare_run


NUM_STEPS = 2
# A trial leaves nothing behind and prints nothing but its own report.
SILENT = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "push_to_hub": False,
}
SILENT |= {"load_best_model_at_end": False, "disable_tqdm": True, "resume_from_checkpoint": None}
WEIGHT_OPTIONS = ("model_name_or_path", "original_checkpoint", "mask2former", "text_encoder", "backbone_weights")
WEIGHT_OPTIONS += ("backbone",)
OPENAI = "https://openaipublic.azureedge.net/clip/models"
# Where to get what no program fetches for the user.
ADDRESSES = {
    "RN50.pt": f"{OPENAI}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101.pt": f"{OPENAI}/8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
}
# Files of which one is in the cache if a repository of the Hub has been downloaded.
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json")


def dry_run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: MTAClipTrainingArguments
) -> str:
    """Tries a run.

    Returns:
        `str`: the report, as printed.

    Raises:
        ValueError: options, data or weights that don't fit, or that are not on this machine, named.
    """
    missing = [*missing_weights(model_arguments), *missing_data(data_arguments)]
    if missing:
        raise ValueError("This run needs what is not on this machine:\n" + "\n".join(missing))
    args = training_arguments
    intervals = args.eval_steps if args.eval_strategy == "steps" else 0, args.save_total_limit, Path(args.output_dir)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (SILENT | {"output_dir": folder, "do_train": True, "do_eval": True}).items():
            setattr(args, name, value)
        run = prepare_run(model_arguments, data_arguments, args)
        lines = ["", "Dry run: two steps and one image", *_describe(run, *intervals[1:])]
        timer = _StepTimer()
        run.trainer.add_callback(timer)
        run.trainer.pop_callback(PrinterCallback)
        loss = run.trainer.train().training_loss
        after_steps = _peak_memory(args.device)
        image_seconds = _evaluate_one(run)
    first, last = timer.seconds
    lines += [
        f"  two steps       {first:.2f} s and {last:.2f} s, mean loss {loss:.3f}",
        f"  learning rates  {' and '.join(f'{rate:.3g}' for rate in timer.learning_rates)} at first, "
        f"{args.learning_rate:.3g} after warm-up; the backbone's is {args.backbone_lr_factor:g} of that",
        f"  one image       {image_seconds:.2f} s, mean IoU {run.trainer.scores.summary()['mean_iou']:.3f}",
        f"  peak memory     {after_steps} after the steps, {_peak_memory(args.device)} after the image",
        *_expected_time(run, intervals[0], last, image_seconds),
    ]
    report = "\n".join(lines)
    if run.trainer.is_world_process_zero():
        print(report)
    return report


def missing_weights(arguments: ModelArguments) -> Iterator[str]:
    """Lines about weights that are not on this machine, and how to get them."""
    for option in WEIGHT_OPTIONS:
        value = getattr(arguments, option)
        source = arguments.backbone if value == "pretrained" else value
        if source is None or Path(source).exists() or _is_package(source):
            continue
        if option == "backbone" and ("/" not in source or arguments.backbone_weights == "pretrained"):
            continue
        if Path(source).suffix in (".pt", ".pth", ".bin", ".safetensors"):
            address = ADDRESSES.get(Path(source).name)
            yield f"- {option} {source}: " + (f"download {address}" if address else "there is no such file")
            continue
        repository = _repository(source)
        if not any(isinstance(try_to_load_from_cache(repository, name), str) for name in HUB_FILES):
            yield f"- {option} {repository}: download it from the Hub (hf download {repository})"


def missing_data(arguments: DataArguments) -> Iterator[str]:
    """Lines about a data set that is not on this machine, and how to get it."""
    info = DATASETS.get(arguments.dataset_name)
    if info is not None and info.loader == "files" and not Path(arguments.data_dir or "?").is_dir():
        yield f"- data_dir {arguments.data_dir}: download {info.title}, {info.download}, and name its folder"


def _is_package(name: str) -> bool:
    try:
        return bool(version(name))
    except (PackageNotFoundError, ValueError):
        return False


def _repository(name: str) -> str:
    """The Hub's repository of a model or of a timm backbone."""
    if "/" in name:
        return name.removeprefix("hf-hub:")
    import timm

    return f"{timm.get_pretrained_cfg(name).hf_hub_id}" if timm.is_model(name) else f"timm/{name}"


class _StepTimer(TrainerCallback):
    """Notes times and learning rates, and stops the training after the last step of the trial."""

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


def _describe(run: Run, save_total_limit: int | None, output_dir: Path) -> list[str]:
    """Parameters, batch, and room for checkpoints."""
    trainer, args, model = run.trainer, run.trainer.args, run.trainer.model
    trained, frozen = _count_parameters(model, True), _count_parameters(model, False)
    lines = [f"  parameters      {trained.total() / 1e6:.2f} M trained, {frozen.total() / 1e6:.2f} M frozen"]
    for counts, note in ((trained, ""), (frozen, " (frozen)")):
        lines += [f"    {part:<20}{number / 1e6:.2f} M{note}" for part, number in counts.items()]
    dataset = trainer.train_dataset
    images = f"{len(dataset)} images" if has_length(dataset) else "a stream of images"
    crops = " x ".join(str(side) for side in dataset.augmentation.crop_size)
    whole = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    lines += [
        f"  data            {images}, {len(run.data.class_names)} classes, crops of {crops}",
        f"  batch           {whole} = {args.train_batch_size} per device x {args.world_size} processes x "
        f"{args.gradient_accumulation_steps} accumulated, on {args.device.type}",
    ]
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    # AdamW keeps two moments of each trained weight; an average of the weights is one more.
    size = (weights + 4 * trained.total() * (3 if args.ema_decay > 0 else 2)) / 2**20
    number = (save_total_limit or 0) + 1
    existing = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**20
    enough = "" if free > number * size else ": NOT ENOUGH"
    return [
        *lines,
        f"  checkpoint      {size:.0f} MiB each; {number} at once need {number * size:.0f} MiB, {free:.0f} MiB are "
        f"free{enough}",
    ]


def _count_parameters(model: nn.Module, trained: bool) -> Counter[str]:
    """Trained or frozen parameters of each part: the first two names in the path of a module."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad == trained:
            counts[name.removeprefix("model.").split(".")[0]] += parameter.numel()
    return counts


def _evaluate_one(run: Run) -> float:
    """Seconds for one image on every process."""
    trainer = run.trainer
    # Starting workers would take longer than an image.
    trainer.args.dataloader_num_workers, trainer.args.dataloader_persistent_workers = 0, False
    number, dataset = trainer.args.world_size, trainer.eval_dataset
    examples = [dataset[index] for index in range(number)] if has_length(dataset) else list(islice(dataset, number))
    start = time.perf_counter()
    trainer.evaluate(examples)
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


def _expected_time(run: Run, eval_steps: float, step_seconds: float, image_seconds: float) -> list[str]:
    """How long the whole run takes."""
    num_steps, images = run.trainer.state.max_steps, run.trainer.eval_dataset
    lines = [f"  expected time   {num_steps} steps in {timedelta(seconds=round(num_steps * step_seconds))}"]
    if has_length(images):
        interval = (eval_steps if eval_steps >= 1 else eval_steps * num_steps) or num_steps
        times = 1 + int(num_steps // interval)
        seconds = times * len(images) / run.trainer.args.world_size * image_seconds
        lines.append(f"{'':18}and {times} evaluations of {len(images)} images in {timedelta(seconds=round(seconds))}")
    return lines


__all__ = ["dry_run", "missing_data", "missing_weights"]
