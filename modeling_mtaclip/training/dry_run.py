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
SILENT |= {"load_best_model_at_end": False, "push_to_hub": False, "report_to": [], "disable_tqdm": True}
SILENT |= {"resume_from_checkpoint": None, "do_train": True, "do_eval": True}
WEIGHT_OPTIONS = ("model_name_or_path", "original_checkpoint", "mask2former", "text_encoder", "backbone_weights")
OPENAI = "https://openaipublic.azureedge.net/clip/models"
# Where to get what no program fetches for the user.
ADDRESSES = {
    "RN50.pt": f"{OPENAI}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101.pt": f"{OPENAI}/8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
}
# Files of which one is in the cache if a repository of the Hub has been downloaded.
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json")


class _TwoSteps(TrainerCallback):
    """Notes when the training starts and when two steps end, and stops it then."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())
        control.should_training_stop = len(self.times) > 2


def dry_run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: MTAClipTrainingArguments
) -> str:
    """Tries a run and returns the report, as printed. What is not on this machine is a `ValueError`, named."""
    missing = [*missing_weights(model_arguments), *missing_data(data_arguments)]
    if missing:
        raise ValueError("This run needs what is not on this machine:\n" + "\n".join(missing))
    args, steps = training_arguments, _TwoSteps()
    num_checkpoints, output_dir = (args.save_total_limit or 0) + 1, Path(args.output_dir)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (SILENT | {"output_dir": folder}).items():
            setattr(args, name, value)
        run = prepare_run(model_arguments, data_arguments, args)
        run.trainer.add_callback(steps)
        run.trainer.pop_callback(PrinterCallback)
        loss = run.trainer.train().training_loss
        peak_memory = _peak_memory(args.device)
        image_seconds = _evaluate_one(run)
    start, first, second = steps.times
    rows = [
        *_describe_inputs(run),
        ("checkpoint", _describe_checkpoints(run, num_checkpoints, output_dir)),
        ("two steps", f"{first - start:.2f} s and {second - first:.2f} s, mean loss {loss:.3f}"),
        ("peak memory", f"{peak_memory} after two steps"),
        ("one image", f"{image_seconds:.2f} s, mean IoU {run.trainer.scores.summary()['mean_iou']:.3f}"),
        ("expected time", _expected_time(run, second - first, image_seconds)),
    ]
    report = "\n".join(["\nDry run: two steps and one image", *(f"  {title:<20}{text}" for title, text in rows)])
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


def _describe_inputs(run: Run) -> Iterator[tuple[str, str]]:
    """Parameters of each part, data and batch."""
    args, dataset, counts = run.trainer.args, run.trainer.train_dataset, Counter[tuple[str, str]]()
    for name, parameter in run.trainer.model.named_parameters():
        part = name.removeprefix("model.").split(".")[0]
        counts[part, "trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    totals = [sum(counts[part, kind] for part, kind in counts if kind == wanted) for wanted in ("trained", "frozen")]
    yield "parameters", f"{totals[0] / 1e6:.2f} M trained, {totals[1] / 1e6:.2f} M frozen"
    for (part, kind), number in counts.items():
        yield f"  {part}", f"{number / 1e6:.2f} M {kind}"
    images = f"{len(dataset)} images" if has_length(dataset) else "a stream of images"
    height, width = dataset.augmentation.crop_size
    yield "data", f"{images}, {len(run.data.class_names)} classes, crops of {height} x {width}"
    device, processes, accumulated = args.train_batch_size, args.world_size, args.gradient_accumulation_steps
    parts = f"{device} per device x {processes} processes x {accumulated} accumulated, on {args.device.type}"
    yield "batch", f"{device * processes * accumulated} = {parts}"


def _describe_checkpoints(run: Run, number: int, output_dir: Path) -> str:
    """Whether so many checkpoints have room."""
    trained = sum(parameter.numel() for parameter in run.trainer.model.parameters() if parameter.requires_grad)
    weights = sum(value.nbytes for value in run.trainer.model.state_dict().values())
    # AdamW keeps two moments of each trained weight; an average of the weights is one more.
    size = (weights + 4 * trained * (3 if run.trainer.averages else 2)) / 2**20
    existing = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**20
    enough = "" if free > number * size else ": NOT ENOUGH"
    return f"{size:.0f} MiB each; {number} at once need {number * size:.0f} MiB, {free:.0f} MiB are free{enough}"


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


def _expected_time(run: Run, step_seconds: float, image_seconds: float) -> str:
    num_steps, images = run.trainer.state.max_steps, run.trainer.eval_dataset
    expected = f"{num_steps} steps in {timedelta(seconds=round(num_steps * step_seconds))}"
    if has_length(images):
        seconds = round(len(images) / run.trainer.args.world_size * image_seconds)
        expected += f", each evaluation of {len(images)} images {timedelta(seconds=seconds)}"
    return expected


__all__ = ["dry_run", "missing_data", "missing_weights"]
