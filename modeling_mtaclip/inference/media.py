# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Image and video files: which of them are meant, how they are read frame by frame, and how a video is written."""

import glob
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.image_files import MAX_PIXELS, find_image_files, name_without_suffix, open_image
from .result_formats import fingerprint_of


VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"))


@dataclass(frozen=True)
class Frame:
    """One image to predict.

    Attributes:
        name (`Path`): of its results, without suffix, relative to the output folder.
        source (`str`): names it in messages and results.
        content (`Callable[[], str]`): gives a hash of the file, and of the frame in it; raises `ValueError`.
        read (`Callable[[], Image.Image]`): gives the upright RGB image; raises `ValueError` if it can't be read.
    """

    name: Path
    source: str
    content: Callable[[], str]
    read: Callable[[], Image.Image]


@dataclass(frozen=True)
class MediaFile:
    """A file to predict.

    Attributes:
        path (`Path`): an image or a video.
        name (`Path`): where it lies below what was asked for, without suffix.
        max_pixels (`int`, *optional*): larger images are refused; `None`: none are.
    """

    path: Path
    name: Path
    max_pixels: int | None = MAX_PIXELS

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def frames(self) -> Iterator[Frame]:
        """The image, or the images of the video, from the first to the last.

        Raises:
            ValueError: a video that can't be decoded, or only in part.
        """
        if not self.is_video:
            yield Frame(self.name, str(self.path), self.content, partial(open_image, self.path, self.max_pixels))
            return
        content = self.content()
        for number, frame in enumerate(read_video(self.path)):
            name = self.name.with_name(f"{self.name.name}_{number:06d}")
            hashed = f"{content}-{number}"
            yield Frame(name, f"{self.path}, frame {number}", partial(str, hashed), partial(upright, frame))

    def content(self) -> str:
        """A hash of the file's bytes.

        Raises:
            ValueError: a file that can't be read.
        """
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        except OSError as error:
            raise ValueError(f"The file {self.path} can't be read: {error}.") from error
        return digest.hexdigest()


def find_media(
    inputs: Sequence[str], exclude: Path | None = None, max_pixels: int | None = MAX_PIXELS
) -> tuple[list[MediaFile], dict[str, int]]:
    """Finds the files that are meant, each once, in the order of their names.

    Args:
        inputs (`Sequence[str]`): images, videos, folders (with all images and videos below them) and globs (`**`
            stands for any folders). Hidden files are meant only if they are named.
        exclude (`Path`, *optional*): the folder of the results. Nothing in it is meant, or only what is no earlier
            result if it is or holds an input.
        max_pixels (`int`, *optional*): as in [`MediaFile`].

    Returns:
        `tuple[list[MediaFile], dict[str, int]]`: the files, and how many others there are by the reason why they are
        left out.

    Raises:
        ValueError: an input that is or has no image or video.
    """
    found: dict[str, MediaFile] = {}
    left_out: dict[str, int] = {}
    for given in inputs:
        root, paths, others = _expand(given, [exclude] if exclude else [])
        if not paths:
            reasons = ", ".join(f"{number} {reason}" for reason, number in others.items())
            raise ValueError(
                f"{given!r} is neither an image or video nor a folder or glob with some"
                f"{f': its files are left out ({reasons})' if reasons else ''}."
            )
        for path in paths:
            if exclude and exclude.resolve() in path.resolve().parents and fingerprint_of(path):
                others["an earlier result"] = others.get("an earlier result", 0) + 1
                continue
            name = path.relative_to(root)
            name = name.with_suffix("") if name.suffix.lower() in VIDEO_SUFFIXES else name_without_suffix(name)
            found.setdefault(os.path.abspath(path), MediaFile(path, name, max_pixels))
        left_out |= {reason: left_out.get(reason, 0) + number for reason, number in others.items()}
    return list(found.values()), dict(sorted(left_out.items()))


def _expand(given: str, exclude: list[Path]) -> tuple[Path, list[Path], dict[str, int]]:
    """The folder by which results are named, the files, and what was left out."""
    path = Path(given)
    if path.is_file():
        return path.parent, [path], {}
    if path.is_dir():
        files = find_image_files(path, exclude=exclude, other_suffixes=VIDEO_SUFFIXES)
        return path, files.paths, files.left_out
    fixed = next((index for index, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts) - 1)
    matches = {each for each in map(Path, glob.glob(given, recursive=True)) if each.is_file()}
    usable: set[Path] = set()
    for folder in {each.parent for each in matches}:
        usable.update(find_image_files(folder, False, exclude, VIDEO_SUFFIXES).paths)
    others = len(matches - usable)
    return Path(*path.parts[:fixed]), sorted(matches & usable), {"not an image or excluded": others} if others else {}


def read_video(path: Path) -> Iterator[Any]:
    """The frames of a video, as PyAV gives them.

    Raises:
        ValueError: PyAV is not installed, or a video that can't be decoded, or only in part.
    """
    av = _import_av(path)
    number = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame
                number += 1
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"The video {path} can't be read beyond {number} frames: {error}.") from error


def upright(frame: Any) -> Image.Image:
    """A frame of a video as an RGB image, turned as the video says."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def write_video(path: Path, images: Iterable[Image.Image], like: Path, comment: str) -> None:
    """Writes an MPEG-4 video.

    Args:
        path (`Path`): the file; it appears when it is complete.
        images (`Iterable[PIL.Image.Image]`): of one size, at least one.
        like (`Path`): a video with the same frame rate.
        comment (`str`): is kept in the file, for [`comment_of_video`].

    Raises:
        ValueError: PyAV is not installed, or videos that can't be read or written.
    """
    av = _import_av(like)
    incomplete = path.with_name(f".{path.name}.partial")
    try:
        with av.open(str(like)) as container:
            rate = container.streams.video[0].average_rate or 25
        with av.open(str(incomplete), "w", format="mp4") as container:
            container.metadata["comment"] = comment
            stream = container.add_stream("mpeg4", rate=rate)
            stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
            for number, image in enumerate(images):
                if number == 0:
                    # The format halves colors in both directions.
                    stream.width, stream.height = (length - length % 2 for length in image.size)
                frame = av.VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        incomplete.replace(path)
    except av.FFmpegError as error:
        raise ValueError(f"The video {path} can't be written: {error}.") from error
    finally:
        incomplete.unlink(missing_ok=True)


def comment_of_video(path: Path) -> str | None:
    """The comment in a video, if it can be read and has one."""
    av = _import_av(path)
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment")
    except av.FFmpegError:
        return None


def _import_av(path: Path) -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ValueError(f"The video {path} needs PyAV: pip install av.") from error


__all__ = ["Frame", "MediaFile", "comment_of_video", "find_media", "read_video", "upright", "write_video"]
