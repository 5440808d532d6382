# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""All metrics give the same figures in one process and in two with uneven shares of the images."""

import sys

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from modeling_mtaclip.metrics import BoundaryScores, MeanIoU, PerImageScores


NUM_LABELS = 6
NUM_PROCESSES = 2


def images_of_process(process_id):
    """The first process owns five images, the second two; both meet other values that are no class."""
    generator = np.random.default_rng(process_id)
    sizes = [[(8, 8)] * 4 + [(3, 5)], [(8, 8), (2, 9)]][process_id]
    images = [(f"{process_id}_{i}", *generator.choice([0, 1, 2, 5, 255], (2, *size))) for i, size in enumerate(sizes)]
    images[0][1][0, :2] = [900, -7]
    images[0][2][0, :2] = [-7 + process_id, 900]
    return images


def metrics_of(images):
    metrics = MeanIoU(num_labels=NUM_LABELS), BoundaryScores(NUM_LABELS), PerImageScores(NUM_LABELS)
    for name, prediction, reference in images:
        for metric, options in zip(metrics, ({}, {}, {"name": name}), strict=True):
            metric.add(prediction=prediction, reference=reference, **options)
    return metrics


def figures(mean_iou, boundary, per_image):
    return {
        "confusion_matrix": mean_iou.confusion_matrix().numpy(),
        **mean_iou.compute(),
        **boundary.compute(),
        "per_image_matrix": per_image.confusion_matrix.numpy(),
        "scores": [(score.name, score.mean_iou) for score in per_image.scores()],
        "interval": per_image.bootstrap_interval(num_resamples=20),
    }


def run_process(process_id, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=process_id, world_size=NUM_PROCESSES
    )
    uneven = metrics_of(images_of_process(process_id))
    one_empty = metrics_of(images_of_process(0) if process_id == 0 else [])
    by_itself = MeanIoU(num_labels=NUM_LABELS, num_process=NUM_PROCESSES, process_id=process_id)
    for _, prediction, reference in images_of_process(process_id):
        by_itself.add(prediction=prediction, reference=reference)
    for metric in (*uneven, *one_empty):
        metric.synchronize()
    uneven[0].synchronize()
    results = {"uneven": figures(*uneven), "one_empty": figures(*one_empty), "by_itself": by_itself.compute()}
    torch.save(results, f"{folder}/{process_id}.pt")
    distributed.destroy_process_group()


def assert_same(actual, expected):
    for name in expected.keys() - {"scores"}:
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=1e-12, err_msg=name)
    assert actual.get("scores") == expected.get("scores")


def test_two_processes_with_uneven_shares(tmp_path):
    # Forked, as loader processes are, they need not import everything again.
    method = "fork" if sys.platform == "linux" else "spawn"
    multiprocessing.start_processes(run_process, (str(tmp_path),), NUM_PROCESSES, start_method=method)
    everything = figures(*metrics_of([*images_of_process(1), *images_of_process(0)]))
    first_share = figures(*metrics_of(images_of_process(0)))
    for process_id in range(NUM_PROCESSES):
        results = torch.load(tmp_path / f"{process_id}.pt", weights_only=False)
        assert_same(results["uneven"], everything)
        assert_same(results["one_empty"], first_share)
        assert_same(results["by_itself"], {name: everything[name] for name in results["by_itself"]})


def test_synchronize_without_processes_changes_nothing():
    separate, synchronized = metrics_of(images_of_process(0)), metrics_of(images_of_process(0))
    for metric in synchronized:
        metric.synchronize()
    with pytest.raises(ValueError, match="after `synchronize`"):
        synchronized[0].add(prediction=[[0]], reference=[[0]])
    assert_same(figures(*synchronized), figures(*separate))
