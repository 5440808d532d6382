# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the snippets of docs/inference.md, in a folder that has what they name."""

import re

import numpy as np
import pytest

from modeling_mtaclip.data.scenes import make_scene
from tests import test_readme


DOCUMENT = test_readme.README.parent / "docs" / "inference.md"
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT.read_text(), flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, code in SNIPPETS if language == "bash" for line in code.strip().splitlines()]

user_folder = test_readme.user_folder


@pytest.fixture(scope="module")
def media_folder(user_folder):
    """Images in folders and a video of two frames, besides what a reader of the README has."""
    av = pytest.importorskip("av", reason="needs PyAV: pip install av")
    for index, name in enumerate(("images/a.jpg", "images/more/b.png", "frames/x/c.png")):
        path = user_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_scene(index)[0].save(path)
    with av.open(str(user_folder / "drive.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = make_scene(0)[0].size
        for index in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(make_scene(index)[0]))))
        container.mux(stream.encode())
    return user_folder


@pytest.mark.slow
def test_python_snippets(user_folder):
    codes = [code for language, code in SNIPPETS if language == "python"]
    assert len(codes) == 1
    check = "\nassert label_maps[1].shape == (80, 100) and scores.shape[0] == model.config.num_labels"
    test_readme.run_python(codes[0] + check, user_folder)


@pytest.mark.slow
def test_commands(media_folder):
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        test_readme.run(f"{command} --max_eval_samples 3" if "run_seg" in command else command, media_folder)
    expected = {
        "predictions": {"photo.png", "photo_overlay.jpg", "photo.json"},
        "outputs/predictions": {"a.png", "more/b.png", "x/c.png", "drive_000000.png", "drive_000001.png"},
        "outputs/shared": {"a.png", "more/b.png"},
    }
    for folder, names in expected.items():
        files = (path.relative_to(media_folder / folder) for path in (media_folder / folder).rglob("*.*"))
        assert {str(name) for name in files} == names
