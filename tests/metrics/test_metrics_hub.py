# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The metric that `evaluate` loads, with a script on the disk in place of the one on the Hub."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from modeling_mtaclip.metrics import MeanIoU
from modeling_mtaclip.metrics.hub import HubMeanIoU


SCRIPT = """
import datasets
import evaluate
import numpy as np


class PlainMeanIoU(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, num_labels, ignore_index):
        areas = np.zeros((3, num_labels))
        for prediction, reference in zip(map(np.array, predictions), map(np.array, references), strict=True):
            kept = reference != ignore_index
            prediction, reference = prediction[kept], reference[kept]
            for label in range(num_labels):
                is_predicted, is_annotated = prediction == label, reference == label
                areas[:, label] += (is_predicted & is_annotated).sum(), is_predicted.sum(), is_annotated.sum()
        iou = areas[0] / (areas[1] + areas[2] - areas[0])
        return {"mean_iou": np.nanmean(iou), "per_category_iou": iou}
"""
NUM_LABELS = 5


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "plain_mean_iou.py"
    path.write_text(SCRIPT)
    return str(path)


def images(high: int = NUM_LABELS) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    pairs = [generator.integers(0, high, (2, 6 + index, 9)) for index in range(5)]
    for _, reference in pairs:
        reference[0] = 255
    return pairs


def own_figures(num_labels: int = NUM_LABELS, high: int = NUM_LABELS) -> dict:
    metric = MeanIoU(num_labels=num_labels)
    for prediction, reference in images(high):
        metric.add(prediction=prediction, reference=reference)
    return metric.compute()


@pytest.mark.parametrize(("num_labels", "high"), [(NUM_LABELS, NUM_LABELS), (400, 400)])
def test_figures_are_those_of_the_own_metric(script, num_labels, high):
    metric = HubMeanIoU(num_labels, path=script)
    for prediction, reference in images(high):
        metric.add(prediction=torch.from_numpy(prediction), reference=reference)
    figures, expected = metric.compute(), own_figures(num_labels, high)
    for name in ("mean_iou", "per_category_iou"):
        np.testing.assert_allclose(figures[name], expected[name], rtol=0, atol=1e-12)


def compute_in_process(rank: int, script: str, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric = HubMeanIoU(NUM_LABELS, path=script)
    for prediction, reference in images()[rank::2]:
        metric.add(prediction=prediction, reference=reference)
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(script, tmp_path):
    multiprocessing.spawn(compute_in_process, (script, str(tmp_path)), nprocs=2)
    expected = own_figures()
    for rank in range(2):
        figures = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        np.testing.assert_allclose(figures["per_category_iou"], expected["per_category_iou"], rtol=0, atol=1e-12)


def test_metric_that_can_not_be_loaded_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"'.*absent' of evaluate could not be loaded.*needs the Hub"):
        HubMeanIoU(2, path=str(tmp_path / "absent"))
