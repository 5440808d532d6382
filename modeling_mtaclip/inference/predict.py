# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Prediction from the command line: any number of images into a folder, by one process or several.

Decoding, preparing and writing run in threads beside the model. A run can be stopped at any time: an image is passed
over whose results are there, if they were made from the same image by the same model with the same options. Files that
can't be read are named and left out.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import distributed
from tqdm.auto import tqdm

from ..configuration_mtaclip import MTAClipConfig
from ..data import palette_of
from ..data.image_files import MAX_PIXELS
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from ..visualization import overlay
from .media import Frame, MediaFile, find_media, read_video, upright, write_video
from .options import MODES, STRIDE, WINDOW, InferenceOptions
from .result_formats import FORMATS, OtherResultError, Result
from .segmenter import PreparedImage, Segmenter


DTYPES = ("float32", "bfloat16", "float16")
# How long the first process to end waits for the last one.
PATIENCE = timedelta(days=30)
# In the name of a video's frame, before a format's ending.
FRAME_NUMBER = re.compile(r"_\d{6,}(?=[a-z_.]*$)")
DONE, SOME_LEFT_OUT, BAD_OPTIONS, NOT_WRITTEN, INTERRUPTED = 0, 1, 2, 3, 130

Writer = Callable[[np.ndarray], None]


def predict(arguments: Sequence[str]) -> int:
    """Predicts images into a folder, as the options say; `--help` explains them.

    Args:
        arguments (`Sequence[str]`): of the command line, without the program's name.

    Returns:
        `int`: exit status: 0 if all images were predicted, now or before; 1 if some were left out; 2 for options that
        can't be used; 3 if results can't be written; 130 if it was interrupted.
    """
    options = make_parser().parse_args(arguments)
    rank, world_size = (int(os.environ.get(name, number)) for name, number in (("RANK", 0), ("WORLD_SIZE", 1)))
    connected = world_size > 1 and "MASTER_ADDR" in os.environ
    try:
        prediction = Prediction(options, rank, world_size)
        if connected:
            distributed.init_process_group("gloo", timeout=PATIENCE)
        prediction.run()
        if connected:
            prediction.add_other_processes()
        if rank == 0:
            prediction.write_videos()
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OtherResultError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return BAD_OPTIONS
    except OSError as error:
        print(
            f"predict.py: Results can't be written into {options.output_dir}: {error}. Make room or choose another "
            "--output_dir; the same command goes on from here.",
            file=sys.stderr,
        )
        return NOT_WRITTEN
    if rank == 0 or not connected:
        if prediction.no_input:
            print(f"Files that are no input: {prediction.no_input}.")
        print(
            f"{prediction.predicted} images predicted, {prediction.present} were there already, "
            f"{len(prediction.problems)} left out. Results: {options.output_dir}"
        )
    return SOME_LEFT_OUT if prediction.problems else DONE


