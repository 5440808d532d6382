# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""scripts/predict.py as a user starts it: what it writes and leaves out, how it goes on and how it shares work."""

import errno
import itertools
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

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.data import DATASETS
from modeling_mtaclip.inference import InferenceOptions, Segmenter
from modeling_mtaclip.inference.predict import predict
from tests.tiny import CLASS_NAMES, assert_same_labels, varied_model


SLIDE = ["--inference_mode", "slide", "--window", "64"]


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


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(model_dir, images, out, capsys):
    """Runs the command, by default on the images into `out`; its exit status and all that it printed."""

    def run(*arguments, inputs=(images,), model=model_dir, output_dir=out):
        command = [*inputs, "--model_name_or_path", model, "--output_dir", output_dir, *arguments]
        status = predict([str(each) for each in command])
        return status, "".join(capsys.readouterr())

    return run


def report(predicted, present=0, left_out=0):
    return f"{predicted} images predicted, {present} were there already, {left_out} left out"


def results_of(folder):
    """Label maps by the paths of their files."""
    return {str(path.relative_to(folder)): np.array(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


def segmenter_of(model_dir, **options):
    processor = MTAClipImageProcessor.from_pretrained(model_dir)
    return Segmenter(MTAClipForSemanticSegmentation.from_pretrained(model_dir), processor, InferenceOptions(**options))


def expected_maps(model_dir, images, **options):
    segmenter = segmenter_of(model_dir, **options)
    return {
        str(path.relative_to(images).with_suffix(".png")): segmenter([path])[0].numpy()
        for path in sorted(images.rglob("*.*"))
    }


def assert_maps(results, expected):
    assert results.keys() == expected.keys()
    for name, labels in expected.items():
        assert_same_labels(results[name], labels)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--batch_size", "4", "--num_threads", "1"], {}),
        (
            [*SLIDE, "--stride", "32", "16", "--batch_size", "3"],
            {"mode": "slide", "window": (64, 64), "stride": (32, 16)},
        ),
        (["--tta"], {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True}),
    ],
)
def test_index_maps_are_those_of_the_segmenter(run, model_dir, images, out, arguments, options):
    status, printed = run(*arguments)
    assert status == 0
    assert report(6) in printed
    expected = expected_maps(model_dir, images, **options)
    assert_maps(results_of(out), expected)
    assert len({label for labels in expected.values() for label in np.unique(labels)}) > 1
    with Image.open(out / "part0" / "0.png") as image:
        assert image.mode == "P"


def test_overlay_and_areas(run, images, out):
    path = images / "part1" / "1.jpg"
    assert run("--format", "index", "overlay", "json", inputs=[path])[0] == 0
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
    expected = (np.array(Image.open(path).transpose(Image.Transpose.ROTATE_270)).astype(int) + palette[labels]) / 2
    assert np.abs(overlay[:85, :70] - expected).mean() < 12
    legend = overlay[85:].reshape(-1, 3)
    for each in areas["classes"]:
        assert (np.abs(legend - palette[each["id"]]).max(axis=1) < 40).any()


def test_nothing_is_predicted_twice_or_overwritten(run, model_dir, images, out):
    assert run()[0] == 0
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (out / "part1" / "1.png").unlink()
    assert report(6) in run("--format", "index", "json", "--batch_size", "2")[1]
    assert len(list(out.rglob("*.json"))) == 6
    changed = {path for path in out.rglob("*.png") if path.stat().st_mtime_ns != times.get(path)}
    assert changed == {out / "part1" / "1.png"}
    assert report(0, 6) in run("--format", "index", "json")[1]

    (out / "part0" / "0.png").write_bytes(b"mine")
    status, printed = run()
    assert status == 2
    assert "part0/0.png is there already, and was not made from this input by this model" in printed
    assert (out / "part0" / "0.png").read_bytes() == b"mine"
    assert report(6) in run("--overwrite")[1]
    assert_maps(results_of(out), expected_maps(model_dir, images))


