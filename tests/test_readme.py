# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs every snippet of README.md, in a folder laid out as the README says."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from modeling_mtaclip.data.scenes import make_scene
from tests.conversion.sources import (
    make_open_clip,
    openai_state_dict,
    original_state_dict,
    save_clip_folder,
    save_mask2former_folder,
    save_mmengine,
)
from tests.training.conftest import draw_folder, prepare


README = Path(__file__).resolve().parent.parent / "README.md"
DOCS = README.parent / "docs"


def snippets(page: Path, language: str) -> list[str]:
    """The blocks of a page that are in a language, for `"bash"` line by line."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()] if language == "bash" else blocks


PYTHON, COMMANDS = snippets(README, "python"), snippets(README, "bash")
INSTALL = [line for line in COMMANDS if "pip install" in line]
RUNS = [line for line in COMMANDS if "pip install" not in line]
# So that a training run of the README takes two small steps here.
SHORT = "--max_steps 2 --eval_steps 2 --save_steps 2 --warmup_steps 0 --max_eval_samples 4 --num_pictures 1"
SMALL = "--per_device_train_batch_size 2 --crop_size 64 64 --shortest_edge 64 --train_num_points 64"


def run_python(code: str, folder: Path) -> str:
    """Runs a snippet in a folder and returns what it prints."""
    with pytest.MonkeyPatch.context() as here, redirect_stdout(io.StringIO()) as output:
        here.chdir(folder)
        exec(code, {"__name__": "__main__"})
    return output.getvalue()


def run(command: str, folder: Path) -> str:
    """Runs a command with this interpreter's programs and returns what it prints."""
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    finished = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"PATH": paths, "PYTHONPATH": str(README.parent)},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a checkout, models in outputs/, a photograph and a data set of their own."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(README.parent / name)
    make_scene(0)[0].save(folder / "photo.jpg")
    draw_folder(folder / "my_data")
    save_starting_points(folder)
    run = prepare(folder, dataset_name="scenes", output_dir=folder / "outputs" / "scenes", check_data="none")
    run.trainer.save_model()
    return folder


def save_starting_points(folder: Path) -> None:
    """Small stand-ins for the checkpoints that the README starts from, under the names it gives them."""
    save_clip_folder(folder / "openai" / "clip-vit-base-patch16")
    torch.save(openai_state_dict(make_open_clip("resnet")), folder / "RN50.pt")
    save_mask2former_folder(folder / "facebook" / "mask2former-swin-tiny-ade-semantic", ["wall", "building", "sky"])


@pytest.fixture(scope="module")
def original_checkpoint(user_folder: Path, shared_dir: Path) -> None:
    names = ["wall", "building", "sky"]
    save_mmengine(original_state_dict(shared_dir, 3), user_folder / "iter_160000.pth", names, run_config="")


def test_no_kind_of_snippet_is_left_out():
    languages = re.findall(r"^```(\w+)$", README.read_text(), flags=re.MULTILINE)
    assert {*languages} <= {"python", "bash", "text", "bibtex"}
    assert (len(INSTALL), len(PYTHON), len(RUNS)) == (3, 2, 8)


@pytest.mark.parametrize("code", PYTHON + snippets(DOCS / "training.md", "python"))
def test_python_snippet(user_folder, code):
    assert run_python(code, user_folder).strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_command(user_folder, command, request):
    if "iter_160000.pth" in command:
        request.getfixturevalue("original_checkpoint")
    short = f"{SHORT} {SMALL}" if "outputs/from_" in command else SHORT
    output = run(command if "--do_eval" in command else f"{command} {short}", user_folder)
    folder = user_folder / re.search(r"Metrics: (.*)/metrics.json", output)[1]
    assert "eval_mean_iou" in json.loads((folder / "metrics.json").read_text())
    if "--do_eval" not in command:
        assert AutoModelForSemanticSegmentation.from_pretrained(folder).config.model_type == "mtaclip"


