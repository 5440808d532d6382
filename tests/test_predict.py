# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""scripts/predict.py as a user starts it: what it writes and leaves out, how it goes on and how it shares work."""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.data import DATASETS, SegmentationExamples, load_segmentation_dataset
from modeling_mtaclip.inference import InferenceOptions, Segmenter
from modeling_mtaclip.inference.predict import predict
from modeling_mtaclip.metrics import MeanIoU
from tests.tiny import CLASS_NAMES, varied_model


CITYSCAPES_CLASSES, ADE20K_CLASSES = DATASETS["cityscapes"].class_names, DATASETS["ade20k"].class_names


def save_model(folder: Path, **overrides) -> Path:
    varied_model(4, **overrides).save_pretrained(folder)
    MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def named_model(tmp_path_factory):
    """Makes models with given classes."""

    def make(names):
        token_ids = {name: [index % 8] for index, name in enumerate([*names, "none"])}
        folder = tmp_path_factory.mktemp("named")
        return save_model(folder, id2label=dict(enumerate(names)), class_token_ids=token_ids)

    return make


def random_image(index, height=70, width=90):
    blocks = np.random.default_rng(index).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width])


@pytest.fixture
def images(tmp_path):
    """Six images in two folders, of three sizes, one of them to be turned upright."""
    folder = tmp_path / "images"
    for index in range(6):
        path = folder / f"part{index % 2}" / f"{index}.{'jpg' if index < 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = random_image(index, width=80 + 5 * (index % 3))
        exif = image.getexif()
        exif[0x0112] = 6 if index == 1 else 1
        image.save(path, exif=exif)
    return folder


def results_of(folder, pattern="*.png"):
    """Label maps by the paths of their files."""
    return {str(path.relative_to(folder)): np.array(Image.open(path)) for path in sorted(folder.rglob(pattern))}


def expected_maps(model_dir, images, **options):
    segmenter = Segmenter(
        varied_model(4), MTAClipImageProcessor.from_pretrained(model_dir), InferenceOptions(**options)
    )
    return {
        str(path.relative_to(images).with_suffix(".png")): segmenter([Image.open(path)])[0].numpy()
        for path in sorted(images.rglob("*.*"))
    }


def assert_maps(results, expected):
    assert results.keys() == expected.keys()
    for name, labels in expected.items():
        assert results[name].shape == labels.shape
        assert (results[name] == labels).mean() > 0.999


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--batch_size", "4", "--num_threads", "1"], {}),
        (
            ["--inference_mode", "slide", "--window", "64", "--stride", "32", "16", "--batch_size", "3"],
            {"mode": "slide", "window": (64, 64), "stride": (32, 16)},
        ),
        (["--tta"], {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True}),
    ],
)
def test_index_maps_are_those_of_the_segmenter(model_dir, images, tmp_path, capsys, arguments, options):
    out = tmp_path / "out"
    assert predict([str(images), "--model_name_or_path", str(model_dir), "--output_dir", str(out), *arguments]) == 0
    assert "6 images predicted, 0 were there already, 0 left out" in capsys.readouterr().out
    expected = expected_maps(model_dir, images, **options)
    assert_maps(results_of(out), expected)
    assert len({label for labels in expected.values() for label in np.unique(labels)}) > 1
    with Image.open(out / "part0" / "0.png") as image:
        assert image.mode == "P"


def test_overlay_and_areas(model_dir, images, tmp_path):
    out = tmp_path / "out"
    path = images / "part1" / "1.jpg"
    arguments = [str(path), "--model_name_or_path", str(model_dir), "--output_dir", str(out)]
    assert predict([*arguments, "--format", "index", "overlay", "json"]) == 0
    labels = np.array(Image.open(out / "1.png"))
    assert labels.shape == (85, 70)  # turned upright
    areas = json.loads((out / "1.json").read_text())
    assert (areas["image"], areas["height"], areas["width"]) == (str(path), 85, 70)
    pixels = [each["pixels"] for each in areas["classes"]]
    assert pixels == sorted(pixels, reverse=True)
    assert sum(pixels) == labels.size
    for each in areas["classes"]:
        assert each["name"] == CLASS_NAMES[each["id"]]
        assert each["pixels"] == (labels == each["id"]).sum()
        assert each["share"] == each["pixels"] / labels.size
    palette = np.array(Image.open(out / "1.png").getpalette()[:9]).reshape(3, 3)
    overlay = np.array(Image.open(out / "1_overlay.jpg")).astype(int)
    assert overlay.shape[0] > 85
    expected = (np.array(Image.open(path).transpose(Image.Transpose.ROTATE_270)).astype(int) + palette[labels]) / 2
    assert np.abs(overlay[:85, :70] - expected).mean() < 12
    legend = overlay[85:].reshape(-1, 3)
    for each in areas["classes"]:
        assert (np.abs(legend - palette[each["id"]]).max(axis=1) < 40).any()