@pytest.mark.parametrize(
    "change",
    [["--tta"], ["--inference_mode", "whole"], ["--stride", "16"], ["--dtype", "bfloat16"], ["model"], ["image"]],
    ids=" ".join,
)
def test_results_of_other_inputs_models_and_options_are_not_taken_for_these(run, model_dir, images, out, change):
    """Equal paths are not enough: contents are compared."""
    model, arguments = shutil.copytree(model_dir, images.parent / "model"), [*SLIDE, "--stride", "32"]
    assert run(*arguments, model=model)[0] == 0
    before = results_of(out)
    if change == ["model"]:
        varied_model(5).save_pretrained(model)
    elif change == ["image"]:
        random_image(77).save(images / "part0" / "2.jpg")
    else:
        arguments += change
    status, printed = run(*arguments, model=model)
    assert status == 2
    assert "not made from this input by this model with these options" in printed
    assert_maps(results_of(out), before)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.jpg", "a.png"),
        ("a.jpg", "A.png"),
        ("cafe\u0301.jpg", "caf\u00e9.png"),
        ("drive.mp4", "drive.mkv"),
        ("drive.mp4", "drive_000003.png"),
        ("drive_000003.png", "drive.mp4"),
    ],
)
def test_two_inputs_never_write_one_file(run, tmp_path, out, first, second):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for name in (first, second):
        (inputs / name).write_bytes(b"")
    if len(list(inputs.iterdir())) < 2:
        pytest.skip("the file system takes the names for one")
    status, printed = run(inputs=[inputs])
    assert status == 2
    assert "would both be written as" in printed
    assert not out.exists()


def test_files_with_equal_names_in_two_folders(run, images, out):
    (images / "part1" / "0.jpg").write_bytes((images / "part1" / "1.jpg").read_bytes())
    status, printed = run(inputs=[images / "part0", images / "part1"])
    assert status == 2
    assert "0.jpg would both be written as 0.png" in printed
    assert run(inputs=[images / "part0" / "0.jpg", images / "part0" / "*.jpg"])[0] == 0
    assert sorted(results_of(out)) == ["0.png", "2.png"]


def test_output_folder_that_holds_the_input_or_is_it(run, images):
    among = images / "part0"
    for result in (report(3), report(0, 3)):
        assert result in run(inputs=[among], output_dir=images)[1]
        assert sorted(path.name for path in images.glob("*.png")) == ["0.png", "2.png", "4.png"]
    formats = ["--format", "overlay", "json"]
    assert run(*formats, inputs=[among / "*.jpg"], output_dir=among)[0] == 0
    _, printed = run(*formats, inputs=[among], output_dir=among)
    assert "2 an earlier result" in printed
    assert report(1, 2) in printed
    before = (among / "4.png").read_bytes()
    status, printed = run("--overwrite", inputs=[among], output_dir=among)
    assert status == 2
    assert "part0/4.png is an input: choose another --output_dir" in printed
    assert (among / "4.png").read_bytes() == before


def test_what_is_no_input_is_counted(run, images):
    (images / ".ipynb_checkpoints").mkdir()
    random_image(1).save(images / ".ipynb_checkpoints" / "0-checkpoint.png")
    (images / "notes.txt").write_text("about")
    _, printed = run(output_dir=images / "out")
    assert "Files that are no input: 1 hidden, 1 not an image" in printed
    assert report(6) in printed
    _, printed = run(output_dir=images / "out")
    assert "6 in an excluded folder" in printed
    assert report(0, 6) in printed


