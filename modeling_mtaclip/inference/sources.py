# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What is predicted from the command line: image files, folders, globs and videos, image by image."""

import glob
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import open_image


IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}


@dataclass(frozen=True)
class Frame:
    """One image to predict.

    Attributes:
        name (`Path`): of its results, without suffix, relative to the output folder.
        source (`str`): names it in messages and results.
        read (`Callable[[], Image.Image]`): gives the upright RGB image; raises `ValueError` if it can't be decoded.
    """

    name: Path
    source: str
    read: Callable[[], Image.Image]


@dataclass(frozen=True)
class Source:
    """A file to predict.

    Attributes:
        path (`Path`): an image or a video.
        name (`Path`): where it lies below what was asked for, without suffix.
    """

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def frames(self) -> Iterator[Frame]:
        """The image, or the images of the video, from the first to the last.

        Raises:
            ValueError: a video that can't be decoded, or only in part.
        """
        if self.is_video:
            yield from _video_frames(self)
        else:
            yield Frame(self.name, str(self.path), self._read)

    def _read(self) -> Image.Image:
        return open_image(self.path)


def find_sources(inputs: Sequence[str], exclude: Path | None = None) -> list[Source]:
    """Finds the files that are meant, each once, in the order of their names.

    Args:
        inputs (`Sequence[str]`): images, videos, folders (with all images and videos below them) and globs (`**`
            stands for any folders). Files whose names begin with a dot are left out.
        exclude (`Path`, *optional*): a folder of which nothing is meant, that of the results.

    Raises:
        ValueError: an input that is or has no image or video, or files whose results would have the same name.
    """
    excluded = None if exclude is None else exclude.resolve()
    sources: dict[Path, Source] = {}
    for given in inputs:
        found = {source.path.resolve(): source for source in _expand(given)}
        found = {path: source for path, source in found.items() if excluded not in path.parents}
        if not found:
            raise ValueError(
                f"{given!r} is neither an image or video nor a folder or glob with some. Known suffixes: "
                f"{' '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))}."
            )
        for path, source in found.items():
            sources.setdefault(path, source)
    names: dict[Path, Source] = {}
    for source in sources.values():
        other = names.setdefault(source.name, source)
        if other is not source:
            raise ValueError(
                f"{other.path} and {source.path} would both be written as {source.name}. Give the folder that holds "
                "both, or a quoted glob, to keep their folders apart; or predict them into two folders."
            )
    return list(sources.values())


def _expand(given: str) -> list[Source]:
    path = Path(given)
    if path.is_file():
        return [Source(path, Path(path.stem))] if _is_known(path) else []
    if path.is_dir():
        root, paths = path, path.rglob("*")
    else:
        parts = path.parts
        fixed = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        root, paths = Path(*parts[:fixed]), map(Path, glob.glob(given, recursive=True))
    files = sorted(each for each in paths if _is_known(each) and each.is_file())
    return [Source(each, each.relative_to(root).with_suffix("")) for each in files]


def _is_known(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def _video_frames(source: Source) -> Iterator[Frame]:
    av = _import_av(source.path)
    number = -1
    try:
        with av.open(str(source.path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                name = source.name.with_name(f"{source.name.name}_{number:06d}")
                yield Frame(name, f"{source.path}, frame {number}", _reader(frame))
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"The video {source.path} can't be read beyond {number + 1} frames: {error}.") from error


def _reader(frame: Any) -> Callable[[], Image.Image]:
    def read() -> Image.Image:
        image = frame.to_image()
        return image.rotate(frame.rotation, expand=True) if frame.rotation else image

    return read


def _import_av(path: Path) -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ValueError(f"Reading the video {path} needs PyAV: pip install av.") from error


__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "Frame", "Source", "find_sources"]
