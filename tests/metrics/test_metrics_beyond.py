# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures beyond mean IoU: against plain formulas and the evaluation code of Cityscapes."""

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from modeling_mtaclip.metrics import (
    BoundaryScores,
    MeanIoU,
    PerImageScores,
    category_iou,
    iou_figures,
    json_ready,
    summary_figures,
)


def blobs(generator, size, num_labels, ignored_share=0.0):
    """A label map of smooth areas, as real ones are."""
    scores = ndimage.gaussian_filter(generator.normal(size=(num_labels, *size)), sigma=(0, 3, 3))
    labels = scores.argmax(axis=0)
    if ignored_share:
        noise = ndimage.gaussian_filter(generator.normal(size=size), sigma=3)
        labels[noise < np.quantile(noise, ignored_share)] = 255
    return labels


def confusion_matrix(prediction, reference, num_labels):
    metric = MeanIoU(num_labels=num_labels)
    metric.add(prediction=prediction, reference=reference)
    return metric.confusion_matrix()


def test_confusion_matrix_rows_are_references():
    matrix = confusion_matrix([[0, 1, 1, 9, 0]], [[0, 0, 1, 1, 255]], num_labels=2)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("prediction", "reference", "num_labels", "expected"),
    [
        # Class 0: 3 annotated, IoU 2/3; class 1: 1 annotated, IoU 1/2; class 2 does not occur.
        ([[0, 0, 1, 1]], [[0, 0, 0, 1]], 3, {"frequency_weighted_iou": 3 / 4 * 2 / 3 + 1 / 4 * 1 / 2}),
        # A mask of 0 and 255: what is left to score is the background, which is right everywhere.
        ([[0, 0, 0]], [[0, 0, 255]], 2, {"mean_iou": 1, "num_annotated_classes": 1, "num_classes": 2}),
    ],
)
def test_summary_by_hand(prediction, reference, num_labels, expected):
    summary = summary_figures(confusion_matrix(prediction, reference, num_labels))
    assert summary == pytest.approx(summary | expected, nan_ok=True)


def test_nothing_to_score_is_no_figure():
    ignored = confusion_matrix([[0, 1, 1]], [[255, 255, 255]], num_labels=2)
    summary = summary_figures(ignored, ["a", "b"])
    known = {name: value for name, value in summary.items() if value == value}
    assert known == {"num_annotated_classes": 0, "num_classes": 2}
    ready = json_ready({"summary": summary, "classes": [iou_figures(ignored), (np.float32(0.5), np.inf)]})
    assert json.loads(json.dumps(ready, allow_nan=False))["summary"]["mean_iou"] is None


def test_category_iou_is_that_of_merged_labels():
    generator = np.random.default_rng(0)
    prediction, reference = generator.integers(0, 7, (2, 20, 20))
    reference[:3] = 255
    groups = np.array([0, 1, 0, 2, 1, 2, 3])
    actual = category_iou(confusion_matrix(prediction, reference, 6), ["a", "b", "a", "c", "b", "c"])
    merged = np.where(reference < 255, groups[np.minimum(reference, 6)], 255)
    expected = MeanIoU().compute(predictions=[groups[prediction]], references=[merged], num_labels=3)
    assert list(actual) == ["a", "b", "c"]
    np.testing.assert_allclose(list(actual.values()), expected["per_category_iou"], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="6 classes need a category each"):
        category_iou(confusion_matrix(prediction, reference, 6), ["a"])