def test_unreadable_files_are_reported_and_left_out(run, images, out):
    whole = (images / "part0" / "4.png").read_bytes()
    (images / "part0" / "4.png").write_bytes(whole[: len(whole) // 2])
    (images / "part1" / "5.png").write_text("no image")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(images / "deep.png")
    status, printed = run("--batch_size", "4")
    assert status == 1
    assert report(4, 0, 3) in printed
    for name in ("part0/4.png", "part1/5.png", "deep.png has the mode 'I;16'"):
        assert name in printed
    assert sorted(results_of(out)) == ["part0/0.png", "part0/2.png", "part1/1.png", "part1/3.png"]


def test_a_full_disk_is_named_and_leaves_no_partial_result(run, out, monkeypatch):
    def fail(self, path, *options, **more):
        path.write_bytes(b"half")
        if path.name != ".0.png.partial":
            time.sleep(0.3)  # other threads still write when the first has failed
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    status, printed = run()
    assert status == 3
    assert f"Results can't be written into {out}" in printed
    assert "No space left on device" in printed
    assert not [path for path in out.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert run()[0] == 0
    assert not list(out.rglob("*.partial"))


def test_interruption_says_how_to_go_on(run, model_dir, images, out, monkeypatch):
    calls = []

    class Interrupted(Segmenter):
        def predict(self, images):
            calls.append(images)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().predict(images)

    monkeypatch.setattr("modeling_mtaclip.inference.predict.Segmenter", Interrupted)
    status, printed = run()
    assert status == 130
    assert "The same command goes on" in printed
    monkeypatch.undo()
    assert report(4, 2) in run()[1]
    assert_maps(results_of(out), expected_maps(model_dir, images))


def test_every_image_belongs_to_one_share(run, images, out, monkeypatch):
    """Processes without a launcher, as on machines that can't reach each other."""
    (images / "part1" / "5.png").write_text("no image")
    for rank, expected in enumerate((report(2), report(1, 0, 1), report(1), report(1))):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "4")
        status, printed = run()
        assert expected in printed
        assert status == int("1 left out" in expected)
    assert len(results_of(out)) == 5


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(repository_dir, *arguments, launcher=()):
    command = [sys.executable, *launcher, str(repository_dir / "scripts" / "predict.py")]
    environment = os.environ | {"PYTHONPATH": str(repository_dir), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], env=environment, start_new_session=True, **pipes)


@pytest.mark.slow
def test_script_on_processes_that_share_the_images(repository_dir, model_dir, images, out):
    arguments = [images, "--model_name_or_path", model_dir, "--output_dir", out]
    process = start(repository_dir, *arguments, launcher=TORCHRUN)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count(report(6)) == 1
    assert_maps(results_of(out), expected_maps(model_dir, images))

    # A process with nothing left to do waits for the one that fails, and all say so.
    (out / "part0" / "2.png").unlink()
    (images / "part0" / "2.jpg").write_text("no image")
    process = start(repository_dir, *arguments, launcher=TORCHRUN)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert report(0, 5, 1) in output


@pytest.mark.slow
def test_a_killed_run_goes_on(repository_dir, model_dir, tmp_path, out):
    images = tmp_path / "many"
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
    assert report(60 - len(done), len(done)) in output
    assert all((out / name).stat().st_mtime_ns == changed for name, changed in done.items())
    assert_maps(results_of(out), expected_maps(model_dir, images))


def test_video(run, model_dir, tmp_path, out, monkeypatch):
    av = pytest.importorskip("av", reason="needs PyAV: pip install av")
    path, images = tmp_path / "drive.mkv", [random_image(index, 64, 96) for index in range(5)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)  # without loss
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(inputs=[path])[0] == 0
    assert sorted(results_of(out)) == ["drive_000001.png", "drive_000003.png"]
    monkeypatch.undo()
    assert report(3, 2) in run(inputs=[path])[1]
    segmenter, label_maps = segmenter_of(model_dir), list(results_of(out).values())
    for image, labels in zip(images, label_maps, strict=True):
        assert_same_labels(labels, segmenter([image])[0].numpy())

    overlay = out / "drive_overlay.mp4"
    assert report(0, 5) in run("--format", "video", inputs=[path])[1]
    written = overlay.stat().st_mtime_ns
    palette = np.array(Image.open(out / "drive_000000.png").getpalette()[:9]).reshape(3, 3)
    with av.open(str(overlay)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    for image, frame, labels in zip(images, frames, label_maps, strict=True):
        expected = (np.array(image).astype(int) + palette[labels]) / 2
        assert np.abs(frame - expected).mean() < 25  # colors are halved in both directions
    assert report(0, 5) in run("--format", "video", inputs=[path])[1]
    assert overlay.stat().st_mtime_ns == written
    overlay.write_bytes(b"mine")
    status, printed = run("--format", "video", inputs=[path])
    assert status == 2
    assert "drive_overlay.mp4 is there already" in printed

    path.write_bytes(path.read_bytes()[:40])
    status, printed = run(inputs=[path], output_dir=tmp_path / "other")
    assert status == 1
    assert "drive.mkv can't be read to its end" in printed
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install av" in run(inputs=[path], output_dir=tmp_path / "other")[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(run, model_dir, images, out, dtype):
    assert run("--dtype", dtype)[0] == 0
    expected = expected_maps(model_dir, images)
    assert np.mean([(labels == expected[name]).mean() for name, labels in results_of(out).items()]) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inference_mode", "slide", "--window", "64"], "must not exceed"),
        (["--format", "cityscapes"], "needs a model with the classes of Cityscapes"),
        (["--format", "ade20k"], "needs a model with the classes of ADE20K"),
        (["--device", "cuda:99"], "The device 'cuda:99' can't be used"),
        (["--num_threads", "0"], "--num_threads must be positive, got 0"),
        (["--inputs", "missing.jpg"], "'missing.jpg' is neither an image or video nor a folder"),
        (["--model"], "No MTA-CLIP model could be loaded"),
    ],
)
def test_bad_options(run, tmp_path, out, arguments, message):
    options = {"--inputs": {"inputs": ["missing.jpg"]}, "--model": {"model": tmp_path}}.get(arguments[0])
    status, printed = run(**options) if options else run(*arguments)
    assert status == 2
    assert message in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("dataset", "images", "ending", "order"),
    [
        ("ade20k", "ade20k/ADEChallengeData2016/images/validation", (".jpg", ".png"), 1),
        ("cityscapes", "cityscapes/leftImg8bit/val", ("_leftImg8bit.png", "_pred.png"), -1),
    ],
)
def test_formats_of_benchmarks(run, named_model, shared_dir, out, tmp_path, dataset, images, ending, order):
    """The values of the data set's own annotations, whatever the order of the model's classes, and its colors."""
    info, files = DATASETS[dataset], sorted((shared_dir / "data" / images).rglob("*.*"))[:2]
    where = {"inputs": files, "model": named_model(info.class_names[::order])}
    assert run("--format", dataset, **where)[0] == 0
    assert run(output_dir=tmp_path / "plain", **where)[0] == 0
    written, plain = results_of(out), results_of(tmp_path / "plain")
    assert [*written] == [path.name.replace(*ending) for path in files]
    for values, (name, labels) in zip(written.values(), plain.items(), strict=True):
        assert values.dtype == np.uint8
        assert np.array_equal(values, np.array(info.values[::order])[labels])
        if order == 1:
            palette = Image.open(tmp_path / "plain" / name).getpalette()
            assert palette[: 3 * len(info.palette)] == list(itertools.chain(*info.palette))
    status, printed = run("--format", dataset, "index", output_dir=tmp_path / "both", **where)
    assert (status == 2) == ("use the same file names" in printed) == (dataset == "ade20k")
    # A map of other values is not taken for one of class ids.
    assert run(**where)[0] == (2 if dataset == "ade20k" else 0)


def test_cityscapes_names(run, named_model):
    status, printed = run("--format", "cityscapes", model=named_model(DATASETS["cityscapes"].class_names))
    assert status == 2
    assert "names like aachen_000000_000019_leftImg8bit.png, got part0/0" in printed
