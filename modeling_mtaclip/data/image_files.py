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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
# How files of these formats start.
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|P[1-6]\s"
    rb"|\0\0\0\x0cjP  |\xffO\xffQ|.{4}ftypavi[fs]",
    re.DOTALL,
)
# Above it, Pillow refuses an image unless it is told otherwise.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
# What Pillow's decoders raise on files that are no images, cut off, or broken.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error, zlib.error)
HEADER_LENGTH = 4096
UNNAMED = "that was given"
PPM_HEADER = re.compile(rb"P[2356](?:\s+|#[^\n]*\n)+\d+\s+\d+\s+(\d+)")
COLOR_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "L", "LA", "La", "P", "PA", "1", "CMYK", "YCbCr", "LAB", "HSV")
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
# Orientations that exchange width and height.
SIDEWAYS = (5, 6, 7, 8)

ImageSource = str | os.PathLike | bytes | Mapping[str, Any] | Image.Image

# Pillow's limit is one for the whole process.
_pillow_limit = threading.Lock()


class ImageFileError(ValueError):
    """A file can't be used as an image or label map; the message names it."""


@dataclass
class ImageFiles:
    """Image files of a folder.

    Attributes:
        paths (`list[Path]`): in the order of their names.
        left_out (`dict[str, int]`): how many other files there are, by the reason why they are left out.
    """

    paths: list[Path]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def remark(self) -> str:
        """What was left out, as part of a sentence ("2 hidden, 1 not an image"); empty if nothing was."""
        return ", ".join(f"{number} {reason}" for reason, number in sorted(self.left_out.items()))


def find_image_files(
    folder: str | os.PathLike,
    recursive: bool = True,
    exclude: Collection[str | os.PathLike] = (),
    other_suffixes: Collection[str] = (),
) -> ImageFiles:
    """Finds the images of a folder, by their usual suffixes in any case, and files with others by their content.

    Args:
        folder (`str` or `os.PathLike`): where to look; symbolic links are followed.
        recursive (`bool`, defaults to `True`): whether to look into the folders in it too.
        exclude (`Collection[str | os.PathLike]`): folders to leave out, such as that of the results. One that is the
            folder itself or holds it leaves out nothing.
        other_suffixes (`Collection[str]`): what else is wanted, in small letters (`".mp4"`).

    Returns:
        [`ImageFiles`]: what was found. Files and folders whose names begin with a dot are left out.
    """
    root = Path(folder)
    excluded = {os.path.realpath(each) for each in exclude} - {os.path.realpath(each) for each in _lineage(root)}
    suffixes = IMAGE_SUFFIXES | set(other_suffixes)
    paths, left_out = [], Counter()
    for directory, names in _walk(root, recursive):
        hidden = any(part.startswith(".") for part in directory.relative_to(root).parts)
        is_excluded = any(os.path.realpath(each) in excluded for each in _lineage(directory)) if excluded else False
        for name in names:
            path = directory / name
            if is_excluded:
                left_out["in an excluded folder"] += 1
            elif hidden or name.startswith("."):
                left_out["hidden"] += 1
            elif path.suffix.lower() in suffixes or _starts_like_an_image(path):
                paths.append(path)
            else:
                left_out["not an image"] += 1
    return ImageFiles(sorted(paths), dict(left_out))


def name_without_suffix(path: Path) -> Path:
    """The path without the suffix of an image format; other ends of a name ("scan.001") are kept."""
    return path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path


