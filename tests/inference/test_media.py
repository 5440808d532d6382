# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Which files are meant by images, folders and globs, and what their results are called."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_mtaclip.inference.media import find_media, write_video
from modeling_mtaclip.inference.result_formats import FORMATS, OtherResultError, Result, fingerprint_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.PNG", "sub/a.jpg", "sub/deep/c.webp", "sub/clip.mp4", ".hidden.png", "notes.txt"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names_of(*inputs, **options):
    return [str(file.name) for file in find_media(inputs, **options)[0]]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["."], ["a", "b", "sub/a", "sub/clip", "sub/deep/c"]),
        (["sub"], ["a", "clip", "deep/c"]),
        (["*.*"], ["a", "b"]),
        (["sub/**/*.webp"], ["deep/c"]),
        (["**/a.jpg"], ["a", "sub/a"]),
        (["sub/deep/c.webp", "b.PNG"], ["c", "b"]),
        (["a.jpg", "*.jpg", "./a.jpg"], ["a"]),
    ],
)
def test_folders_globs_and_files(folder, inputs, names):
    assert names_of(*inputs) == names
    files, _ = find_media(inputs)
    assert [file.path.name for file in files if file.is_video] == ["clip.mp4"] * ("clip" in " ".join(names))


def test_results_are_no_images_to_predict(folder):
    assert names_of(".", exclude=Path("sub")) == ["a", "b"]
    assert names_of(str(folder), exclude=Path("sub/deep")) == ["a", "b", "sub/a", "sub/clip"]


@pytest.mark.parametrize("given", ["missing", "missing/*.jpg", "sub/deep/*.jpg"])
def test_inputs_without_images(folder, given):
    with pytest.raises(ValueError, match="neither an image or video nor a folder or glob"):
        find_media([given])


def test_what_is_left_out_is_counted(folder):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "d.jpg").touch()
    files, left_out = find_media([".", "sub/*"], exclude=folder / "sub" / "deep")
    assert [str(file.name) for file in files] == ["a", "b", "sub/a", "sub/clip"]
    assert left_out == "2 hidden, 1 in an excluded folder, 1 not an image"


@pytest.mark.parametrize("kind", ["index", "overlay", "json"])
def test_fingerprints_are_read_whole_whatever_follows_them(tmp_path, kind):
    """In PNG files a checksum follows, some of whose bytes look like digits."""
    image, labels = Image.new("RGB", (4, 4)), np.zeros((4, 4), dtype=np.int64)
    for number in range(60):
        result = Result(tmp_path / f"{number}", f"{number:064x}")
        FORMATS[kind].write(result, "a.png", image, ["road"], labels)
        assert result.is_there()
        with pytest.raises(OtherResultError, match="not made from this input by this model"):
            Result(result.path, f"{number + 1:064x}").is_there()


def test_overlay_videos_are_known_as_results(tmp_path):
    av = pytest.importorskip("av", reason="needs PyAV: pip install av")
    images, fingerprint = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")], f"{1:064x}"
    with av.open(str(tmp_path / "drive.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = images[0].size
        container.mux([*stream.encode(av.VideoFrame.from_image(images[0])), *stream.encode()])
    assert fingerprint_of(tmp_path / "drive.mkv") is None
    write_video(tmp_path / "drive_overlay.mp4", images, tmp_path / "drive.mkv", f"fingerprint {fingerprint}")
    assert fingerprint_of(tmp_path / "drive_overlay.mp4") == fingerprint
    files, left_out = find_media([str(tmp_path)], exclude=tmp_path)
    assert [file.path.name for file in files] == ["drive.mkv"]
    assert left_out == "1 an earlier result"


def test_formats_are_known_from_content(folder):
    Image.new("RGB", (4, 4)).save("scan.001", "PNG")
    assert names_of(".") == ["a", "b", "scan.001", "sub/a", "sub/clip", "sub/deep/c"]


def test_images_are_read_upright(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    ((frame,),) = (source.frames() for source in find_media([str(tmp_path)])[0])
    assert frame.read().size == (10, 20)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg can't be read"):
        frame.read()