def make_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description="Segments images, folders of images, globs or videos. A run that was interrupted goes on with the "
        "same command. Several processes (torchrun, accelerate launch) share the images.",
        epilog="Exit status: 0 if all images were predicted, 1 if some were left out, 2 for unusable options, 3 if "
        "results can't be written, 130 if it was interrupted.",
    )
    parser.add_argument("inputs", nargs="+", help="images, videos, folders (searched in depth), globs in quotes")
    parser.add_argument("--model_name_or_path", required=True, help="folder or Hub id of a trained model")
    parser.add_argument("--output_dir", type=Path, default=Path("predictions"), help="default: %(default)s")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=[*FORMATS, "video"],
        default=["index"],
        help="index: PNG of class ids; overlay: image with colors and legend; json: areas of the classes; cityscapes, "
        "ade20k: what the benchmark's server expects; video: of a video, its overlay as a video, and index",
    )
    parser.add_argument("--inference_mode", choices=MODES, default="whole", help="default: %(default)s")
    parser.add_argument("--window", type=int, nargs="+", default=WINDOW, help="height and width; default: 512 512")
    parser.add_argument("--stride", type=int, nargs="+", default=STRIDE, help="down and right; default: 341 341")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: scales 0.5 to 1.75, mirrored")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: an accelerator if there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model; default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=1, help="images or windows of one size that are one batch")
    parser.add_argument("--num_threads", type=int, default=4, help="that read, prepare and write; default: 4")
    parser.add_argument(
        "--max_pixels", type=int, default=MAX_PIXELS, help="larger images are left out; 0: none; default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="overwrite existing results")
    return parser


class Prediction:
    """One run of the command line, by the process `rank` of `world_size` that share the files.

    Attributes:
        predicted, present (`int`): images whose results were written, and whose were there already.
        problems (`list[str]`): why images or videos were left out.
        no_input (`str`): how many files are no input, and why.
    """

    def __init__(self, options: argparse.Namespace, rank: int, world_size: int) -> None:
        if options.num_threads < 1 or options.max_pixels < 0:
            raise ValueError(
                f"--num_threads must be positive, got {options.num_threads}, and --max_pixels not negative, got "
                f"{options.max_pixels}."
            )
        self.options, self.rank, self.world_size = options, rank, world_size
        self.files, self.no_input = find_media(options.inputs, options.output_dir)
        inference = InferenceOptions.from_arguments(
            options.inference_mode, options.window, options.stride, options.tta, options.batch_size
        )
        device = _device(options.device)
        model, processor = load_model(options.model_name_or_path, getattr(torch, options.dtype))
        self.class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        # Videos are made from the index maps of their frames.
        self.formats = dict.fromkeys("index" if name == "video" else name for name in options.format)
        for name in self.formats:
            FORMATS[name].check(self.class_names)
        self.videos = [file for file in self.files if file.is_video] if "video" in options.format else []
        self._check_paths()
        self.maker = _hash_of_maker(model, processor, inference)
        self.segmenter = Segmenter(model.to(device), processor, inference)
        self.predicted, self.present, self.problems = 0, 0, []

    def _check_paths(self) -> None:
        """Refuses results of two inputs, or in two formats, with one name, and results in the place of an input."""
        inputs, owners = {_place(file.path) for file in self.files}, {}
        for file in sorted(self.files, key=lambda each: not each.is_video):
            # The first frame stands for all frames of a video, whatever their numbers.
            paths = self._paths(file.name_of_frame(0) if file.is_video else file.name)
            if len(set(paths)) < len(paths):
                raise ValueError(
                    "Some of the formats use the same file names: write 'index', 'cityscapes' and 'ade20k' into "
                    "folders of their own."
                )
            for path in [*paths, *([file.overlay_name] if file in self.videos else [])]:
                if _place(self.options.output_dir / path) in inputs:
                    raise ValueError(f"{self.options.output_dir / path} is an input: choose another --output_dir.")
                owner = owners.setdefault(_place(path), file)
                video = owners.get(_place(FRAME_NUMBER.sub("_000000", str(path))))
                other = video if video and video.is_video else owner
                if other is not file:
                    raise ValueError(
                        f"{other.path} and {file.path} would both be written as {path}. Give the folder that holds "
                        "both, or a quoted glob, to keep their folders apart; or predict them into two folders."
                    )

    def _paths(self, name: Path) -> list[Path]:
        return [FORMATS[each].path(name) for each in self.formats]

    def run(self) -> None:
        """Predicts this process's share of the images, every `world_size`-th one; no thread is left when it ends."""
        total = len(range(self.rank, len(self.files), self.world_size))
        # The other processes have no bar; the first has one if it writes to a terminal.
        with (
            tqdm(total=total, desc="Predicting", unit="image", disable=True if self.rank else None) as self.bar,
            ThreadPoolExecutor(self.options.num_threads) as self.pool,
        ):
            for written in self._ahead(self._predicted(), self.options.num_threads):
                written.result()
                self.predicted += 1
                self.bar.update()

    def _ahead(self, calls: Iterable[tuple], number: int) -> Iterator[Future]:
        """Makes calls (function, argument) in threads, up to so many ahead of their use; in order."""
        running: deque[Future] = deque()
        for call in calls:
            running.append(self.pool.submit(*call))
            if len(running) > number:
                yield running.popleft()
        yield from running

    def _predicted(self) -> Iterator[tuple[Writer, np.ndarray]]:
        loaded = self._loaded()
        while batch := list(islice(loaded, self.options.batch_size)):
            maps = self.segmenter.predict([prepared for prepared, _ in batch])
            for (_, writer), labels in zip(batch, maps, strict=True):
                yield writer, labels.cpu().numpy()

    def _loaded(self) -> Iterator[tuple[PreparedImage, Writer]]:
        """The images whose results are missing, in order, and what writes these."""
        calls = ((self._load, frame) for frame in self._own_frames())
        for call in self._ahead(calls, self.options.batch_size + self.options.num_threads):
            try:
                loaded = call.result()
            except ValueError as error:
                self._leave_out(error)
                continue
            if loaded is not None:
                yield loaded
            else:
                self.present += 1
                self.bar.update()

    def _own_frames(self) -> Iterator[Frame]:
        number = 0
        for file in self.files:
            try:
                for frame in file.frames(self.options.max_pixels):
                    if number % self.world_size == self.rank:
                        yield frame
                    number += 1
            except ValueError as error:
                if number % self.world_size == self.rank:
                    self._leave_out(error)

    def _load(self, frame: Frame) -> tuple[PreparedImage, Writer] | None:
        content, paths = frame.content(), self._paths(frame.name)
        results = {name: self._result(path, name, content) for name, path in zip(self.formats, paths, strict=True)}
        missing = {name: result for name, result in results.items() if self._is_missing(result)}
        if not missing:
            return None
        image = frame.read()
        return self.segmenter.prepare(image), partial(self._write_results, missing, frame.source, image)

    def _write_results(self, results: dict[str, Result], source: str, image: Image.Image, labels: np.ndarray) -> None:
        for name, result in results.items():
            FORMATS[name].write(result, source, image, self.class_names, labels)

    def _result(self, path: Path, kind: str, content: str) -> Result:
        made_of = f"{self.maker} {kind} {content}"
        return Result(self.options.output_dir / path, hashlib.sha256(made_of.encode()).hexdigest())

    def _is_missing(self, result: Result) -> bool:
        return self.options.overwrite or not result.is_there()

    def _leave_out(self, error: ValueError) -> None:
        self.problems.append(str(error))
        self.bar.update()
        self.bar.write(f"Left out: {error}", file=sys.stderr)

    def add_other_processes(self) -> None:
        """Waits for the other processes, and adds what became of their images."""
        reports = [(0, 0, [])] * self.world_size
        distributed.all_gather_object(reports, (self.predicted, self.present, self.problems))
        distributed.destroy_process_group()
        self.predicted, self.present = (sum(each[index] for each in reports) for index in (0, 1))
        self.problems = [problem for _, _, problems in reports for problem in problems]

    def write_videos(self) -> None:
        """Writes an overlay of each video, if that was asked for, from its frames' label maps."""
        for file in self.videos:
            try:
                result = self._result(file.overlay_name, "video", file.content())
                if self._is_missing(result):
                    with result.written() as path:
                        write_video(path, self._overlays(file), file.path, f"fingerprint {result.fingerprint}")
            except ValueError as error:
                self._leave_out(error)

    def _overlays(self, file: MediaFile) -> Iterator[Image.Image]:
        palette = palette_of(self.class_names)
        for number, frame in enumerate(read_video(file.path)):
            path = self.options.output_dir / FORMATS["index"].path(file.name_of_frame(number))
            if not path.exists():
                raise ValueError(f"{path} is missing for the video of {file.path}: give the same command again.")
            with Image.open(path) as labels:
                yield overlay(upright(frame), np.array(labels), palette, ignore_index=-1)


def _device(name: str | None) -> torch.device:
    if name is not None:
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"The device {name!r} can't be used: {error}") from error
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


