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
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import has_length

from ..data import DATASETS
from .arguments import DataArguments, ModelArguments, MTAClipTrainingArguments
from .run import Run, prepare_run


# A trial leaves nothing behind and prints nothing but its own report.
SILENT = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "no")
SILENT |= {"load_best_model_at_end": False, "push_to_hub": False, "report_to": []}
SILENT |= {"disable_tqdm": True, "resume_from_checkpoint": None}
WEIGHT_OPTIONS = ("model_name_or_path", "original_checkpoint", "mask2former", "text_encoder", "backbone_weights")
OPENAI = "https://openaipublic.azureedge.net/clip/models"
# Where to get what no program fetches for the user.
ADDRESSES = {
    "RN50.pt": f"{OPENAI}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101.pt": f"{OPENAI}/8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
}
# Files of which one is in the cache if a repository of the Hub has been downloaded.
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json")


class _StepTimer(TrainerCallback):
    """Notes when two steps end and with which learning rates, and stops the training after them."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.learning_rates: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        self.learning_rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())
        control.should_training_stop = len(self.times) > 2


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
    args, timer = training_arguments, _StepTimer()
    eval_steps = args.eval_steps if args.eval_strategy == "steps" else 0
    save_total_limit, output_dir = args.save_total_limit or 0, Path(args.output_dir)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (SILENT | {"output_dir": folder, "do_train": True, "do_eval": True}).items():
            setattr(args, name, value)
        run = prepare_run(model_arguments, data_arguments, args)
        run.trainer.add_callback(timer)
        run.trainer.pop_callback(PrinterCallback)
        loss = run.trainer.train().training_loss
        after_steps = _peak_memory(args.device)
        image_seconds = _evaluate_one(run)
    start, first, second = timer.times
    first_rate, second_rate = timer.learning_rates
    lines = [
        "\nDry run: two steps and one image",
        *_describe_inputs(run),
        _describe_checkpoints(run, save_total_limit + 1, output_dir),
        f"  two steps       {first - start:.2f} s and {second - first:.2f} s, mean loss {loss:.3f}",
        f"  learning rates  {first_rate:.3g} and {second_rate:.3g} at first, {args.learning_rate:.3g} after warm-up; "
        f"the backbone's is {args.backbone_lr_factor:g} of that",
        f"  one image       {image_seconds:.2f} s, mean IoU {run.trainer.scores.summary()['mean_iou']:.3f}",
        f"  peak memory     {after_steps} after the steps, {_peak_memory(args.device)} after the image",
        *_expected_time(run, eval_steps, second - first, image_seconds),
    ]
    report = "\n".join(lines)
    if run.trainer.is_world_process_zero():
        print(report)
    return report


def missing_weights(arguments: ModelArguments) -> Iterator[str]:
    """Lines about weights that are not on this machine, and how to get them."""
    sources = {option: getattr(arguments, option) for option in WEIGHT_OPTIONS}
    if sources["backbone_weights"] == "pretrained":
        sources["backbone_weights"] = arguments.backbone
    elif "/" in (arguments.backbone or ""):
        sources["backbone"] = arguments.backbone
    for option, source in sources.items():
        if source is None or Path(source).exists() or _is_package(source):
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

    return (timm.get_pretrained_cfg(name).hf_hub_id if timm.is_model(name) else None) or f"timm/{name}"


def _describe_inputs(run: Run) -> list[str]:
    """Parameters of each part, data and batch."""
    args, dataset = run.trainer.args, run.trainer.train_dataset
    counts = {True: Counter[str](), False: Counter[str]()}
    for name, parameter in run.trainer.model.named_parameters():
        counts[parameter.requires_grad][name.removeprefix("model.").split(".")[0]] += parameter.numel()
    trained, frozen = (counts[is_trained].total() / 1e6 for is_trained in (True, False))
    parts = [
        f"    {part:<20}{number / 1e6:.2f} M{'' if is_trained else ' (frozen)'}"
        for is_trained in (True, False)
        for part, number in counts[is_trained].items()
    ]
    images = f"{len(dataset)} images" if has_length(dataset) else "a stream of images"
    crops = " x ".join(str(side) for side in dataset.augmentation.crop_size)
    whole = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    return [
        f"  parameters      {trained:.2f} M trained, {frozen:.2f} M frozen",
        *parts,
        f"  data            {images}, {len(run.data.class_names)} classes, crops of {crops}",
        f"  batch           {whole} = {args.train_batch_size} per device x {args.world_size} processes x "
        f"{args.gradient_accumulation_steps} accumulated, on {args.device.type}",
    ]


def _describe_checkpoints(run: Run, number: int, output_dir: Path) -> str:
    """Whether so many checkpoints have room."""
    trained = sum(parameter.numel() for parameter in run.trainer.model.parameters() if parameter.requires_grad)
    weights = sum(value.numel() * value.element_size() for value in run.trainer.model.state_dict().values())
    # AdamW keeps two moments of each trained weight; an average of the weights is one more.
    size = (weights + 4 * trained * (3 if run.trainer.averages else 2)) / 2**20
    existing = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**20
    enough = "" if free > number * size else ": NOT ENOUGH"
    return (
        f"  checkpoint      {size:.0f} MiB each; {number} at once need {number * size:.0f} MiB, {free:.0f} MiB are "
        f"free{enough}"
    )


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


def _expected_time(run: Run, eval_steps: float, step_seconds: float, image_seconds: float) -> Iterator[str]:
    """How long the whole run takes."""
    num_steps, images = run.trainer.state.max_steps, run.trainer.eval_dataset
    yield f"  expected time   {num_steps} steps in {timedelta(seconds=round(num_steps * step_seconds))}"
    if has_length(images):
        interval = (eval_steps if eval_steps >= 1 else eval_steps * num_steps) or num_steps
        times = 1 + int(num_steps // interval)
        seconds = round(times * len(images) / run.trainer.args.world_size * image_seconds)
        yield f"{'':18}and {times} evaluations of {len(images)} images in {timedelta(seconds=seconds)}"


__all__ = ["dry_run", "missing_data", "missing_weights"]
