# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run says of data and predictions: every figure, whatever the processes, batches and ways to read, and the
files that could not be used."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from modeling_mtaclip.data import DATASETS
from modeling_mtaclip.metrics import BoundaryScores, MeanIoU
from tests.processes import run_on_processes
from tests.training.conftest import draw_folder, prepare


CITYSCAPES_CLASSES = DATASETS["cityscapes"].class_names


pytestmark = pytest.mark.slow

ONCE_AT_THE_END = {"eval_strategy": "no", "save_strategy": "no", "num_pictures": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes of two sizes whose classes have Cityscapes' names, 8 for training, 5 for validation; and in `out`, a
    model that has seen them for a second."""
    folder = tmp_path_factory.mktemp("named")
    draw_folder(folder / "data", num_validation=5)
    (folder / "data" / "classes.json").write_text(json.dumps(CITYSCAPES_CLASSES))
    prepare(folder, max_steps=12, learning_rate=5e-3, do_train=True, **ONCE_AT_THE_END).execute()
    return folder


def evaluate(folder, output, **more):
    saved = {"dataset_name": folder / "data", "model_name_or_path": folder / "out", "do_eval": True}
    prepare(folder, output_dir=output, **saved, boundary_metrics=True, num_pictures=0, use_cpu=True, **more).execute()


def figures_of(output):
    metrics = json.loads((output / "metrics.json").read_text())
    timings = ("runtime", "per_second")
    return {
        key: value
        for key, value in metrics.items()
        if key == "classes" or (key.startswith("eval_") and not key.endswith(timings))
    }


@pytest.fixture(scope="module")
def figures(folder):
    """The figures of one process that takes one image after the other."""
    evaluate(folder, folder / "alone")
    return figures_of(folder / "alone")


@pytest.fixture(scope="module")
def predictions(folder):
    """Predicted and annotated label maps by the names of the images, without the trainer."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "out").eval()
    processor, data = AutoImageProcessor.from_pretrained(folder / "out"), folder / "data"
    maps = {}
    for path in sorted((data / "images" / "val").iterdir()):
        annotation = np.array(Image.open(data / "annotations" / "val" / path.name))
        with torch.no_grad():
            outputs = model(**processor(Image.open(path), return_tensors="pt"))
        (prediction,) = processor.post_process_semantic_segmentation(outputs, [annotation.shape])
        maps[f"val/{path.name}"] = prediction.numpy(), annotation
    return maps


def mean_iou(maps, num_labels=19):
    predicted, annotated = zip(*maps, strict=True)
    return MeanIoU(num_labels=num_labels).compute(predictions=predicted, references=annotated)


def close(value):
    return pytest.approx(value, rel=0, abs=1e-12, nan_ok=True)


def test_figures_are_those_of_the_predictions_at_the_size_of_the_annotations(figures, predictions):
    expected = mean_iou(predictions.values())
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        assert figures[f"eval_{name}"] == close(expected[name])
    # Scenes have the first 8 classes.
    for index, name in enumerate(CITYSCAPES_CLASSES[:8]):
        assert figures["classes"][name]["iou"] == close(expected["per_category_iou"][index])
    annotated = np.concatenate([annotation.ravel() for _, annotation in predictions.values()])
    shares = np.bincount(annotated[annotated < 255], minlength=19)
    iou = np.nan_to_num(expected["per_category_iou"])
    assert figures["eval_frequency_weighted_iou"] == close((shares * iou).sum() / shares.sum())
    assert 0 < figures["eval_mean_iou"] < 1


def test_boundary_figures_are_those_of_cityscapes_bands(figures, predictions):
    scores = BoundaryScores(19, iou_ratio=0.005)
    for prediction, annotation in predictions.values():
        scores.add(prediction=prediction, reference=annotation)
    expected = scores.compute()
    for name in ("boundary_iou", "boundary_f_score"):
        assert figures[f"eval_{name}"] == close(expected[name])
        for index, label in enumerate(CITYSCAPES_CLASSES[:8]):
            assert figures["classes"][label][name] == close(expected[f"per_category_{name}"][index])
    assert figures["eval_boundary_iou"] > 0
    assert figures["classes"]["bicycle"] == dict.fromkeys(("iou", "accuracy", "boundary_iou", "boundary_f_score"))


def test_categories_are_groups_of_classes(figures, predictions):
    # Road and sidewalk; building, wall and fence; pole, traffic light and traffic sign.
    groups = np.array([0, 0, 1, 1, 1, 2, 2, 2, *[3] * 247, 255], dtype=np.uint8)
    expected = mean_iou([tuple(groups[each] for each in maps) for maps in predictions.values()], num_labels=4)
    categories = figures["eval_categories"]
    for index, name in enumerate(("flat", "construction", "object")):
        assert categories[name] == close(expected["per_category_iou"][index])
    assert all(categories[name] is None for name in ("nature", "sky", "human", "vehicle"))
    assert figures["eval_category_iou"] == close(np.nanmean(expected["per_category_iou"][:3]))


def test_worst_images_come_first_and_the_interval_holds_the_figure(figures, predictions):
    expected = {name: mean_iou([maps]) for name, maps in predictions.items()}
    worst = figures["eval_worst_images"]
    assert [each["name"] for each in worst] == sorted(expected, key=lambda name: expected[name]["mean_iou"])
    for each in worst:
        iou = expected[each["name"]]["per_category_iou"]
        assert each["mean_iou"] == close(expected[each["name"]]["mean_iou"])
        assert each["worst_class"] == CITYSCAPES_CLASSES[np.nanargmin(iou)]
    low, high = figures["eval_mean_iou_interval"]
    assert low < figures["eval_mean_iou"] < high


@pytest.mark.parametrize(
    ("num_processes", "batch_size", "streaming"),
    [(1, 3, True), (2, 2, False), (2, 3, True)],
)
def test_figures_do_not_depend_on_processes_batches_or_streaming(
    folder, figures, tmp_path, num_processes, batch_size, streaming
):
    more = {"per_device_eval_batch_size": batch_size, "streaming": streaming}
    run_on_processes(num_processes, tmp_path / "logs", partial(evaluate, folder, tmp_path, **more))
    others = figures_of(tmp_path)
    # These are sums of floats, whose order is that of the processes; all others are of whole numbers.
    for each in (others, figures, *others["classes"].values(), *figures["classes"].values()):
        for key in ("eval_boundary_f_score", "boundary_f_score"):
            each[key] = None if each.get(key) is None else round(each[key], 12)
    assert others == figures
    assert sections(tmp_path) == sections(folder / "alone")


def sections(output):
    """What the report says of classes, confusions, best and worst images and prompt contexts."""
    page = (output / "report.html").read_text()
    return page[page.index("<h2>Classes") : page.index("<h2>Masks and class texts")]


@pytest.mark.parametrize(("num_processes", "streaming"), [(1, True), (2, False)])
def test_unusable_images_are_left_out_with_a_warning_and_counted(tmp_path, num_processes, streaming):
    """Of 8 training images, one is cut off and one is none."""
    folder = draw_folder(tmp_path / "data", num_validation=1)
    first, second = (folder / "images" / "train" / f"{index}.png" for index in range(2))
    first.write_bytes(first.read_bytes()[:1000])
    second.write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    run = {"check_data": "none", "max_bad_share": 0.25, "max_steps": 4 // num_processes, "streaming": streaming}
    train = partial(_train, tmp_path, do_train=True, use_cpu=True, **run, **ONCE_AT_THE_END)
    warnings = run_on_processes(num_processes, tmp_path / "logs", train)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["num_bad"] == 2
    for name in ("0.png", "1.png"):
        assert warnings.count(f"train/{name} can't be read") >= 1


def _train(folder, **options):
    prepare(folder, **options).execute()