@pytest.mark.parametrize(
    ("names", "first_colors"),
    [
        (ADE20K_CLASSES, [(120, 120, 120), (180, 120, 120), (6, 230, 230)]),
        (CITYSCAPES_CLASSES, [(128, 64, 128), (244, 35, 232), (70, 70, 70)]),
    ],
)
def test_data_sets_keep_their_own_colors(named_model, images, tmp_path, names, first_colors):
    path, out = images / "part1" / "3.png", tmp_path / "out"
    arguments = [str(path), "--model_name_or_path", str(named_model(names)), "--output_dir", str(out)]
    assert predict([*arguments, "--format", "index", "overlay"]) == 0
    with Image.open(out / "3.png") as index:
        palette = np.array(index.getpalette()).reshape(-1, 3)
        labels = np.array(index)
    assert [tuple(color) for color in palette[:3].tolist()] == first_colors
    overlay = np.array(Image.open(out / "3_overlay.jpg")).astype(int)[: labels.shape[0], : labels.shape[1]]
    expected = (np.array(Image.open(path)).astype(int) + palette[labels]) / 2
    assert np.abs(overlay - expected).mean() < 12


def test_nothing_is_predicted_twice_or_overwritten(model_dir, images, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(images), "--model_name_or_path", str(model_dir), "--output_dir", str(out)]
    assert predict(arguments) == 0
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (out / "part1" / "1.png").unlink()
    assert predict([*arguments, "--format", "index", "json", "--batch_size", "2"]) == 0
    assert "6 images predicted" in capsys.readouterr().out
    assert len(list(out.rglob("*.json"))) == 6
    changed = {path for path in out.rglob("*.png") if path.stat().st_mtime_ns != times.get(path)}
    assert changed == {out / "part1" / "1.png"}
    assert predict([*arguments, "--format", "index", "json"]) == 0
    assert "0 images predicted, 6 were there already" in capsys.readouterr().out

    (out / "part0" / "0.png").write_bytes(b"mine")
    assert predict(arguments) == 2
    assert "part0/0.png is there already, and was not made by this model" in capsys.readouterr().err
    assert (out / "part0" / "0.png").read_bytes() == b"mine"
    assert predict([*arguments, "--overwrite"]) == 0
    assert "6 images predicted, 0 were there already" in capsys.readouterr().out
    assert_maps(results_of(out), expected_maps(model_dir, images))


@pytest.mark.parametrize(
    "options",
    [["--tta"], ["--inference_mode", "slide", "--window", "64", "--stride", "32"], ["--dtype", "bfloat16"], "model"],
)
def test_results_of_other_models_and_options_are_not_taken_for_these(model_dir, images, tmp_path, capsys, options):
    """Equal paths are not enough: the weights are compared."""
    out, folder = tmp_path / "out", tmp_path / "model"
    shutil.copytree(model_dir, folder)
    arguments = [str(images), "--model_name_or_path", str(folder), "--output_dir", str(out)]
    assert predict(arguments) == 0
    before = results_of(out)
    if options == "model":
        varied_model(5).save_pretrained(folder)
        options = []
    assert predict([*arguments, *options]) == 2
    assert "not made by this model with these options" in capsys.readouterr().err
    assert_maps(results_of(out), before)


