# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean IoU against the plain formula of `evaluate`'s metric, image by image and class by class."""

import warnings

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from modeling_mtaclip.metrics import MeanIoU, confusion
from tests.tiny import varied_model


KEYS = ["mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"]


def plain_mean_iou(predictions, references, num_labels, ignore_index=255, label_map=None, reduce=False, nan=np.nan):
    areas = np.zeros((3, num_labels))
    for prediction, label in zip(predictions, references, strict=True):
        prediction, old = np.array(prediction, dtype=np.int64), np.array(label, dtype=np.int64)
        label = old.copy()
        for old_id, new_id in (label_map or {}).items():
            label[old == old_id] = new_id
        if reduce:
            label = np.where((label == 0) | (label == 255), 255, label - 1)
        kept = label != ignore_index
        for index in range(num_labels):
            predicted, annotated = (prediction == index) & kept, (label == index) & kept
            areas[:, index] += (predicted & annotated).sum(), (predicted | annotated).sum(), annotated.sum()
    intersection, union, annotated = areas
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        iou, accuracy, overall = intersection / union, intersection / annotated, intersection.sum() / annotated.sum()
        figures = [np.nanmean(iou), np.nanmean(accuracy), overall, iou, accuracy]
    return {key: np.nan_to_num(figure, nan=nan) for key, figure in zip(KEYS, figures, strict=True)}


def assert_same_figures(actual, expected):
    assert list(actual) == KEYS
    for key in KEYS:
        np.testing.assert_allclose(actual[key], expected[key], rtol=0, atol=1e-12, err_msg=key)