@pytest.mark.parametrize(("size", "ratio"), [((40, 56), 0.02), ((40, 56), 0.06), ((5, 7), 0.5), ((1, 1), 0.02)])
def test_boundary_iou_is_that_of_eroded_masks(size, ratio):
    """The band of a mask is itself without its erosion by a 3 x 3 square, `radius` times, outside being empty; what is
    ignored may be any class."""
    generator, areas, scores = np.random.default_rng(0), np.zeros((2, 5)), BoundaryScores(5, iou_ratio=ratio)
    radius = max(1, round(ratio * np.hypot(*size)))
    erosion = {"structure": np.ones((3, 3)), "iterations": radius, "border_value": 0}
    for ignored_share in (0.0, 0.0, 0.3):
        maps = [blobs(generator, size, 4, share) for share in (0.0, ignored_share)]
        scores.add(prediction=maps[0], reference=torch.from_numpy(maps[1]))
        void = maps[1] == 255
        for label in range(4):
            masks = [(each == label) & ~void for each in maps]
            bands = [mask & ~ndimage.binary_erosion(mask | void, **erosion) for mask in masks]
            areas[:, label] += (bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()
    with np.errstate(invalid="ignore"):
        expected = areas[0] / areas[1]
    figures = scores.compute()
    np.testing.assert_allclose(figures["per_category_boundary_iou"], expected, rtol=0, atol=1e-12)
    assert figures["boundary_iou"] == pytest.approx(np.nanmean(expected), abs=1e-12)


def plain_contour(labels, label, void):
    """Pixels of a class with an eighth neighbor of another known class, pixel by pixel."""
    contour = np.zeros(labels.shape, dtype=bool)
    for y, x in zip(*np.nonzero((labels == label) & ~void), strict=True):
        rows, columns = slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2)
        contour[y, x] = ((labels[rows, columns] != label) & ~void[rows, columns]).any()
    return contour


def plain_f_score(prediction, reference, label, tolerance, ignore_index):
    predicted, annotated = (plain_contour(each, label, reference == ignore_index) for each in (prediction, reference))
    if not (predicted.any() and annotated.any()):
        return 0.0 if predicted.any() or annotated.any() else np.nan
    precision = (ndimage.distance_transform_edt(~annotated)[predicted] <= tolerance).mean()
    recall = (ndimage.distance_transform_edt(~predicted)[annotated] <= tolerance).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(("ratio", "ignore_index"), [(0.0075, 255), (1 / 30, None), (0.1, 255)])
def test_boundary_f_score_is_that_of_distance_transforms(ratio, ignore_index):
    generator, per_image = np.random.default_rng(1), []
    scores = BoundaryScores(5, ignore_index, f_score_ratio=ratio)
    # The diagonal of the second is 30 pixels, and its last class only predicted.
    for size in (40, 56), (18, 24), (7, 30):
        prediction = blobs(generator, size, 4)
        reference = np.where(generator.random(size) < 0.1, prediction, blobs(generator, size, 4, 0.2))
        reference[(reference == 3) & (size[0] == 18)] = 0
        scores.add(prediction=prediction, reference=reference)
        common = {"tolerance": ratio * np.hypot(*size), "ignore_index": ignore_index}
        per_image.append([plain_f_score(prediction, reference, label, **common) for label in range(4)])
    figures = scores.compute()
    expected = np.nanmean(per_image, axis=0)
    np.testing.assert_allclose(figures["per_category_boundary_f_score"][:-1], expected, rtol=0, atol=1e-12)
    assert np.isnan(figures["per_category_boundary_f_score"][-1])
    assert figures["boundary_f_score"] == pytest.approx(expected.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "options", "message"),
    [([[0, 1]], {}, "does not match its reference"), ([[0], [1]], {"iou_ratio": 0}, "must be above 0")],
)
def test_boundary_scores_reject(prediction, options, message):
    with pytest.raises(ValueError, match=message):
        BoundaryScores(5, **options).add(prediction=prediction, reference=[[0], [1]])


def per_image_scores(num_images):
    generator = np.random.default_rng(5)
    scores, images = PerImageScores(4), {}
    for index in range(num_images):
        prediction, reference = images[f"{index}"] = [blobs(generator, (16, 10 + index), 4, void) for void in (0, 0.1)]
        scores.add(prediction=prediction, reference=reference, name=f"{index}")
    return scores, images


def test_per_image_scores_are_those_of_each_image():
    scores, images = per_image_scores(num_images=5)
    expected = {
        name: MeanIoU(num_labels=4).compute(predictions=[prediction], references=[reference])
        for name, (prediction, reference) in images.items()
    }
    scores.add(prediction=[[0, 1]], reference=[[255, 255]], name="nothing annotated")
    *ranking, last = scores.scores()
    assert [score.name for score in ranking] == sorted(images, key=lambda name: expected[name]["mean_iou"])
    for score in ranking:
        assert score.mean_iou == pytest.approx(expected[score.name]["mean_iou"], abs=1e-12)
        assert score.worst_class == np.nanargmin(expected[score.name]["per_category_iou"])
    assert (last.name, last.worst_class) == ("nothing annotated", None)


