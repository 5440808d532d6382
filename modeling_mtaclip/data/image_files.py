# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Image files, for training and prediction alike: which of them a folder has, and how they are opened.

Images are turned upright as their EXIF data say. How many bits a channel has is read from the file: Pillow decodes
16-bit colors to 8 bits and stretches the values of 2-bit and 4-bit grays without a word.
"""

import io
import os
import re
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
from PIL import ExifTags, Image, ImageMode, ImageOps, UnidentifiedImageError


# Those that are found in folders; a file that is named may have any that Pillow knows.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)
# Above it, Pillow refuses an image unless it is told otherwise.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
# What Pillow's decoders raise on files that are no images, cut off, or broken.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error, zlib.error)
HEADER_LENGTH = 4096
# Orientations that exchange width and height.
SIDEWAYS = (5, 6, 7, 8)

ImageSource = str | os.PathLike | bytes | Mapping[str, Any] | Image.Image

# Pillow's limit is one for the whole process.
_pillow_limit = threading.Lock()


class ImageFileError(ValueError):
    """A file can't be used as an image or label map; the message names it."""


@dataclass
class ImageFiles:
    """Image files of a folder in the order of their names, and how many others are left out for which reason."""

    paths: list[Path]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def remark(self) -> str:
        """What was left out ("2 hidden, 1 not an image"); empty if nothing was."""
        return ", ".join(f"{number} {reason}" for reason, number in sorted(self.left_out.items()))


def find_image_files(
    folder: str | os.PathLike,
    recursive: bool = True,
    exclude: Collection[str | os.PathLike] = (),
    other_suffixes: Collection[str] = (),
) -> ImageFiles:
    """Finds the images of a folder, by their usual suffixes in any case, and files with others by their content.

    Args:
        folder (`str` or `os.PathLike`): where to look; links are followed. Names that begin with a dot are left out.
        recursive (`bool`, defaults to `True`): whether to look into the folders in it too.
        exclude (`Collection[str | os.PathLike]`): folders to leave out, such as that of the results. One that is the
            folder itself or holds it leaves out nothing.
        other_suffixes (`Collection[str]`): what else is wanted, in small letters (`".mp4"`).
    """
    suffixes, paths, left_out = IMAGE_SUFFIXES | set(other_suffixes), [], Counter()
    for path, reason in _walk(folder, recursive, {os.path.realpath(each) for each in exclude}):
        if reason or (path.suffix.lower() not in suffixes and not is_image(path)):
            left_out[reason or "not an image"] += 1
        else:
            paths.append(path)
    return ImageFiles(sorted(paths), dict(left_out))


def _walk(root: str | os.PathLike, recursive: bool, excluded: set[str]) -> Iterator[tuple[Path, str]]:
    """All files, each with the reason to leave it out, or ""; folders that links lead to again are not entered."""
    reasons, seen = {os.fspath(root): ""}, {os.path.realpath(root)}
    for directory, folders, names in os.walk(os.fspath(root), followlinks=True):
        reason = reasons[directory]
        for name in names:
            yield Path(directory, name), reason or "hidden" * name.startswith(".")
        for name in folders[:]:
            path = os.path.join(directory, name)
            real = os.path.realpath(path)
            if real in seen or not recursive:
                folders.remove(name)
            seen.add(real)
            why = "in an excluded folder" if real in excluded else "hidden" * name.startswith(".")
            reasons[path] = reason or why


def is_image(path: Path) -> bool:
    """Whether a file has, by its content, one of the formats that are found in folders; it is not decoded."""
    try:
        with path.open("rb") as file:
            return bool(_open_of_any_size(file, [kind for kind in FORMATS if kind in Image.OPEN]))
    except DECODING_ERRORS:
        return False


def name_without_suffix(path: Path) -> Path:
    """The path without the suffix of an image format; other ends of a name ("scan.001") are kept."""
    return path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path


def open_image(source: ImageSource, max_pixels: int | None = MAX_PIXELS, name: str = "") -> Image.Image:
    """Opens an image, upright as its EXIF data say, in RGB; what is transparent is white, as in the image processor.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `Mapping` or `PIL.Image.Image`): a path or an address, a file's
            content, a mapping with `path` and `bytes` as `datasets` has it, or an image.
        max_pixels (`int`, *optional*): larger images are refused, by default above Pillow's limit; 0: none are.
        name (`str`, *optional*): names the image in errors if it has no path.

    Raises:
        ImageFileError: (a `ValueError`) a file that is missing, can't be decoded, is too large, holds several images,
            or has more than 8 bits per channel.
    """
    with _opened(source, max_pixels, name_of(source, name), max_bits=8) as image:
        image = _upright(image)
        if not image.has_transparency_data:
            return image.convert("RGB")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")


