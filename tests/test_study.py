# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""`scripts/study.py`: runs of the peer and of the ablation, what is kept of them, and the tables."""

import json
import sys

import pytest
import torch

from tests.tiny import tiny_model
from tests.training.conftest import draw_folder, options


@pytest.fixture
def study(repository_dir, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(repository_dir / "scripts"))
    import study

    monkeypatch.setattr(study, "RUNS", tmp_path / "results" / "runs.jsonl")
    monkeypatch.setattr(study, "PAGE", tmp_path / "results.md")
    yield study
    sys.modules.pop("study")


def test_the_peer_learns_as_transformers_mask2former_does(study):
    model = tiny_model(text_branch=False, decoder_layers=2)
    peer = study.Mask2FormerPeer(model)
    pixel_values, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 2]).repeat_interleave(2048).view(1, 64, 64)
    labels = labels.repeat(2, 1, 1)
    torch.manual_seed(0)
    outputs = peer(pixel_values, labels, torch.tensor([[0, 2], [0, 2]]), loss_normalizers=None)
    masks = torch.stack([labels[0] == 0, labels[0] == 2]).float()
    torch.manual_seed(0)
    theirs = peer.peer(pixel_values, mask_labels=[masks] * 2, class_labels=[torch.tensor([0, 2])] * 2)
    torch.testing.assert_close(outputs.loss, theirs.loss.squeeze())
    assert torch.equal(peer.model["backbone"].state_dict()["embedder.embedder.convolution.weight"],
                       model.model.backbone.state_dict()["embedder.embedder.convolution.weight"])  # fmt: skip


@pytest.mark.slow
def test_runs_are_kept_and_not_repeated(study, tmp_path, monkeypatch):
    folder = draw_folder(tmp_path / "data", num_train=4, num_validation=1)
    config = tmp_path / "tiny.yaml"
    config.write_text("{}\n")
    common = ["--dataset_name", str(folder), "--config", str(config), "--seeds", "0", "--hold_out", "0"]
    tiny = options(max_steps=1, eval_steps=None, save_steps=None)
    names = ["peer", "masks_in_both", "fixed_phrase", "texts_prototypes"]
    for _ in range(2):
        for name in names:
            arguments = study.parse_arguments(["run", name, *common, "--options", *tiny])
            study.run_all([name], arguments)
        monkeypatch.setattr(study, "execute", None)  # a second run of anything would fail
    lines = [json.loads(line) for line in study.RUNS.read_text().splitlines()]
    assert [line["setting"] for line in lines] == names
    assert all(line["images"] == 2 and 0 <= line["mean_iou"] <= 1 and len(line["iou"]) > 1 for line in lines)
    study.PAGE.write_text("Before\n<!-- table: run, held out -->\nold\n<!-- end -->\nAfter\n")
    study.write_tables()
    page = study.PAGE.read_text()
    assert page.startswith("Before\n<!-- table: run, held out -->\n| ")
    assert page.endswith("<!-- end -->\nAfter\n")
    assert "old" not in page
    assert page.count("Mask2Former of transformers") == 1


def test_a_row_is_the_mean_and_deviation_of_its_seeds(study):
    common = {"setting": "recipe", "label": "the recipe", "options": ["--a", "1"], "config": "a.yaml 0ab1", "steps": 5}
    common |= {"processor": "NVIDIA H200", "images": 20, "minutes": 2, "boundary_f_score": 0.5}
    runs = [common | {"mean_iou": value, "iou": {"sky": value}} for value in (0.70, 0.72)]
    row = "| the recipe | --a 1 | 0ab1 | H200 | 5 | 20 | 2.0 | 71.0 ± 1.4 | 50.0 ± 0.0 | 2 |"
    assert study.table(runs).splitlines()[2:] == [row]
    assert study.class_table(runs).splitlines()[2:] == ["| sky | 71.0 ± 1.4 |"]
