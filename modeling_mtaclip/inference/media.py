# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Image and video files: which of them are meant, how they are read frame by frame, and how a video is written."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.image_files import MAX_PIXELS, ImageFiles, find_image_files, name_without_suffix, open_image
from .result_formats import fingerprint_of


VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"))


@dataclass(frozen=True)
class Frame:
    """One image to predict: what its results and itself are called, and how its hash and the RGB image are read."""

    name: Path
    source: str
    content: Callable[[], str]
    read: Callable[[], Image.Image]


@dataclass(frozen=True)
class MediaFile:
    """An image or a video, and where it lies below what was asked for, without suffix."""

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def name_of_frame(self, number: int) -> Path:
        """The name of a video's frame."""
        return self.name.with_name(f"{self.name.name}_{number:06d}")

    @property
    def overlay_name(self) -> Path:
        """The file that shows a video's overlays."""
        return self.name.with_name(f"{self.name.name}_overlay.mp4")

    def frames(self, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
        """The image, or the images of the video; one that can't be decoded to its end raises a `ValueError`."""
        if not self.is_video:
            yield Frame(self.name, str(self.path), self.content, partial(open_image, self.path, max_pixels))
            return
        content = self.content()
        for number, frame in enumerate(read_video(self.path)):
            hashed, source = partial("{}-{}".format, content, number), f"{self.path}, frame {number}"
            yield Frame(self.name_of_frame(number), source, hashed, partial(upright, frame))

    def content(self) -> str:
        """A hash of the file's bytes; a file that can't be read raises a `ValueError`."""
        try:
            with self.path.open("rb") as file:
                digest = hashlib.sha256()
                for part in iter(partial(file.read, 2**20), b""):
                    digest.update(part)
                return digest.hexdigest()
        except OSError as error:
            raise ValueError(f"The file {self.path} can't be read: {error}.") from error


def find_media(inputs: Sequence[str], exclude: Path | None = None) -> tuple[list[MediaFile], str]:
    """Finds the files that are meant, each once, in the order of their names.

    Args:
        inputs (`Sequence[str]`): images, videos, folders (searched in depth) and globs. Hidden files are meant only if
            they are named.
        exclude (`Path`, *optional*): the folder of the results. Nothing in it is meant, or only what is no earlier
            result if it is or holds an input.

    Returns:
        `tuple[list[MediaFile], str]`: the files, and how many were left out and why ("2 hidden, 1 not an image").

    Raises:
        ValueError: an input that is or has no image or video.
    """
    found: dict[str, MediaFile] = {}
    left_out: Counter[str] = Counter()
    for given in inputs:
        root, files = _expand(given, [exclude] if exclude else [])
        if not files.paths:
            raise ValueError(
                f"{given!r} is neither an image or video nor a folder or glob with some"
                f"{f': its files are left out ({files.remark})' if files.remark else ''}."
            )
        left_out.update(files.left_out)
        for path in files.paths:
            if exclude and exclude.resolve() in path.resolve().parents and fingerprint_of(path):
                left_out["an earlier result"] += 1
                continue
            name = path.relative_to(root)
            name = name.with_suffix("") if name.suffix.lower() in VIDEO_SUFFIXES else name_without_suffix(name)
            found.setdefault(os.path.abspath(path), MediaFile(path, name))
    return list(found.values()), ImageFiles([], left_out).remark


def _expand(given: str, exclude: list[Path]) -> tuple[Path, ImageFiles]:
    """The folder by which results are named, and the files."""
    path = Path(given)
    if path.is_file():
        return path.parent, ImageFiles([path])
    if path.is_dir():
        return path, find_image_files(path, exclude=exclude, other_suffixes=VIDEO_SUFFIXES)
    fixed = next((index for index, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts) - 1)
    root, in_depth = Path(*path.parts[:fixed]), len(path.parts) > fixed + 1
    matches = set(map(Path, glob.glob(given, recursive=True)))
    paths = find_image_files(root, in_depth, exclude, VIDEO_SUFFIXES).paths
    return root, ImageFiles([each for each in paths if each in matches])


@contextmanager
def _open_video(path: Path) -> Iterator[Any]:
    """PyAV's container; errors become a `ValueError` that names the video."""
    try:
        import av
    except ImportError as error:
        raise ValueError(f"The video {path} needs PyAV: pip install av.") from error
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"The video {path} can't be read to its end: {error}.") from error


def read_video(path: Path) -> Iterator[Any]:
    """The frames of a video, as PyAV gives them."""
    with _open_video(path) as container:
        yield from container.decode(video=0)


def upright(frame: Any) -> Image.Image:
    """A frame of a video as an RGB image, turned as the video says."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def write_video(path: Path, images: Iterable[Image.Image], like: Path, comment: str) -> None:
    """Writes an MPEG-4 video of images of one size, with the frame rate of another video and a comment.

    Raises:
        ValueError: PyAV is not installed, or a video that can't be read.
        OSError: a video that can't be written.
    """
    with _open_video(like) as container:
        rate = container.streams.video[0].average_rate or 25
    import av

    try:
        with av.open(str(path), "w", format="mp4") as container:
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
    except av.FFmpegError as error:
        raise OSError(f"the video {path.name} can't be written: {error}") from error


__all__ = ["Frame", "MediaFile", "find_media", "read_video", "upright", "write_video"]
