# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark at a tiny size: what it measures and writes."""

import json

import pytest


SMALL = ["--small", "--size", "64", "--batch_size", "1", "--classes", "5", "--num_threads", "1", "--repeats", "2"]


@pytest.fixture
def benchmark(repository_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(repository_dir / "scripts"))
    monkeypatch.setenv("PYTHONPATH", "")
    return pytest.importorskip("benchmark")


@pytest.mark.slow
def test_all_cases(benchmark, tmp_path, capsys):
    file = tmp_path / "figures.json"
    rows = benchmark.main([*SMALL, "--dtype", "bfloat16", "--json", str(file)])
    printed, written = capsys.readouterr().out, json.loads(file.read_text())
    assert {"allocator", "threads", "torch", "transformers"} <= written["environment"].keys()
    assert written["settings"]["dtype"] == "bfloat16"
    assert written["rows"] == rows
    cases = ("train", "infer", "text", "postprocess")
    expected = {(case, metric) for case in cases for metric in ("time", "peak memory", "above start")}
    expected |= {(case, "speed") for case in ("train", "infer", "data")} | {("data", "time")}
    assert {(row["case"], row["metric"]) for row in rows} == expected
    for row in rows:
        assert len(row["ours_runs"]) == len(row["peer_runs"]) == (1 if row["unit"] == "MiB" else 2)
        assert min(row["ours_runs"]) <= row["ours"] <= max(row["ours_runs"])
        assert row["ratio"] is None or row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert f"\n{row['case']:34}{row['metric']}" in printed


def test_launches_are_counted_for_both_sides(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "LAUNCHES_BATCHES", (2,))
    rows = {row["case"]: row for row in benchmark.main([*SMALL, "--mode", "launches"])}
    assert len(rows) == 2 * 5
    for mode in ("train", "infer"):
        assert 0 < rows[f"{mode}, batch 2, kernels"]["ours"] < rows[f"{mode}, batch 2, kernels"]["peer"]


@pytest.mark.parametrize(
    ("option", "message"), [("--size=100", "must be a multiple of 32"), ("--classes=0", "must be at least 1, got 0")]
)
def test_bad_options_are_refused(benchmark, capsys, option, message):
    with pytest.raises(SystemExit):
        benchmark.main([*SMALL, option])
    assert message in capsys.readouterr().err