@pytest.mark.slow
def test_page_on_starting_points(user_folder, original_checkpoint):
    page = DOCS / "starting_points.md"
    codes = snippets(page, "python")
    assert len(codes) == 3
    output = run_python("".join(codes), user_folder)
    assert re.search(r"Left out of openai/clip-vit-base-patch16: \d+ tensors\n  logit_scale: ", output)
    assert "trainable params" in output
    (convert,) = (line for line in snippets(page, "bash") if "scripts/convert" in line)
    assert "Left out of iter_160000.pth" in run(convert, user_folder)
    for folder in ("parts", "merged", "converted"):
        model = AutoModelForSemanticSegmentation.from_pretrained(user_folder / "outputs" / folder)
        assert model.config.num_labels == 3


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
            container.mux(stream.encode(av.VideoFrame.from_image(make_scene(index)[0])))
        container.mux(stream.encode())
    return user_folder


@pytest.mark.slow
def test_python_snippet_of_the_page_on_inference(user_folder):
    (code,) = snippets(DOCS / "inference.md", "python")
    check = "\nassert label_maps[1].shape == (80, 100) and scores.shape[0] == model.config.num_labels"
    run_python(code + check, user_folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_command_of_the_page_on_inference(media_folder, number):
    commands = snippets(DOCS / "inference.md", "bash")
    assert len(commands) == 5
    run(f"{commands[number]} --max_eval_samples 3" if number < 2 else commands[number], media_folder)
    written = {
        2: ("predictions", {"photo.png", "photo_overlay.jpg", "photo.json"}),
        3: ("outputs/predictions", {"a.png", "more/b.png", "x/c.png", "drive_000000.png", "drive_000001.png"}),
        4: ("outputs/shared", {"a.png", "more/b.png"}),
    }
    if number in written:
        folder, names = media_folder / written[number][0], written[number][1]
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == names


@pytest.fixture(scope="module")
def first_run(user_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the README's first command has run, with a quarter of its steps, and what it printed."""
    install, train = INSTALL[0].split(" && ")
    assert install == 'pip install -e ".[train]"'
    folder = tmp_path_factory.mktemp("first")
    fewer = "--max_steps 200 --eval_steps 200 --save_steps 200 --max_eval_samples 24 --num_pictures 2"
    command = f"{train.replace('scripts/', f'{user_folder}/scripts/')} {fewer}"
    return folder / "outputs" / "scenes", run(command, folder)


@pytest.mark.slow
def test_first_command_trains_a_model_that_sees(first_run):
    folder, output = first_run
    mean_iou, constant = map(
        float, re.search(r"mean of \d+  IoU ([\d.]+) \(constant prediction: ([\d.]+)\)", output).groups()
    )
    assert mean_iou >= 0.6
    assert constant < 0.2
    with Image.open(next((folder / "pictures").glob("*.png"))) as picture:
        assert picture.width > 1000


@pytest.mark.slow
def test_trained_model_sees_the_same_in_bfloat16(first_run):
    model = AutoModelForSemanticSegmentation.from_pretrained(first_run[0]).eval()
    processor = AutoImageProcessor.from_pretrained(first_run[0])
    images = [make_scene(10_000 + index)[0] for index in range(16)]
    inputs, sizes = processor(images, return_tensors="pt"), [image.size[::-1] for image in images]
    maps = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = model(**inputs)
        maps.append(torch.stack(processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)))
    assert (maps[0] == maps[1]).double().mean() > 0.99


def test_ci_uses_the_second_command():
    install, test = INSTALL[1].split(" && ")
    lines = (README.parent / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == test
    assert install.replace("pip install", "pip install --quiet") in lines


@pytest.mark.parametrize("page", [README, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_pictures_and_pages_exist_and_pictures_are_small(page):
    for mark, target in re.findall(r"(!?)\[[^\]]*\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists()
        if mark:
            assert (page.parent / target).stat().st_size < 300_000
