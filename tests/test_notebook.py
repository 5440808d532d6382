# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""`examples/quickstart.ipynb`: runs from a clean kernel, and is committed with the outputs of such a run."""

import json
from pathlib import Path
from typing import Any

import pytest


NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "quickstart.ipynb"
RESULTS = """
results = {
    "mean_iou": scores["eval_mean_iou"],
    "constant_mean_iou": scores["eval_constant_mean_iou"],
    "own_text_is_closest": (similarity.argmax(dim=1) == classes[masks]).double().mean().item(),
    "equal_by_phrases": (answer.labels == prediction).double().mean().item(),
    "new_classes": list(infrared_model.config.id2label.values()),
    "infrared_mean_iou": infrared_scores["eval_mean_iou"],
    "infrared_constant_mean_iou": infrared_scores["eval_constant_mean_iou"],
    "right_before": (before == np.array(infrared_truth)).mean(),
    "right_after": (after.numpy() == np.array(infrared_truth)).mean(),
    "exported_equal": comparison.equal_pixels,
}
print(json.dumps(results))
"""


def outputs_of(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """What all cells put out."""
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_the_committed_notebook_has_the_outputs_of_one_run_of_all_cells():
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    code_cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code_cells] == list(range(1, len(code_cells) + 1))
    outputs = outputs_of(notebook)
    assert "error" not in {output["output_type"] for output in outputs}
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 3
    assert len(text) < 600_000
    # Paths of the machine it ran on.
    assert not [path for path in ("/home/", "/Users/", "/root/", "/tmp/", "site-packages") if path in text]


@pytest.mark.slow
def test_the_notebook_runs_from_a_clean_kernel(tmp_path, monkeypatch):
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"the notebook is not run: {name} is not installed, see the extra `test`")
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    folder = tmp_path / "examples"
    folder.mkdir()
    # An error in a cell is raised here.
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()

    assert "error" not in {output["output_type"] for output in outputs_of(notebook)}
    results = json.loads(notebook.cells[-1].outputs[0].text)
    assert results["constant_mean_iou"] + 0.4 < results["mean_iou"] <= 1
    assert results["own_text_is_closest"] > 0.5
    assert results["equal_by_phrases"] > 0.9
    assert results["new_classes"] == ["ground", "building", "sky", "tree", "car", "person", "sign"]
    assert results["infrared_constant_mean_iou"] + 0.3 < results["infrared_mean_iou"] <= 1
    assert results["right_before"] + 0.05 < results["right_after"]
    assert results["exported_equal"] > 0.999
    for name in ("scenes/report.html", "masks_and_texts.jpg", "infrared/classes.json", "infrared.onnx"):
        assert (folder / "outputs" / name).is_file()
