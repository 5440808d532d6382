# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark at a tiny size: what it writes, and that both sides compute the same."""

import json
import shlex
import subprocess
import sys

import pytest
import torch


OPTIONS = "--small --size 64 --batch_size 1 --classes 5 --queries 6 --num_threads 1 --repeats 2"
SMALL = shlex.split(OPTIONS)


@pytest.fixture
def benchmark(repository_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(repository_dir / "scripts"))
    return pytest.importorskip("benchmark")


@pytest.fixture
def workloads(benchmark):
    return pytest.importorskip("benchmark_workloads")


def run(repository_dir, *options):
    command = [sys.executable, repository_dir / "scripts" / "benchmark.py", *SMALL, *options]
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_all_cases(repository_dir, tmp_path):
    file = tmp_path / "figures.json"
    result = run(repository_dir, "--dtype", "bfloat16", "--json", file)
    assert result.returncode == 0, result.stderr
    written = json.loads(file.read_text())
    assert {"allocator", "threads", "torch", "transformers"} <= written["environment"].keys()
    assert written["settings"]["dtype"] == "bfloat16"
    rows = {(row["case"], row["metric"]): row for row in written["rows"]}
    cases = ("train", "infer", "text", "postprocess", "postprocess, exact")
    assert rows.keys() == {(case, metric) for case in cases for metric in ("time", "memory")} | {("data", "time")}
    for (case, metric), row in rows.items():
        assert len(row["ours_runs"]) == len(row["peer_runs"]) == (1 if metric == "memory" else 2)
        assert min(row["ours_runs"]) <= row["ours"] <= max(row["ours_runs"])
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert f"\n{case:34}{metric}" in result.stdout
    assert rows["postprocess, exact", "time"]["equal_pixels"] == 1
    assert rows["train", "time"]["ours_images_per_second"] == pytest.approx(1 / rows["train", "time"]["ours"])


@pytest.mark.slow
def test_growth_is_measured_at_every_size(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda function, *arguments: function(*arguments))
    rows = benchmark.main([*SMALL, "--mode", "scaling"])
    assert len(rows) == 2 * 2 * 4
    assert all(row["ratio"] is None and row["ours"] > 0 for row in rows)


def test_launches_are_counted_for_both_sides(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "LAUNCHES_BATCHES", (2,))
    rows = {row["case"]: row for row in benchmark.main([*SMALL, "--mode", "launches"])}
    assert len(rows) == 2 * 5
    for mode in ("train", "infer"):
        assert 0 < rows[f"{mode}, batch 2, kernels"]["ours"] < rows[f"{mode}, batch 2, kernels"]["peer"]


@pytest.mark.parametrize(
    ("option", "message"), [("--size=100", "must be a multiple of 32"), ("--queries=0", "must be at least 1, got 0")]
)
def test_bad_options_are_refused(benchmark, capsys, option, message):
    with pytest.raises(SystemExit):
        benchmark.main([*SMALL, option])
    assert message in capsys.readouterr().err


def test_both_sides_compute_the_same(benchmark, workloads):
    options = benchmark.parse_arguments(SMALL)
    model = workloads.MTAClipModel(workloads.our_config(options)).text_model.eval()
    torch.nn.init.normal_(model.contexts)
    torch.testing.assert_close(workloads.padded_text_embeddings(model), model())
    assert torch.equal(workloads.postprocess(options, "ours")(), workloads.postprocess(options, "exact")())
    labels = workloads.random_labels(options)
    assert labels.shape == (1, 64, 64)
    assert 0 <= labels.min() <= labels.max() < 5
    options.classes = 300
    assert {len(ids) for ids in workloads.our_config(options).class_token_ids.values()} == {1, 2, 3}