def test_results_of_other_images_are_not_taken_for_these(model_dir, images, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(images), "--model_name_or_path", str(model_dir), "--output_dir", str(out)]
    assert predict(arguments) == 0
    (out / "part0" / "4.png").unlink()
    random_image(77).save(images / "part0" / "2.jpg")
    assert predict(arguments) == 1
    captured = capsys.readouterr()
    assert "1 images predicted, 4 were there already, 1 left out" in captured.out
    assert "part0/2.png is there already, and was made from another input" in captured.err
    assert predict([*arguments, "--overwrite"]) == 0
    assert_maps(results_of(out), expected_maps(model_dir, images))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.jpg", "a.png"),
        ("a.jpg", "A.png"),
        ("cafe\u0301.jpg", "caf\u00e9.png"),
        ("drive.mp4", "drive.jpg.mkv"),
        ("drive.mp4", "drive_000003.png"),
        ("drive_000003.png", "drive.mp4"),
    ],
)
def test_two_inputs_never_write_one_file(model_dir, tmp_path, capsys, first, second):
    for name in (first, second):
        (tmp_path / name.replace(".jpg.mkv", ".mkv")).write_bytes(b"")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("the file system takes the names for one")
    assert predict([str(tmp_path), "--model_name_or_path", str(model_dir), "--output_dir", str(tmp_path / "out")]) == 2
    assert "would both be written as" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_with_equal_names_in_two_folders(model_dir, images, tmp_path, capsys):
    (images / "part1" / "0.jpg").write_bytes((images / "part1" / "1.jpg").read_bytes())
    options = ["--model_name_or_path", str(model_dir), "--output_dir", str(tmp_path / "out")]
    assert predict([str(images / "part0"), str(images / "part1"), *options]) == 2
    assert "0.jpg would both be written as 0.png" in capsys.readouterr().err
    assert predict([str(images / "part0" / "0.jpg"), str(images / "part0" / "*.jpg"), *options]) == 0
    assert sorted(results_of(tmp_path / "out")) == ["0.png", "2.png"]


def test_output_folder_that_holds_the_input_or_is_it(model_dir, images, tmp_path, capsys):
    options = ["--model_name_or_path", str(model_dir), "--output_dir"]
    for _ in range(2):
        assert predict([str(images / "part0"), *options, str(images)]) == 0
        assert sorted(path.name for path in images.glob("*.png")) == ["0.png", "2.png", "4.png"]
    assert "0 images predicted, 3 were there already" in capsys.readouterr().out
    photos, among = str(images / "part0" / "*.jpg"), str(images / "part0")
    assert predict([photos, *options, among, "--format", "overlay", "json"]) == 0
    capsys.readouterr()
    assert predict([among, *options, among, "--format", "overlay", "json"]) == 0
    output = capsys.readouterr().out
    assert "2 an earlier result" in output
    assert "1 images predicted, 2 were there already" in output
    before = (images / "part0" / "4.png").read_bytes()
    assert predict([str(images / "part0"), *options, str(images / "part0"), "--overwrite"]) == 2
    assert "part0/4.png is an input: choose another --output_dir" in capsys.readouterr().err
    assert (images / "part0" / "4.png").read_bytes() == before


def test_what_is_no_input_is_counted(model_dir, images, tmp_path, capsys):
    (images / ".ipynb_checkpoints").mkdir()
    random_image(1).save(images / ".ipynb_checkpoints" / "0-checkpoint.png")
    (images / "notes.txt").write_text("about")
    options = ["--model_name_or_path", str(model_dir), "--output_dir", str(images / "out")]
    assert predict([str(images), *options]) == 0
    output = capsys.readouterr().out
    assert "Files that are no input: 1 hidden, 1 not an image" in output
    assert "6 images predicted" in output
    assert predict([str(images), *options]) == 0
    output = capsys.readouterr().out
    assert "6 in an excluded folder" in output
    assert "0 images predicted, 6 were there already, 0 left out" in output


