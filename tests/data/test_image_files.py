# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are images, and what is opened or refused, whatever Pillow would make of it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.data.image_files import (
    find_image_files,
    image_size,
    name_without_suffix,
    open_image,
    open_label_map,
)
from tests.data.conftest import save


PICTURE = Image.new("RGB", (4, 3))


def png(color_type: int, depth: int, rows: list[bytes], width: int) -> bytes:
    """A PNG file of any depth; Pillow itself writes few."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_walker_finds_images_by_content_and_counts_what_it_leaves_out(tmp_path: Path):
    hidden = (".hidden.png", ".ipynb_checkpoints/a.png")
    for name in ("a.png", "b.JPG", "sub/c.Tif", "sub/deep/d.webp", "results/a.png", *hidden):
        save(PICTURE, tmp_path / name)
    PICTURE.save(tmp_path / "scan.001", format="PNG")
    for name in ("broken.jpeg", "notes.txt", "film.mp4"):
        (tmp_path / name).write_text("BMW, not a bitmap")
    (tmp_path / "sub/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")

    def names(*arguments, **options) -> list[str]:
        found = find_image_files(tmp_path, *arguments, **options)
        return [path.relative_to(tmp_path).as_posix() for path in found.paths]

    flat = ["a.png", "b.JPG", "broken.jpeg", "link.png", "scan.001"]
    results = [tmp_path / "results"]
    assert names(exclude=results) == [*flat, "sub/c.Tif", "sub/deep/d.webp"]
    left_out = {"hidden": 2, "in an excluded folder": 1, "not an image": 2}
    assert find_image_files(tmp_path, exclude=results).left_out == left_out
    assert names(recursive=False) == flat
    assert set(names(other_suffixes=(".mp4",))) - set(names()) == {"film.mp4"}
    # A folder of results that is or holds the input leaves out nothing.
    assert "results/a.png" in names(exclude=[tmp_path]) == names(exclude=[tmp_path.parent]) == names()
    assert [str(name_without_suffix(Path(name))) for name in ("a.b.PNG", "scan.001")] == ["a.b", "scan.001"]


def deep_tiff() -> bytes:
    """4 x 3 pixels of 3 x 16 bits, in one strip."""
    tags = [(256, 3, 1, 4), (257, 3, 1, 3), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 300)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 3), (279, 4, 1, 72)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4
    content = content.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16)
    return content.ljust(300, b"\0") + b"\1\2" * 36


def deep_jpeg2000() -> bytes:
    """The depths of the three channels, less one, stand in the header of the code stream."""
    if not features.check("jpg_2000"):
        pytest.skip("Pillow is built without OpenJPEG.")
    PICTURE.save(file := io.BytesIO(), "JPEG2000")
    content = bytearray(file.getvalue())
    place = content.find(b"\xff\x51") + 40
    content[place : place + 9 : 3] = b"\x0f" * 3
    return bytes(content)


DEEP = {
    "gray.png": lambda: png(0, 16, [b"\1\2" * 4] * 3, 4),
    "rgb.png": lambda: png(2, 16, [b"\1\2" * 12] * 3, 4),
    "gray and alpha.png": lambda: png(4, 16, [b"\1\2" * 8] * 3, 4),
    "rgba.png": lambda: png(6, 16, [b"\1\2" * 16] * 3, 4),
    "rgb.ppm": lambda: b"P6 # by hand\n4 3 65535\n" + b"\1\2" * 36,
    "rgb.tif": deep_tiff,
    "rgb.jp2": deep_jpeg2000,
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused_whatever_they_are_decoded_to(tmp_path: Path, name: str):
    path, content = tmp_path / name, DEEP[name]()
    path.write_bytes(content)
    for reader in (open_image, image_size):
        for source in (content, {"path": None, "bytes": content}):
            with pytest.raises(ValueError, match="16 bits per channel: expected 8 bits"):
                reader(source)
        with pytest.raises(ValueError, match=f"{name} .* 16 bits per channel: expected 8 bits"):
            reader(path)
    if name.endswith(".png"):
        with pytest.raises(ValueError, match="16 bits per channel"), Image.open(path) as image:
            open_image(image)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_label_ids_of_any_depth_are_those_of_the_file(depth: int):
    values = np.arange(8) % min(2**depth, 6)
    bits = np.unpackbits(values.astype(">u2")[:, None].view(np.uint8), axis=1)[:, -depth:]
    content = png(0, depth, [np.packbits(bits).tobytes()] * 2, 8)
    np.testing.assert_array_equal(open_label_map(content), [values, values])


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGBA", "CMYK"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str):
    image = open_image(save(Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode), tmp_path / "a.tif"))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_as_in_the_image_processor(tmp_path: Path, mode: str):
    image = Image.new("RGBA", (4, 3), (0, 0, 0, 0))
    image.paste((80, 80, 80, 255), (0, 0, 2, 3))
    path = save(image.convert(mode), tmp_path / "a.png")
    opened = np.asarray(open_image(path)).transpose(2, 0, 1)
    assert np.array_equal(opened[0], [[80, 80, 255, 255]] * 3)
    processor = MTAClipImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, do_pad=False)
    assert np.array_equal(processor(str(path), return_tensors="np").pixel_values[0], opened)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 99])
def test_images_and_annotations_are_upright(tmp_path: Path, suffix: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((8, 16), np.uint8)
    stored[:4] = 200
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).convert("RGB" if suffix == "webp" else "L").save(path, exif=exif)
    upright = {3: stored[::-1], 6: stored.T[:, ::-1], 8: stored.T}.get(orientation, stored)
    image = open_image(path)
    assert image_size(path) == image.size == upright.shape[::-1]
    np.testing.assert_allclose(np.asarray(image.convert("L"), int), upright, atol=12)
    if suffix in ("png", "tif"):
        np.testing.assert_array_equal(open_label_map(path), upright)


def test_broken_exif_data_turn_nothing(tmp_path: Path):
    PICTURE.save(tmp_path / "a.jpg", exif=b"Exif\0\0nothing")
    assert open_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg") == (4, 3)


def test_files_that_are_no_single_whole_image_are_named(tmp_path: Path):
    picture = Image.effect_noise((64, 64), 50)
    path = save(picture, tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    picture.save(tmp_path / "pages.tif", save_all=True, append_images=[picture])
    save(picture.convert("RGB"), tmp_path / "colors.png")
    save(picture, tmp_path / "lossy.jpg")
    save(picture.convert("F"), tmp_path / "fractions.tif")
    reasons = {f"{name}.png": "can't be read" for name in ("cut", "text", "empty", "missing")}
    reasons["pages.tif"] = "holds 2 images"
    in_images = {"fractions.tif": "32 bits per channel"}
    in_maps = {"colors.png": "has the mode 'RGB'.*gray or palette", "lossy.jpg": "is a JPEG file"}
    in_maps["fractions.tif"] = "has the mode 'F'"
    for reader, more in ((open_image, in_images), (open_label_map, in_maps)):
        for name, reason in (reasons | more).items():
            with pytest.raises(ValueError, match=f"{name}.*{reason}"):
                reader(tmp_path / name)


def test_limit_of_pixels_is_an_option(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = save(Image.new("L", (10, 10)), tmp_path / "large.png")
    assert open_image(path, max_pixels=100).size == open_image(path, max_pixels=None).size == (10, 10)
    with pytest.raises(ValueError, match=r"large\.png can't be read: its 10 x 10 pixels are .* limit of 99"):
        open_image(path, max_pixels=99)
    assert Image.MAX_IMAGE_PIXELS == 10