def image_size(source: ImageSource, max_pixels: int | None = MAX_PIXELS, name: str = "") -> tuple[int, int]:
    """Width and height of the upright image, known from the start of its file; all else as for [`open_image`]."""
    with _opened(source, max_pixels, name_of(source, name), max_bits=8) as image:
        # Pillow has turned the size of a TIFF file already; of PNG files, what follows the pixels is not looked at.
        has_exif = image.format != "TIFF" and ("exif" in image.info or image.format != "PNG")
        return image.size[::-1] if has_exif and _orientation(image) in SIDEWAYS else image.size


def open_label_map(source: ImageSource, max_pixels: int | None = MAX_PIXELS, name: str = "") -> np.ndarray:
    """Opens an annotation, upright if its EXIF data say how; arguments as for [`open_image`].

    Returns:
        `np.ndarray` of shape `(height, width)`: the numbers in the file, of an integer type.

    Raises:
        ImageFileError: (a `ValueError`) a file that can't be opened, or that can't be a label map since it has colors,
            fractions, or a lossy format.
    """
    name = name_of(source, name)
    with _opened(source, max_pixels, name) as image:
        if image.format in ("JPEG", "MPO"):
            raise ImageFileError(
                f"The annotation {name} is a JPEG file, whose compression changes label ids. Export it again as PNG."
            )
        if len(image.getbands()) > 1 or image.mode == "F":
            raise ImageFileError(
                f"The annotation {name} has the mode {image.mode!r}: expected one label id per pixel, as a gray or "
                "palette image. Replace its colors by label ids."
            )
        bits, values = _bits_per_channel(image), np.array(_upright(image))
        if image.mode == "L" and bits in (2, 4):
            return values // (255 // (2**bits - 1))
        return values.astype(np.uint8) if values.dtype == bool else values


def name_of(source: ImageSource, otherwise: str = "") -> str:
    """How an image is called in messages: its path, if it has one."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    path = source.get("path") if isinstance(source, Mapping) else getattr(source, "filename", None)
    return str(path or otherwise or "that was given")


@contextmanager
def _opened(source: ImageSource, max_pixels: int | None, name: str, max_bits: int = 64) -> Iterator[Image.Image]:
    """An image that is not decoded yet; errors of decoding name the file."""
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else _stream(source) as opened:
            image = opened
            if opened is not source:
                image = _open_of_any_size(opened)
                _require_one_of_size(image, max_pixels, name)
            if (bits := _bits_per_channel(image)) > max_bits:
                raise ImageFileError(
                    f"The image {name} has the mode {image.mode!r} and {bits} bits per channel: expected {max_bits} "
                    "bits. Convert it first, in the way that keeps what matters in it."
                )
            yield image
    except ImageFileError:
        raise
    except DECODING_ERRORS as error:
        # Pillow names its stream here.
        reason = "it is no image of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageFileError(f"The file {name} can't be read: {reason}.") from error


def _stream(source: str | os.PathLike | bytes | Mapping[str, Any]) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, Mapping):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return fsspec.open(source, "rb") if "://" in os.fspath(source) else open(source, "rb")


def _open_of_any_size(stream: BinaryIO, formats: list[str] | None = None) -> Image.Image:
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(stream, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _require_one_of_size(image: Image.Image, max_pixels: int | None, name: str) -> None:
    if max_pixels and image.width * image.height > max_pixels:
        raise ImageFileError(
            f"The file {name} can't be read: its {image.width} x {image.height} pixels are more than the limit of "
            f"{max_pixels:,}. If it is no attack, raise the limit (`max_pixels`)."
        )
    # The further pictures of cameras' JPEG files (MPO) are previews.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageFileError(f"The file {name} holds {image.n_frames} images: expected one. Save each by itself.")


def _bits_per_channel(image: Image.Image) -> int:
    """Bits of a channel in the file, if the image isn't decoded yet, or else in memory."""
    # What Pillow gives its decoder: of PNG files a description of their rows ("RGB;16B").
    decoding = image.tile[0][3] if getattr(image, "tile", None) else None
    if image.format == "PNG" and isinstance(decoding, str) and (found := re.search(r";(\d+)", decoding)):
        return int(found[1])
    if image.format == "PPM" and image.mode == "RGB" and isinstance(decoding, tuple):
        return int(decoding[1]).bit_length()
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        return max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
    if image.format == "JPEG2000" and decoding:
        image.fp.seek(0)
        header = image.fp.read(HEADER_LENGTH)
        if (place := header.find(b"\xff\x51")) >= 0:
            return (header[place + 40] & 127) + 1
    return 8 * np.dtype(ImageMode.getmode(image.mode).typestr).itemsize


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 … 8; 1 (upright) where the EXIF data can't be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODING_ERRORS:
        return 1


__all__ = [
    "find_image_files",
    "image_size",
    "is_image",
    "name_of",
    "name_without_suffix",
    "open_image",
    "open_label_map",
]