def test_unreadable_files_are_reported_and_left_out(model_dir, images, tmp_path, capsys):
    out = tmp_path / "out"
    whole = (images / "part0" / "4.png").read_bytes()
    (images / "part0" / "4.png").write_bytes(whole[: len(whole) // 2])
    (images / "part1" / "5.png").write_text("no image")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(images / "deep.png")
    assert (
        predict([str(images), "--model_name_or_path", str(model_dir), "--output_dir", str(out), "--batch_size", "4"])
        == 1
    )
    captured = capsys.readouterr()
    assert "4 images predicted, 0 were there already, 3 left out" in captured.out
    for name in ("part0/4.png", "part1/5.png", "deep.png has the mode 'I;16'"):
        assert name in captured.err
    assert sorted(results_of(out)) == ["part0/0.png", "part0/2.png", "part1/1.png", "part1/3.png"]


def test_a_full_disk_is_named_and_leaves_no_partial_result(model_dir, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"

    def fail(self, path, *options, **more):
        path.write_bytes(b"half")
        if path.name != ".0.png.partial":
            time.sleep(0.3)  # other threads still write when the first has failed
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    arguments = [str(images), "--model_name_or_path", str(model_dir), "--output_dir", str(out)]
    assert predict(arguments) == 3
    error = capsys.readouterr().err
    assert f"Results can't be written into {out}" in error
    assert "No space left on device" in error
    assert not [path for path in out.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert predict(arguments) == 0
    assert not list(out.rglob("*.partial"))


def test_interruption_says_how_to_go_on(model_dir, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    calls = []

    def interrupted(self, images):
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Segmenter.predict(self, images)

    class Interrupted(Segmenter):
        predict = interrupted

    monkeypatch.setattr("modeling_mtaclip.inference.predict.Segmenter", Interrupted)
    arguments = [str(images), "--model_name_or_path", str(model_dir), "--output_dir", str(out)]
    assert predict(arguments) == 130
    assert "The same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert predict(arguments) == 0
    assert "4 images predicted, 2 were there already" in capsys.readouterr().out
    assert_maps(results_of(out), expected_maps(model_dir, images))


def test_every_image_belongs_to_one_share(model_dir, images, tmp_path, capsys, monkeypatch):
    """Processes without a launcher, as on machines that can't reach each other."""
    out = tmp_path / "out"
    (images / "part1" / "5.png").write_text("no image")
    statuses, reports = [], []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "4")
        statuses.append(predict([str(images), "--model_name_or_path", str(model_dir), "--output_dir", str(out)]))
        reports.append(capsys.readouterr().out.split(". Results")[0])
    assert sorted(statuses) == [0, 0, 0, 1]
    assert sorted(reports) == sorted(
        [
            "2 images predicted, 0 were there already, 0 left out",
            "1 images predicted, 0 were there already, 1 left out",
            "1 images predicted, 0 were there already, 0 left out",
            "1 images predicted, 0 were there already, 0 left out",
        ]
    )
    assert len(results_of(out)) == 5


LAUNCHERS = {
    "python": [],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch"],
}


def start(repository_dir, *arguments, launcher="python"):
    command = [sys.executable, *LAUNCHERS[launcher], str(repository_dir / "scripts" / "predict.py")]
    environment = os.environ | {"PYTHONPATH": str(repository_dir), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_script_on_processes_that_share_the_images(repository_dir, model_dir, images, tmp_path, launcher):
    out = tmp_path / "out"
    arguments = [images, "--model_name_or_path", model_dir, "--output_dir", out]
    process = start(repository_dir, *arguments, launcher=launcher)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("6 images predicted, 0 were there already, 0 left out") == 1
    assert_maps(results_of(out), expected_maps(model_dir, images))

    # A process with nothing left to do waits for the one that fails, and all say so.
    (out / "part0" / "2.png").unlink()
    (images / "part0" / "2.jpg").write_text("no image")
    process = start(repository_dir, *arguments, launcher=launcher)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "0 images predicted, 5 were there already, 1 left out" in output


@pytest.mark.slow
def test_a_killed_run_goes_on(repository_dir, model_dir, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for index in range(60):
        random_image(index).save(images / f"{index:02d}.png")
    arguments = [images, "--model_name_or_path", model_dir, "--output_dir", out]
    process = start(repository_dir, *arguments)
    while not len(list(out.glob("*.png"))) > 3 and process.poll() is None:
        time.sleep(0.01)
    # With all its processes, as schedulers do: a worker whose parent dies while it starts would never end.
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 3 < len(done) < 60
    process = start(repository_dir, *arguments)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"{60 - len(done)} images predicted, {len(done)} were there already" in output
    assert all((out / name).stat().st_mtime_ns == changed for name, changed in done.items())
    assert_maps(results_of(out), expected_maps(model_dir, images))


def test_video(model_dir, tmp_path, capsys, monkeypatch):
    av = pytest.importorskip("av", reason="needs PyAV: pip install av")
    path, out = tmp_path / "drive.mkv", tmp_path / "out"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)  # without loss
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for index in range(5):
            frame = av.VideoFrame.from_image(random_image(index, 64, 96))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    arguments = [str(path), "--model_name_or_path", str(model_dir), "--output_dir", str(out)]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert predict(arguments) == 0
    assert sorted(results_of(out)) == ["drive_000001.png", "drive_000003.png"]
    monkeypatch.undo()
    assert predict(arguments) == 0
    assert "3 images predicted, 2 were there already" in capsys.readouterr().out
    segmenter = Segmenter(varied_model(4), MTAClipImageProcessor.from_pretrained(model_dir))
    for index, labels in enumerate(results_of(out).values()):
        assert (labels == segmenter([random_image(index, 64, 96)])[0].numpy()).mean() > 0.999

    arguments += ["--format", "video"]
    for report in ("0 images predicted, 5 were there already, 0 left out",) * 2:
        assert predict(arguments) == 0
        assert report in capsys.readouterr().out
        written = (out / "drive_overlay.mp4").stat().st_mtime_ns
    palette = np.array(Image.open(out / "drive_000000.png").getpalette()[:9]).reshape(3, 3)
    with av.open(str(out / "drive_overlay.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == 5
    for index, (frame, labels) in enumerate(zip(frames, results_of(out).values(), strict=True)):
        expected = (np.array(random_image(index, 64, 96)).astype(int) + palette[labels]) / 2
        assert np.abs(frame - expected).mean() < 25  # colors are halved in both directions
    assert predict(arguments) == 0
    assert (out / "drive_overlay.mp4").stat().st_mtime_ns == written
    (out / "drive_overlay.mp4").write_bytes(b"mine")
    assert predict(arguments) == 2
    assert "drive_overlay.mp4 is there already" in capsys.readouterr().err

    path.write_bytes(path.read_bytes()[:40])
    assert predict([str(path), "--model_name_or_path", str(model_dir), "--output_dir", str(tmp_path / "other")]) == 1
    assert "drive.mkv can't be read to its end" in capsys.readouterr().err


def test_video_without_its_library(model_dir, tmp_path, capsys, monkeypatch):
    (tmp_path / "drive.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    out = str(tmp_path / "out")
    assert predict([str(tmp_path / "drive.mp4"), "--model_name_or_path", str(model_dir), "--output_dir", out]) == 1
    assert "pip install av" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(model_dir, images, tmp_path, dtype):
    out = tmp_path / "out"
    assert (
        predict([str(images), "--model_name_or_path", str(model_dir), "--output_dir", str(out), "--dtype", dtype]) == 0
    )
    expected = expected_maps(model_dir, images)
    agreement = [(labels == expected[name]).mean() for name, labels in results_of(out).items()]
    assert np.mean(agreement) > 0.9


def test_bad_options(model_dir, images, tmp_path, capsys):
    def error_of(*arguments, inputs=(images,), model=model_dir):
        command = [*inputs, "--model_name_or_path", model, "--output_dir", tmp_path / "out", *arguments]
        assert predict([str(each) for each in command]) == 2
        return capsys.readouterr().err

    assert "'missing.jpg' is neither an image or video nor a folder" in error_of(inputs=["missing.jpg"])
    assert "must not exceed" in error_of("--inference_mode", "slide", "--window", "64")
    assert "No MTA-CLIP model could be loaded" in error_of(model=tmp_path)
    assert "needs a model with the classes of Cityscapes" in error_of("--format", "cityscapes")
    assert "needs a model with the classes of ADE20K" in error_of("--format", "ade20k")
    assert "The device 'cuda:99' can't be used" in error_of("--device", "cuda:99")
    assert "--num_threads must be positive, got 0" in error_of("--num_threads", "0")
    random_image(0).save(images / "part0" / "0.png")
    assert "0.png would both be written as part0/0" in error_of()
    assert not (tmp_path / "out").exists()


def test_ade20k_format(named_model, shared_dir, tmp_path):
    """Names and values as in the annotations of the data set: from 1, so that its own evaluation can compare them."""
    folder = shared_dir / "data" / "ade20k" / "ADEChallengeData2016"
    out, plain = tmp_path / "out", tmp_path / "plain"
    model = named_model(ADE20K_CLASSES)
    arguments = [str(folder / "images" / "validation"), "--model_name_or_path", str(model)]
    assert predict([*arguments, "--output_dir", str(out), "--format", "ade20k"]) == 0
    assert predict([*arguments, "--output_dir", str(plain)]) == 0
    annotations = results_of(folder / "annotations" / "validation")
    written, labels = results_of(out), results_of(plain)
    assert written.keys() == annotations.keys() == labels.keys()
    for name, annotation in annotations.items():
        assert (written[name].dtype, written[name].shape) == (annotation.dtype, annotation.shape)
        assert np.array_equal(written[name], labels[name] + 1)
    assert predict([*arguments, "--output_dir", str(tmp_path / "both"), "--format", "ade20k", "index"]) == 2
    assert predict([*arguments, "--output_dir", str(out)]) == 2


@pytest.mark.slow
def test_cityscapes_own_evaluation_gives_our_figures(named_model, shared_dir, tmp_path, monkeypatch):
    pytest.importorskip("cityscapesscripts", reason="needs cityscapesscripts: pip install cityscapesscripts")
    root, out = shared_dir / "data" / "cityscapes", tmp_path / "results"
    images = str(root / "leftImg8bit" / "val")
    # A model without training meets some classes if those that it predicts most get the names of the most frequent.
    unnamed = named_model(CITYSCAPES_CLASSES)
    assert predict([images, "--model_name_or_path", str(unnamed), "--output_dir", str(tmp_path / "unnamed")]) == 0
    areas = np.bincount(np.stack(list(results_of(tmp_path / "unnamed").values())).ravel(), minlength=19)
    by_frequency = ["road", "vegetation", "building", "car", "sidewalk"]
    by_frequency += [name for name in CITYSCAPES_CLASSES if name not in by_frequency]
    names = [by_frequency[rank] for rank in np.argsort(np.argsort(-areas))]
    model = named_model(names)
    assert (
        predict([images, "--model_name_or_path", str(model), "--output_dir", str(out), "--format", "cityscapes"]) == 0
    )

    monkeypatch.setenv("CITYSCAPES_RESULTS", str(out))
    official = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    truths = sorted(map(str, (root / "gtFine" / "val").rglob("*_labelIds.png")))
    options = official.args
    options.quiet, options.evalInstLevelScore, options.exportFile = True, False, str(tmp_path / "result.json")
    options.predictionPath, options.predictionWalk = None, None
    predictions = [official.getPrediction(options, truth) for truth in truths]
    official.evaluateImgLists(predictions, truths, options)
    theirs = json.loads((tmp_path / "result.json").read_text())

    data = load_segmentation_dataset("cityscapes", root)
    segmenter = Segmenter(type(varied_model(4)).from_pretrained(model), MTAClipImageProcessor.from_pretrained(model))
    metric = MeanIoU(num_labels=19, ignore_index=data.ignore_index)
    for example in SegmentationExamples(data, "validation"):
        labels = segmenter([example["image"]])[0]
        prediction = np.array([CITYSCAPES_CLASSES.index(name) for name in names])[labels]
        metric.add(prediction=prediction, reference=example["annotation"])
    ours = metric.compute()
    assert len(truths) == len(predictions) > 1
    expected = [theirs["classScores"][name] for name in CITYSCAPES_CLASSES]
    np.testing.assert_allclose(ours["per_category_iou"], expected, rtol=0, atol=1e-12)
    assert np.nanmax(expected) > 0.1
    assert ours["mean_iou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)


def test_cityscapes_names(named_model, images, tmp_path, capsys):
    model = named_model(CITYSCAPES_CLASSES)
    arguments = [
        str(images),
        "--model_name_or_path",
        str(model),
        "--output_dir",
        str(tmp_path / "out"),
        "--format",
        "cityscapes",
    ]
    assert predict(arguments) == 2
    assert "names like aachen_000000_000019_leftImg8bit.png, got part0/0" in capsys.readouterr().err
