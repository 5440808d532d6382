# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark at a tiny size: what it writes, and that both sides compute the same."""

import json
import subprocess
import sys

import pytest
import torch

from modeling_mtaclip.benchmarking import models
from modeling_mtaclip.benchmarking.settings import Settings


SMALL = Settings(size=64, batch=1, classes=5, queries=6, threads=1, small=True)
SMALL_OPTIONS = "--small --size 64 --batch 2 --classes 5 --queries 6 --threads 1"


def run(repository_dir, *options):
    command = [sys.executable, "scripts/benchmark.py", *options]
    return subprocess.run(command, cwd=repository_dir, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_cases(repository_dir, tmp_path, dtype):
    file = tmp_path / "figures.json"
    options = f"--mode all {SMALL_OPTIONS} --repeats 2".split()
    result = run(repository_dir, *options, "--dtype", dtype, "--json", str(file))
    assert result.returncode == 0, result.stderr
    written = json.loads(file.read_text())
    assert {"allocator", "threads", "torch", "transformers"} <= written["environment"].keys()
    assert written["settings"]["dtype"] == dtype
    rows = {(row["case"], row["metric"]): row for row in written["rows"]}
    both = {(case, metric) for case in ("train", "infer", "text", "postprocess") for metric in ("time", "memory")}
    assert both | {("data", "time")} <= rows.keys()
    for (case, metric), row in rows.items():
        assert len(row["ours_runs"]) == len(row["peer_runs"]) == (1 if metric == "memory" else 2)
        assert min(row["ours_runs"]) <= row["ours"] <= max(row["ours_runs"])
        if metric == "time":
            assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert f"\n{case:32}{metric}" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "num_rows"), [("parts", 10), ("scaling", 16)])
def test_cases_without_peer(repository_dir, tmp_path, mode, num_rows):
    file = tmp_path / "figures.json"
    options = f"{SMALL_OPTIONS} --repeats 1 --mode".split()
    result = run(repository_dir, *options, mode, "--json", str(file))
    assert result.returncode == 0, result.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == num_rows
    assert all(row["ratio"] is None and row["ours"] > 0 for row in rows)


def test_bad_option(repository_dir):
    result = run(repository_dir, "--size", "100")
    assert result.returncode == 2
    assert "--size must be a multiple of 32, got 100." in result.stderr


def test_padded_text_encoding_equals_ours():
    model = models.our_model(SMALL).model.text_model
    torch.nn.init.normal_(model.contexts)
    torch.testing.assert_close(models.padded_text_embeddings(model), model())


def test_postprocessing_equals_the_formula():
    assert torch.equal(models.our_postprocessing(SMALL)(), models.exact_postprocessing(SMALL)())


def test_labels_and_names():
    labels = models.random_labels(SMALL)
    assert labels.shape == (1, 64, 64)
    assert 0 <= labels.min() <= labels.max() < 5
    lengths = {len(ids) for ids in models.our_config(Settings(classes=300, small=True)).class_token_ids.values()}
    assert lengths == {1, 2, 3}