def test_bootstrap_interval_is_that_of_resampled_images():
    scores, images = per_image_scores(num_images=8)
    pairs, generator, means = list(images.values()), np.random.default_rng(6), []
    for _ in range(400):
        predictions, references = zip(*(pairs[i] for i in generator.integers(0, 8, 8)), strict=True)
        means.append(MeanIoU(num_labels=4).compute(predictions=predictions, references=references)["mean_iou"])
    low, high = scores.bootstrap_interval(confidence=0.9, num_resamples=4000)
    np.testing.assert_allclose([low, high], np.quantile(means, [0.05, 0.95]), rtol=0, atol=0.35 * np.std(means))
    assert scores.bootstrap_interval(seed=1) == scores.bootstrap_interval(seed=1) != scores.bootstrap_interval(seed=2)


def test_bootstrap_interval_of_one_image_or_none():
    scores = PerImageScores(2)
    assert np.isnan(scores.bootstrap_interval()).all()
    scores.add(prediction=[[0, 1, 1]], reference=[[0, 1, 0]], name="a")
    assert scores.bootstrap_interval() == pytest.approx((0.5, 0.5))
    with pytest.raises(ValueError, match="between 0 and 1"):
        scores.bootstrap_interval(confidence=95)


def test_cityscapes_own_evaluation_agrees(shared_dir, tmp_path, monkeypatch):
    """Annotations of real samples, and predictions that are wrong in part: shifted, with areas of other labels."""
    pytest.importorskip("cityscapesscripts", reason="needs cityscapesscripts: pip install cityscapesscripts")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    official = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    labels = importlib.import_module("cityscapesscripts.helpers.labels").labels
    evaluated = sorted((label for label in labels if not label.ignoreInEval), key=lambda label: label.trainId)
    to_train_id = np.full(256, 255, dtype=np.uint8)
    to_train_id[[label.id for label in evaluated]] = [label.trainId for label in evaluated]
    files = [str(file) for file in (shared_dir / "data" / "cityscapes" / "gtFine").glob("*/*/*_labelIds.png")]
    if not files:
        pytest.skip(f"{shared_dir} holds no Cityscapes samples")
    generator, metric, predicted = np.random.default_rng(0), MeanIoU(num_labels=19), []
    for index, file in enumerate(files):
        reference = np.array(Image.open(file))
        prediction = np.roll(reference, 7, axis=1)
        area = ndimage.zoom(generator.random((8, 16)), np.array(reference.shape) / (8, 16), order=0) < 0.2
        prediction[area] = generator.choice([0, 3, 7, 8, 11, 26, 27, 33])
        predicted.append(str(tmp_path / f"{index}_pred.png"))
        Image.fromarray(prediction).save(predicted[-1])
        metric.add(prediction=to_train_id[prediction], reference=to_train_id[reference])
    categories = category_iou(metric.confusion_matrix(), [label.category for label in evaluated])
    figures = metric.compute()

    official.args.quiet, official.args.evalInstLevelScore = True, False
    official.args.exportFile = str(tmp_path / "result.json")
    official.evaluateImgLists(predicted, files, official.args)
    expected = json.loads((tmp_path / "result.json").read_text())
    class_scores = [expected["classScores"][label.name] for label in evaluated]
    np.testing.assert_allclose(figures["per_category_iou"], class_scores, rtol=0, atol=1e-12)
    assert figures["mean_iou"] == pytest.approx(expected["averageScoreClasses"], abs=1e-12)
    category_scores = {name: expected["categoryScores"][name] for name in categories}
    assert categories == pytest.approx(category_scores, abs=1e-12, nan_ok=True)
    assert np.nanmean(list(categories.values())) == pytest.approx(expected["averageScoreCategories"], abs=1e-12)
    assert 0.1 < figures["mean_iou"] < 0.9