def load_model(name_or_path: str, dtype: torch.dtype) -> tuple[MTAClipForSemanticSegmentation, MTAClipImageProcessor]:
    """Loads a model and its image processor from a folder or the Hub; what can't be loaded is a `ValueError`."""
    try:
        kind = MTAClipConfig.get_config_dict(name_or_path)[0].get("model_type")
        if kind != MTAClipConfig.model_type:
            raise OSError(f"its `model_type` is {kind!r}")
        model = MTAClipForSemanticSegmentation.from_pretrained(name_or_path, dtype=dtype)
        return model, MTAClipImageProcessor.from_pretrained(name_or_path)
    except (OSError, TypeError) as error:
        raise ValueError(f"No MTA-CLIP model could be loaded from {name_or_path!r}: {error}") from error


def _hash_of_maker(
    model: MTAClipForSemanticSegmentation, processor: MTAClipImageProcessor, options: InferenceOptions
) -> str:
    """Of all on which label maps depend, besides the image."""
    config = model.config.to_dict() | {"_name_or_path": "", "transformers_version": ""}
    settings = [config, str(model.dtype), processor.to_dict(), options.mode, options.scales, options.flip]
    settings += [options.window, options.stride] if options.mode == "slide" else []
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _place(path: Path) -> str:
    """Equal for paths that are the same file on some file system, which may fold case and accents."""
    return unicodedata.normalize("NFC", os.path.abspath(path)).casefold()


__all__ = ["Prediction", "load_model", "make_parser", "predict"]
