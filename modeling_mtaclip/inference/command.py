# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line of prediction: its options, the loading of the model, and what the exit status says."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from .options import MODES, STRIDE, WINDOW, InferenceOptions
from .prediction import Prediction, Report, Share
from .results import FORMATS, ResultFormat
from .segmenter import Segmenter
from .sources import Source, find_sources


DTYPES = ("float32", "bfloat16", "float16")
SETTINGS_FILE = ".predict.json"
# How long the first process to end waits for the last one.
PATIENCE = timedelta(days=30)

DONE, SOME_LEFT_OUT, BAD_OPTIONS, INTERRUPTED = 0, 1, 2, 130


def predict(arguments: Sequence[str]) -> int:
    """Predicts images into a folder, as the options say; `--help` explains them.

    Args:
        arguments (`Sequence[str]`): of the command line, without the program's name.

    Returns:
        `int`: exit status: 0 if all images were predicted, now or before; 1 if some could not be read; 2 for options
        that can't be used; 130 if it was interrupted.
    """
    options = make_parser().parse_args(arguments)
    share = Share.from_environment()
    try:
        prediction, sources = prepare_prediction(options, share)
    except ValueError as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return BAD_OPTIONS
    connected = share.world_size > 1 and "MASTER_ADDR" in os.environ
    if connected:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        report = prediction.run(sources)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    if connected:
        report = _sum_of_all(report)
        distributed.destroy_process_group()
    if share.rank == 0 or not connected:
        print(
            f"{report.predicted} images predicted, {report.present} were there already, {len(report.problems)} left "
            f"out. Results: {options.output_dir}"
        )
    return SOME_LEFT_OUT if report.problems else DONE


def make_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description="Segments images, folders of images, globs or videos. A run that was interrupted goes on with the "
        "same command. Several processes (torchrun, accelerate launch) share the images.",
        epilog="Exit status: 0 if all images were predicted, 1 if some could not be read, 2 for unusable options, 130 "
        "if it was interrupted.",
    )
    parser.add_argument("inputs", nargs="+", help="images, videos, folders (searched in depth), globs in quotes")
    parser.add_argument("--model", required=True, help="folder or Hub id of a trained model")
    parser.add_argument("--output_dir", type=Path, default=Path("predictions"), help="default: %(default)s")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["index"],
        help="index: PNG of class ids; overlay: image with colours and legend; json: areas of the classes; "
        "cityscapes, ade20k: what the benchmark's server expects; default: index",
    )
    parser.add_argument(
        "--mode", choices=MODES, default="whole", help="whole images or sliding windows; default: whole"
    )
    parser.add_argument("--window", type=int, nargs="+", default=WINDOW, help="height and width; default: 512 512")
    parser.add_argument("--stride", type=int, nargs="+", default=STRIDE, help="down and right; default: 341 341")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: scales 0.5 to 1.75, mirrored")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: an accelerator if there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model; default: %(default)s")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="images or windows in a forward pass, of one size; default: 1"
    )
    parser.add_argument(
        "--num_threads", type=int, default=4, help="that read, prepare and write images; default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="make results anew that are there already")
    return parser


def prepare_prediction(options: argparse.Namespace, share: Share) -> tuple[Prediction, list[Source]]:
    """Finds the images and loads the model.

    Args:
        options (`argparse.Namespace`): of [`make_parser`].
        share ([`Share`]): of the images.

    Raises:
        ValueError: options, inputs or a model that can't be used, or a folder with other predictions.
    """
    if options.num_threads < 1:
        raise ValueError(f"--num_threads must be positive, got {options.num_threads}.")
    inference = InferenceOptions.from_arguments(
        options.mode, options.window, options.stride, options.tta, options.batch_size
    )
    sources = find_sources(options.inputs, exclude=options.output_dir)
    device = _device(options.device, share)
    model, processor = _load_model(options.model, getattr(torch, options.dtype))
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    formats = [FORMATS[name](names) for name in dict.fromkeys(options.format)]
    _check_names(formats, sources)
    _claim_folder(options.output_dir, _settings(options, inference), options.overwrite, share)
    segmenter = Segmenter(model.to(device), processor, inference)
    prediction = Prediction(segmenter, formats, options.output_dir, options.overwrite, options.num_threads, share)
    return prediction, sources


def _device(name: str | None, share: Share) -> torch.device:
    if name is not None:
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"The device {name!r} can't be used: {error}") from error
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    return torch.device(kind, share.local_rank % torch.accelerator.device_count())


def _load_model(name_or_path: str, dtype: torch.dtype) -> tuple[MTAClipForSemanticSegmentation, MTAClipImageProcessor]:
    try:
        model = MTAClipForSemanticSegmentation.from_pretrained(name_or_path, dtype=dtype)
        return model, MTAClipImageProcessor.from_pretrained(name_or_path)
    except (OSError, TypeError) as error:
        raise ValueError(f"No MTA-CLIP model could be loaded from {name_or_path!r}: {error}") from error


def _check_names(formats: Sequence[ResultFormat], sources: Sequence[Source]) -> None:
    for source in sources:
        paths = [each.path(source.name) for each in formats]
        if len(set(paths)) < len(paths):
            raise ValueError(
                "Some of the formats use the same file names: write 'index', 'cityscapes' and 'ade20k' into folders "
                "of their own."
            )


def _settings(options: argparse.Namespace, inference: InferenceOptions) -> dict[str, str]:
    """What predictions in one folder must have in common."""
    names = ("mode", "scales", "flip", *(("window", "stride") if inference.mode == "slide" else ()))
    first_id = 1 if "ade20k" in options.format else 0
    settings = {"model": options.model, "dtype": options.dtype, "first class id": first_id}
    return {name: str(value) for name, value in settings.items()} | {
        name: str(getattr(inference, name)) for name in names
    }


def _claim_folder(folder: Path, settings: dict[str, str], overwrite: bool, share: Share) -> None:
    """Keeps predictions that are made in another way out of a folder with predictions."""
    path = folder / SETTINGS_FILE
    if path.is_file() and not overwrite:
        earlier = json.loads(path.read_text())
        changed = sorted(name for name in earlier | settings if earlier.get(name) != settings.get(name))
        if changed:
            listed = ", ".join(f"{name} {earlier.get(name)} instead of {settings.get(name)}" for name in changed)
            raise ValueError(
                f"{folder} holds predictions that were made with {listed}. Choose another --output_dir, or "
                "--overwrite them."
            )
    elif share.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{SETTINGS_FILE}.partial")
        partial.write_text(json.dumps(settings, indent=2))
        partial.replace(path)


def _sum_of_all(report: Report) -> Report:
    reports: list[Report] = [report] * distributed.get_world_size()
    distributed.all_gather_object(reports, report)
    return Report(
        sum(each.predicted for each in reports),
        sum(each.present for each in reports),
        [problem for each in reports for problem in each.problems],
    )


__all__ = ["make_parser", "predict", "prepare_prediction"]