def random_maps(generator, high, dtype=np.uint8):
    """Label maps of several sizes, a fifth of their pixels being 255."""
    maps = [generator.integers(0, high, size).astype(dtype) for size in [(7, 5), (1, 1), (16, 9), (3, 20)]]
    return [np.where(generator.random(each.shape) < 0.2, dtype(255), each) for each in maps]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"num_labels": 10}, id="plain"),
        pytest.param({"num_labels": 4}, id="fewer classes than values"),
        pytest.param({"num_labels": 150}, id="more classes than values"),
        pytest.param({"num_labels": 1}, id="one class"),
        pytest.param({"num_labels": 10, "ignore_index": 3}, id="a class is ignored"),
        pytest.param({"num_labels": 10, "ignore_index": None}, id="nothing is ignored"),
        pytest.param({"num_labels": 9, "reduce_labels": True}, id="reduced"),
        pytest.param({"num_labels": 300, "ignore_index": 0, "reduce_labels": True}, id="reduced, other ignored value"),
        pytest.param({"num_labels": 10, "label_map": {0: 1, 1: 0, 2: 255, 255: 4}}, id="mapped"),
        pytest.param({"num_labels": 9, "label_map": {5: 0, 0: 5}, "reduce_labels": True}, id="mapped and reduced"),
        pytest.param({"num_labels": 15, "nan_to_num": -1}, id="NaN replaced"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_equals_plain_formula(options, dtype):
    generator = np.random.default_rng(0)
    predictions, references = random_maps(generator, 10, dtype), random_maps(generator, 10, dtype)
    short = {"reduce_labels": "reduce", "nan_to_num": "nan"}
    expected = plain_mean_iou(predictions, references, **{short.get(key, key): options[key] for key in options})
    assert_same_figures(MeanIoU().compute(predictions=predictions, references=references, **options), expected)
    added = MeanIoU(**options), MeanIoU(num_labels=3, reduce_labels=True, label_map={1: 2})
    for metric in added:
        for prediction, reference in zip(predictions, references, strict=True):
            metric.add(prediction=prediction, reference=reference)
    assert_same_figures(added[0].compute(), expected)
    # Options may change after adding.
    unset = {"ignore_index": 255, "reduce_labels": False, "label_map": None, "nan_to_num": None}
    assert_same_figures(added[1].compute(**unset | options), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pixels_at_a_time", [1, 3, 2**17])
@pytest.mark.parametrize(
    ("predictions", "references", "num_labels"),
    [
        pytest.param([[[0, 1], [2, 2]]], [[[0, 1], [1, 0]]], 4, id="absent class, and one only predicted"),
        pytest.param([[[0, 1], [1, 1]]], [[[255, 255], [255, 255]]], 3, id="all ignored"),
        pytest.param([[[255, 255], [1, 1]]], [[[0, 1], [1, 255]]], 3, id="ignored value predicted"),
        pytest.param([[[255, 3], [0, 256]]], [[[255, 300], [255, 256]]], 400, id="classes above 255"),
        pytest.param([[[70000, 1, -4, 1]]], [[[-100, 1, 7, 65535]]], 3, id="values that are no class"),
        pytest.param([[[900, 1, 2]], [[2, 0, 9]]], [[[0, 1, 2]], [[-7, 0, 9]]], 3, id="several images"),
        pytest.param([[[]]], [[[]]], 3, id="no pixel"),
        pytest.param([], [], 2, id="no image"),
    ],
)
def test_edge_cases(predictions, references, num_labels, pixels_at_a_time, monkeypatch):
    monkeypatch.setattr(confusion, "PIXELS_AT_A_TIME", pixels_at_a_time)
    actual = MeanIoU(num_labels=num_labels).compute(predictions=predictions, references=references)
    assert_same_figures(actual, plain_mean_iou(predictions, references, num_labels))


def test_example_of_evaluate():
    """The figures that the documentation of `evaluate`'s metric states for its example."""
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    figures = MeanIoU().compute(predictions=predictions, references=references, num_labels=10, ignore_index=255)
    expected = [0.4775, 0.5916666666666666, 0.5263157894736842]
    np.testing.assert_allclose([figures[key] for key in KEYS[:3]], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(figures["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda maps: maps, id="arrays"),
        pytest.param(torch.from_numpy, id="tensors"),
        pytest.param(lambda maps: torch.from_numpy(maps).float(), id="floats"),
        pytest.param(lambda maps: maps.tolist(), id="lists"),
        pytest.param(lambda maps: [Image.fromarray(each) for each in maps], id="images"),
        pytest.param(
            lambda maps: torch.from_numpy(maps).cuda(),
            id="on the GPU",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_containers_and_batches_agree(form):
    predictions, references = np.random.default_rng(1).choice([0, 1, 3, 4, 255], (2, 4, 6, 8)).astype(np.uint8)
    metric = MeanIoU(num_labels=5)
    metric.add_batch(predictions=form(predictions[:1]), references=form(references[:1]))
    metric.add_batch(predictions=form(predictions[1:]), references=references[1:])
    assert_same_figures(metric.compute(), plain_mean_iou(predictions, references, 5))
    assert np.isnan(metric.compute()["mean_iou"])


def test_is_an_evaluate_metric_that_stores_nothing(tmp_path):
    metric = MeanIoU(num_labels=2, cache_dir=str(tmp_path))
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == "mean_io_u"
    assert "num_labels" in metric.compute.__doc__
    combined = evaluate.combine([metric])
    for _ in range(5):
        combined.add_batch(predictions=[[[0, 1]]], references=[[[0, 1]]])
    assert metric.counts.counts == {(0, 0): 5, (1, 1): 5}
    assert combined.compute(num_labels=2, ignore_index=255)["mean_iou"] == 1
    assert not list(tmp_path.iterdir())


def test_takes_what_evaluate_takes():
    """`_compute` as transformers' example scripts call it, and the plural names of `add`."""
    predictions, references = [[[0, 1], [1, 1]]], [[[0, 1], [0, 255]]]
    expected = plain_mean_iou(predictions, references, 2, 255)
    metric = MeanIoU(num_labels=2)
    metric.add(references=[[1]], predictions=[[1]])
    of_these = metric._compute(
        predictions=predictions, references=references, num_labels=2, ignore_index=255, reduce_labels=False
    )
    assert_same_figures(of_these, expected)
    assert_same_figures(metric._compute(predictions, references), expected)
    assert_same_figures(metric._compute(predictions, references, 2, 255), expected)
    assert metric.compute()["overall_accuracy"] == 1
    with pytest.raises(TypeError, match=r"Unknown options \['num_classes'\]"):
        metric.compute(predictions=predictions, references=references, num_classes=2)


@pytest.mark.parametrize("of", ["logits", "label maps", "batches"])
def test_is_a_metric_of_transformers_trainer(of, tmp_path):
    """From logits as transformers' example has it, from label maps, and batch by batch; the last batch is smaller."""
    labels = torch.from_numpy(np.random.default_rng(5).choice([0, 1, 2, 255], (5, 32, 64)))
    pixel_values = torch.randn(5, 3, 32, 64)
    examples = [{"pixel_values": image, "labels": each} for image, each in zip(pixel_values, labels, strict=True)]
    model, metric = varied_model(), MeanIoU(num_labels=3)

    def label_maps(logits, labels):
        return functional.interpolate(torch.as_tensor(logits), labels.shape[-2:], mode="bilinear").argmax(dim=1)

    def compute_metrics(predicted, compute_result=True):
        predictions, references = predicted.predictions, predicted.label_ids
        predictions = label_maps(predictions, references) if of == "logits" else predictions
        metric.add_batch(predictions=predictions, references=references)
        return {"mean_iou": float(metric.compute()["mean_iou"])} if compute_result else {}

    options = {"use_cpu": True, "per_device_eval_batch_size": 2, "report_to": []}
    arguments = TrainingArguments(tmp_path, batch_eval_metrics=of == "batches", **options)
    options = {"compute_metrics": compute_metrics, "eval_dataset": examples}
    options["preprocess_logits_for_metrics"] = None if of == "logits" else label_maps
    with torch.no_grad():
        predictions = label_maps(model(pixel_values).logits, labels)
    expected = plain_mean_iou(predictions.numpy(), labels.numpy(), 3)["mean_iou"]
    assert Trainer(model, arguments, **options).evaluate()["eval_mean_iou"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        ([[[0, 1]]], [[[0], [1]]], {}, "resize predictions"),
        ([[[0.5, 1]]], [[[0, 1]]], {}, "whole numbers"),
        ([[["a"]]], [[[0]]], {}, "must be numbers"),
        ([torch.arange(5000) * 9], [torch.zeros(5000)], {}, "More than 4096 distinct values"),
        ([[[0]]], [[[0]], [[1]]], {}, "1 predictions for 2 references"),
        ([[[0]]], None, {}, "Both"),
        ([[[0, 1]]], [[[0, 1]]], {"num_labels": None}, "number of classes is unknown"),
        ([[[0, 1]]], [[[0, 1]]], {"num_labels": 0}, "positive whole number"),
        ([[[0]]], [[[0]]], {"num_process": 2, "process_id": 0, "experiment_id": "a"}, "`num_process` is 2, but .* 1:"),
    ],
)
def test_errors(predictions, references, options, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(**({"num_labels": 2} | options)).compute(predictions=predictions, references=references)
