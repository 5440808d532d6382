# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Predicts any number of images into a folder, by one process or several, which can be stopped at any time.

Decoding, preparing and writing run in threads beside the model. An image whose results are there is passed over, and a
file that can't be read is reported and left out.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from .preparing import PreparedImage
from .results import ResultFormat
from .segmenter import Segmenter
from .sources import Frame, Source


@dataclass
class Share:
    """Which of the processes that share the work this one is.

    Attributes:
        rank, world_size (`int`): number of this process, and of all.
        local_rank (`int`): number of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Share":
        """Reads the variables that launchers set: `RANK`, `WORLD_SIZE` and `LOCAL_RANK`."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return cls(*(int(os.environ.get(name, default)) for name, default in zip(names, "010", strict=True)))


@dataclass
class Report:
    """What became of images.

    Attributes:
        predicted (`int`): images whose results were written.
        present (`int`): images whose results were there already.
        problems (`list[str]`): why images or videos were left out.
    """

    predicted: int = 0
    present: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class LoadedFrame:
    """A frame, its upright RGB image, and the image as the model reads it."""

    frame: Frame
    image: Image.Image
    prepared: PreparedImage


class Prediction:
    """Predicts images into a folder.

    Args:
        segmenter ([`Segmenter`]): the model and how it is used.
        formats (`Sequence[ResultFormat]`): what is written for each image.
        folder (`Path`): where to.
        overwrite (`bool`): whether results that are there are made again.
        num_threads (`int`): for decoding, preparing and writing.
        share ([`Share`], *optional*): of the images; all by default.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        formats: Sequence[ResultFormat],
        folder: Path,
        overwrite: bool = False,
        num_threads: int = 4,
        share: Share | None = None,
    ) -> None:
        self.segmenter, self.formats, self.folder = segmenter, list(formats), folder
        self.overwrite, self.num_threads, self.share = overwrite, num_threads, share or Share()
        self.batch_size = segmenter.options.batch_size
        self.report = Report()
        self.bar = tqdm(disable=True)

    def run(self, sources: Sequence[Source]) -> Report:
        """Predicts this process's share of the images, every `world_size`-th one.

        Args:
            sources (`Sequence[Source]`): the same on all processes.
        """
        self.report = Report()
        number = len(range(self.share.rank, len(sources), self.share.world_size))
        # The other processes have no bar; the first has one if it writes to a terminal.
        disable = True if self.share.rank else None
        pool = ThreadPoolExecutor(self.num_threads)
        with tqdm(total=number, desc="Predicting", unit="image", disable=disable) as self.bar:
            try:
                self._predict_all(sources, pool)
            finally:
                pool.shutdown(cancel_futures=True)
        return self.report

    def _predict_all(self, sources: Sequence[Source], pool: ThreadPoolExecutor) -> None:
        ahead = self.batch_size + self.num_threads
        loaded = self._readable(_in_threads(pool, self._load, self._own_frames(sources), ahead))
        writing: deque[Future] = deque()
        try:
            while batch := list(islice(loaded, self.batch_size)):
                maps = self.segmenter.predict([each.prepared for each in batch])
                writing.extend(
                    pool.submit(self._write, each, labels.cpu()) for each, labels in zip(batch, maps, strict=True)
                )
                self._finish(writing, ahead)
        finally:
            # What is predicted is written even if the run is interrupted.
            self._finish(writing, 0)

    def _own_frames(self, sources: Sequence[Source]) -> Iterator[Frame]:
        """The frames of this process whose results are not all there."""
        number = 0
        for source in sources:
            frames = source.frames()
            while True:
                own = number % self.share.world_size == self.share.rank
                try:
                    frame = next(frames, None)
                except ValueError as error:
                    if own:
                        self._leave_out(error)
                    break
                if frame is None:
                    break
                number += 1
                if own and self._missing(frame):
                    yield frame
                elif own:
                    self.report.present += 1
                    self.bar.update()

    def _missing(self, frame: Frame) -> list[ResultFormat]:
        """The formats in which the frame is yet to be written."""
        return [each for each in self.formats if self.overwrite or not (self.folder / each.path(frame.name)).exists()]

    def _load(self, frame: Frame) -> LoadedFrame:
        image = frame.read()
        return LoadedFrame(frame, image, self.segmenter.prepare(image))

    def _readable(self, loading: Iterable[Future]) -> Iterator[LoadedFrame]:
        for future in loading:
            try:
                yield future.result()
            except ValueError as error:
                self._leave_out(error)

    def _leave_out(self, error: ValueError) -> None:
        self.report.problems.append(str(error))
        self.bar.update()
        self.bar.write(f"Left out: {error}", file=sys.stderr)

    def _write(self, loaded: LoadedFrame, labels: Tensor) -> None:
        for each in self._missing(loaded.frame):
            each.save(self.folder, loaded.frame.name, loaded.frame.source, loaded.image, labels.numpy())

    def _finish(self, writing: deque[Future], remaining: int) -> None:
        """Waits until at most so many images are being written."""
        while len(writing) > remaining:
            writing.popleft().result()
            self.report.predicted += 1
            self.bar.update()


def _in_threads(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], values: Iterator[Any], ahead: int
) -> Iterator[Future]:
    """Calls a function in threads, at most `ahead` values before they are needed, and gives its results in order."""
    waiting = deque(pool.submit(function, value) for value in islice(values, ahead))
    while waiting:
        yield waiting.popleft()
        waiting.extend(pool.submit(function, value) for value in islice(values, 1))


__all__ = ["Prediction", "Report", "Share"]