def open_image(source: ImageSource, max_pixels: int | None = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """Opens an image, upright as its EXIF data say, in RGB.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `Mapping` or `PIL.Image.Image`): a path or an address, a file's
            content, a mapping with `path` and `bytes` as `datasets` has it, or an image.
        max_pixels (`int`, *optional*): larger images are refused, by default above Pillow's limit; 0: none are.
        name (`str`, *optional*): names the image in errors; by default its path.

    Raises:
        ImageFileError: (a `ValueError`) a file that is missing, can't be decoded, is too large, holds several images,
            or has more than 8 bits per channel.
    """
    name = name or name_of(source)
    with _opened(source, max_pixels, name) as (image, bits):
        _require_color(image, bits, name)
        return _upright(image).convert("RGB")


def image_size(source: ImageSource, max_pixels: int | None = MAX_PIXELS, name: str | None = None) -> tuple[int, int]:
    """Width and height of the upright image, known from the start of its file; all else as for [`open_image`]."""
    name = name or name_of(source)
    with _opened(source, max_pixels, name) as (image, bits):
        _require_color(image, bits, name)
        # Pillow has turned the size of a TIFF file already; of PNG files, what follows the pixels is not looked at.
        has_exif = image.format != "TIFF" and ("exif" in image.info or image.format != "PNG")
        return image.size[::-1] if has_exif and _orientation(image) in SIDEWAYS else image.size


def open_label_map(source: ImageSource, max_pixels: int | None = MAX_PIXELS, name: str | None = None) -> np.ndarray:
    """Opens an annotation, upright if its EXIF data say how; arguments as for [`open_image`].

    Returns:
        `np.ndarray` of shape `(height, width)`: the numbers in the file, of an integer type.

    Raises:
        ImageFileError: (a `ValueError`) a file that can't be opened, or that can't be a label map since it has colors,
            fractions, or a lossy format.
    """
    name = name or name_of(source)
    with _opened(source, max_pixels, name) as (image, bits):
        if image.format in ("JPEG", "MPO"):
            raise ImageFileError(
                f"The annotation {name} is a JPEG file, whose compression changes label ids. Export it again as PNG."
            )
        if image.mode not in LABEL_MODES:
            raise ImageFileError(
                f"The annotation {name} has the mode {image.mode!r}: expected one label id per pixel, as a gray or "
                "palette image. Replace its colors by label ids."
            )
        values = np.array(_upright(image))
        if image.mode == "L" and bits in (2, 4):
            return values // (255 // (2**bits - 1))
        return values.astype(np.uint8) if values.dtype == bool else values


def name_of(source: ImageSource) -> str:
    """How an image is called in messages: its path, if it has one."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    path = source.get("path") if isinstance(source, Mapping) else getattr(source, "filename", None)
    return str(path) if path else UNNAMED


def _walk(root: Path, recursive: bool) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their files; a folder that links lead to again is not looked at twice."""
    seen = set()
    for directory, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen or not recursive:
            folders.clear()
        if real not in seen:
            yield Path(directory), names
        seen.add(real)


def _lineage(path: Path) -> list[Path]:
    path = path.absolute()
    return [path, *path.parents]


def _starts_like_an_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return SIGNATURE.match(file.read(32)) is not None
    except OSError:
        return False


@contextmanager
def _opened(source: ImageSource, max_pixels: int | None, name: str) -> Iterator[tuple[Image.Image, int]]:
    """An image that is not decoded yet, and the bits of its channels; errors of decoding name the file."""
    try:
        if isinstance(source, Image.Image):
            yield source, _bits_per_channel(source, b"")
        else:
            with _stream(source) as stream:
                header = stream.read(HEADER_LENGTH)
                stream.seek(0)
                image = _open_of_any_size(stream)
                _require_one_of_size(image, max_pixels, name)
                yield image, _bits_per_channel(image, header)
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
    if "://" in os.fspath(source):
        return fsspec.open(source, "rb")
    return open(source, "rb")


def _open_of_any_size(stream: BinaryIO) -> Image.Image:
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(stream)
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


def _require_color(image: Image.Image, bits: int, name: str) -> None:
    if image.mode not in COLOR_MODES or bits > 8:
        raise ImageFileError(
            f"The image {name} has the mode {image.mode!r} and {bits} bits per channel: expected 8 bits. Convert it "
            "first, in the way that keeps what matters in it."
        )


def _bits_per_channel(image: Image.Image, header: bytes) -> int:
    """Bits of a channel, as the first bytes of the file say; without them or in other formats, as the mode says."""
    if image.format == "PNG" and header:
        return header[24]
    # An image that was opened elsewhere and isn't decoded yet still has the format of its rows.
    if image.format == "PNG" and any(";16" in str(tile[3]) for tile in image.tile):
        return 16
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        return max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
    if image.format == "PPM" and (found := PPM_HEADER.match(header)):
        return int(found[1]).bit_length()
    if image.format == "JPEG2000" and (place := header.find(b"\xff\x51")) >= 0:
        return (header[place + 40] & 127) + 1
    if image.mode in COLOR_MODES:
        return 8
    return 16 if ";16" in image.mode else 32


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
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "UNNAMED",
    "ImageFileError",
    "ImageFiles",
    "find_image_files",
    "image_size",
    "name_of",
    "name_without_suffix",
    "open_image",
    "open_label_map",
]
