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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, distributed
from tqdm.auto import tqdm

from ..data import palette_of
from ..data.image_files import MAX_PIXELS
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from ..visualization import overlay
from .media import Frame, MediaFile, comment_of_video, find_media, read_video, upright, write_video
from .options import MODES, STRIDE, WINDOW, InferenceOptions
from .result_formats import FORMATS, ResultFormat, fingerprint_of
from .segmenter import PreparedImage, Segmenter


DTYPES = ("float32", "bfloat16", "float16")
# How long the first process to end waits for the last one.
PATIENCE = timedelta(days=30)
DONE, SOME_LEFT_OUT, BAD_OPTIONS, NOT_WRITTEN, INTERRUPTED = 0, 1, 2, 3, 130


class OtherMakerError(ValueError):
    """A result is there already that another model or other options made."""


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
        files, no_input = find_media(options.inputs, options.output_dir, options.max_pixels or None)
        prediction = Prediction(options, files, rank, world_size)
        if connected:
            distributed.init_process_group("gloo", timeout=PATIENCE)
        prediction.run()
        if connected:
            prediction.add_other_processes()
        if rank == 0 and "video" in options.format:
            prediction.write_videos()
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
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
        if no_input:
            print(
                f"Files that are no input: {', '.join(f'{number} {reason}' for reason, number in no_input.items())}."
            )
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


@dataclass
class LoadedFrame:
    """An image as it is and as the model reads it, what it is called, and its results to write with fingerprints."""

    source: str
    missing: list[tuple[ResultFormat, Path, str]]
    image: Image.Image
    prepared: PreparedImage


class Prediction:
    """One run of the command line.

    Args:
        options (`argparse.Namespace`): of [`make_parser`].
        files (`Sequence[MediaFile]`): what is predicted, the same on all processes.
        rank, world_size (`int`): which of the processes that share the images this is.

    Attributes:
        predicted, present (`int`): images whose results were written, and whose were there already.
        problems (`list[str]`): why images or videos were left out.

    Raises:
        ValueError: options or a model that can't be used, or results that would take the place of others or of inputs.
    """

    def __init__(self, options: argparse.Namespace, files: Sequence[MediaFile], rank: int, world_size: int) -> None:
        if options.num_threads < 1 or options.max_pixels < 0:
            raise ValueError(
                f"--num_threads must be positive, got {options.num_threads}, and --max_pixels not negative, got "
                f"{options.max_pixels}."
            )
        self.files, self.folder, self.overwrite = files, options.output_dir, options.overwrite
        self.rank, self.world_size, self.num_threads = rank, world_size, options.num_threads
        inference = InferenceOptions.from_arguments(
            options.inference_mode, options.window, options.stride, options.tta, options.batch_size
        )
        device = _device(options.device)
        model, processor = _load_model(options.model_name_or_path, getattr(torch, options.dtype))
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.formats = [FORMATS[each](names) for each in dict.fromkeys(options.format) if each != "video"]
        if "video" in options.format and "index" not in options.format:
            self.formats.append(FORMATS["index"](names))
        _check_paths(self.formats, files, self.folder)
        self.maker = _hash_of_maker(model, processor, inference)
        self.segmenter = Segmenter(model.to(device), processor, inference)
        self.predicted, self.present, self.problems = 0, 0, []

    def run(self) -> None:
        """Predicts this process's share of the images, every `world_size`-th one.

        Raises:
            ValueError: results of another model or other options are there already.
            OSError: results can't be written.
        """
        total = len(range(self.rank, len(self.files), self.world_size))
        frames, batch_size = self._own_frames(), self.segmenter.options.batch_size
        loading: deque[list[Future]] = deque()
        writing: deque[Future] = deque()
        # The other processes have no bar; the first has one if it writes to a terminal.
        self.bar = tqdm(total=total, desc="Predicting", unit="image", disable=True if self.rank else None)
        pool = ThreadPoolExecutor(self.num_threads)
        batches_ahead = 1 + self.num_threads // batch_size
        try:
            while True:
                while len(loading) <= batches_ahead and (batch := list(islice(frames, batch_size))):
                    loading.append([pool.submit(self._load, frame) for frame in batch])
                if not loading:
                    break
                loaded = self._readable(loading.popleft())
                maps = self.segmenter.predict([each.prepared for each in loaded])
                writing.extend(map(partial(pool.submit, self._write), loaded, [labels.cpu() for labels in maps]))
                self._finish(writing, self.num_threads)
        finally:
            # What is predicted is written even if the run is interrupted.
            self._finish(writing, 0)
            pool.shutdown(cancel_futures=True)
            self.bar.close()

    def _own_frames(self) -> Iterator[Frame]:
        number = 0
        for file in self.files:
            frames = file.frames()
            while True:
                own = number % self.world_size == self.rank
                try:
                    frame = next(frames, None)
                except ValueError as error:
                    if own:
                        self._leave_out(error)
                    break
                if frame is None:
                    break
                number += 1
                if own:
                    yield frame

    def _load(self, frame: Frame) -> LoadedFrame | None:
        missing, content = [], frame.content()
        for each in self.formats:
            path = self.folder / each.path(frame.name)
            fingerprint = self._fingerprint(type(each).__name__, content)
            if self._must_write(path, fingerprint, fingerprint_of):
                missing.append((each, path, fingerprint))
        if not missing:
            return None
        image = frame.read()
        return LoadedFrame(frame.source, missing, image, self.segmenter.prepare(image))

    def _fingerprint(self, kind: str, content: str) -> str:
        """Of a result of some format: its maker and its input."""
        return f"{hashlib.sha256(f'{self.maker} {kind}'.encode()).hexdigest()[:32]}:{content}"

    def _must_write(self, path: Path, fingerprint: str, read: Callable[[Path], str | None]) -> bool:
        """Whether a result is missing; one that is there counts only if model, options and input are the same."""
        if self.overwrite or not path.exists():
            return True
        found = read(path)
        if found is None or found.split(":")[0] != fingerprint.split(":")[0]:
            raise OtherMakerError(
                f"{path} is there already, and was not made by this model with these options. Choose another "
                "--output_dir, or --overwrite existing results."
            )
        if found != fingerprint:
            raise ValueError(
                f"{path} is there already, and was made from another input. Choose another --output_dir, or "
                "--overwrite existing results."
            )
        return False

    def _readable(self, loading: list[Future]) -> list[LoadedFrame]:
        loaded = []
        for future in loading:
            try:
                frame = future.result()
            except OtherMakerError:
                raise
            except ValueError as error:
                self._leave_out(error)
                continue
            if frame is None:
                self.present += 1
                self.bar.update()
            else:
                loaded.append(frame)
        return loaded

    def _leave_out(self, error: ValueError) -> None:
        self.problems.append(str(error))
        self.bar.update()
        self.bar.write(f"Left out: {error}", file=sys.stderr)

    def _write(self, loaded: LoadedFrame, labels: Tensor) -> None:
        for each, path, fingerprint in loaded.missing:
            each.save(path, loaded.source, loaded.image, labels.numpy(), fingerprint)

    def _finish(self, writing: deque[Future], remaining: int) -> None:
        """Waits until at most so many images are being written."""
        while len(writing) > remaining:
            writing.popleft().result()
            self.predicted += 1
            self.bar.update()

    def add_other_processes(self) -> None:
        """Waits for the other processes, and adds what became of their images."""
        reports = [(0, 0, [])] * self.world_size
        distributed.all_gather_object(reports, (self.predicted, self.present, self.problems))
        distributed.destroy_process_group()
        self.predicted, self.present = (sum(each[index] for each in reports) for index in (0, 1))
        self.problems = [problem for _, _, problems in reports for problem in problems]

    def write_videos(self) -> None:
        """Writes an overlay of each video, from its frames' label maps; those whose frames are not there are left out.

        Raises:
            ValueError: results of another model or other options are there already.
            OSError: results can't be written.
        """
        for file in self.files:
            path = self.folder / file.name.with_name(f"{file.name.name}_overlay.mp4")
            try:
                if file.is_video:
                    fingerprint = self._fingerprint("video", file.content())
                    if self._must_write(path, fingerprint, comment_of_video):
                        write_video(path, self._overlays(file), file.path, fingerprint)
            except OtherMakerError:
                raise
            except ValueError as error:
                self._leave_out(error)

    def _overlays(self, file: MediaFile) -> Iterator[Image.Image]:
        palette = palette_of(self.formats[0].class_names)
        for number, frame in enumerate(read_video(file.path)):
            path = self.folder / file.name.with_name(f"{file.name.name}_{number:06d}.png")
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


def _load_model(name_or_path: str, dtype: torch.dtype) -> tuple[MTAClipForSemanticSegmentation, MTAClipImageProcessor]:
    try:
        model = MTAClipForSemanticSegmentation.from_pretrained(name_or_path, dtype=dtype)
        return model, MTAClipImageProcessor.from_pretrained(name_or_path)
    except (OSError, TypeError) as error:
        raise ValueError(f"No MTA-CLIP model could be loaded from {name_or_path!r}: {error}") from error


def _hash_of_maker(
    model: MTAClipForSemanticSegmentation, processor: MTAClipImageProcessor, options: InferenceOptions
) -> str:
    """Of all on which label maps depend, besides the image."""
    settings = (str(model.dtype), processor.to_dict(), options.mode, options.scales, options.flip)
    settings += (options.window, options.stride) if options.mode == "slide" else ()
    labels = model.config.id2label
    digest = hashlib.sha256(json.dumps([*settings, labels], sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_paths(formats: Sequence[ResultFormat], files: Sequence[MediaFile], folder: Path) -> None:
    """Refuses results of two inputs, or in two formats, with one name, and results in the place of an input."""
    inputs, owners = {_place(file.path) for file in files}, {}
    for file in sorted(files, key=lambda each: not each.is_video):
        # The first frame stands for all frames of a video.
        name = file.name.with_name(f"{file.name.name}_000000") if file.is_video else file.name
        like_a_frame = name.with_name(re.sub(r"_\d{6,}$", "_000000", name.name))
        if len({each.path(name) for each in formats}) < len(formats):
            raise ValueError(
                "Some of the formats use the same file names: write 'index', 'cityscapes' and 'ade20k' into folders "
                "of their own."
            )
        for each in formats:
            if _place(folder / each.path(name)) in inputs:
                raise ValueError(f"{folder / each.path(name)} is an input: choose another --output_dir.")
            owner = owners.setdefault(_place(each.path(name)), file)
            video = owners.get(_place(each.path(like_a_frame)))
            other = video if video is not None and video.is_video else owner
            if other is not file:
                raise ValueError(
                    f"{other.path} and {file.path} would both be written as {each.path(name)}. Give the folder that "
                    "holds both, or a quoted glob, to keep their folders apart; or predict them into two folders."
                )


def _place(path: Path) -> str:
    """Equal for paths that are the same file on some file system, which may fold case and accents."""
    return unicodedata.normalize("NFC", os.path.abspath(path)).casefold()


__all__ = ["Prediction", "make_parser", "predict"]
