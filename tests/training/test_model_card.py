# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card: metadata that the Hub can read, a snippet that runs, and pushing through the trainer."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard

from modeling_mtaclip.data.scenes import SCENE_CLASSES, make_scene
from modeling_mtaclip.training import parse_run_arguments, prepare_run
from modeling_mtaclip.training.model_card import MARKER, CardContent, public_options, write_model_card
from tests.tiny import tiny_config
from tests.training.conftest import draw_folder, options


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is over, and its metrics."""
    folder = tmp_path_factory.mktemp("card")
    draw_folder(folder / "my_data")
    arguments = options(dataset_name=folder / "my_data", output_dir=folder / "my_model", check_data="none")
    run = prepare_run(*parse_run_arguments([*arguments, "--report_to", "none", "--report", "False"]))
    return run, run.execute(), folder / "my_model"


def test_metadata_is_what_the_hub_reads(finished):
    _, metrics, folder = finished
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")
    assert data.license == "unknown"
    assert data.datasets == ["my_data"]
    assert {"mtaclip", "semantic-segmentation"} <= set(data.tags)
    assert data.metrics == ["mean_iou", "accuracy"]
    assert data.model_name == "my_model"
    results = {(result.metric_type, result.metric_name): result.metric_value for result in data.eval_results}
    assert results == {
        ("mean_iou", "Mean IoU"): metrics["eval_mean_iou"],
        ("accuracy", "Mean accuracy of the classes"): metrics["eval_mean_accuracy"],
        ("accuracy", "Pixel accuracy"): metrics["eval_overall_accuracy"],
    }
    for result in data.eval_results:
        assert (result.task_type, result.dataset_name, result.dataset_split) == (
            "image-segmentation",
            "my_data",
            "validation",
        )


def test_text_has_results_classes_data_and_recipe(finished):
    run, metrics, folder = finished
    text = ModelCard.load(folder / "README.md").text
    assert f"| Mean IoU | {metrics['eval_mean_iou']:.4f} |" in text
    for name, figures in metrics["classes"].items():
        if figures["iou"] is not None:
            assert f"| {name} | {figures['iou']:.4f} |" in text
    assert f"Classes: {', '.join(SCENE_CLASSES)}." in text
    assert "my_data (8 training images, 3 validation images). Images keep their size." in text
    assert "| `learning_rate` | `0.001` |" in text
    assert "| `num_queries` | `10` |" in text
    assert f"{run.trainer.model.num_parameters() / 1e6:.1f} million parameters" in text
    assert str(folder.parent) not in text


@pytest.mark.slow
def test_the_snippet_runs_where_the_package_is_not_installed(finished, tmp_path):
    _, _, folder = finished
    shutil.copytree(folder, tmp_path / folder.name)
    make_scene(0)[0].save(tmp_path / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    command = [sys.executable, "-I", "-c", code]
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": ""}
    output = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"'(.*?)'", output)) <= set(SCENE_CLASSES)


def test_pushing_goes_through_the_trainer_with_our_card(finished, monkeypatch):
    run, metrics, _ = finished
    calls = []

    def create_repo(self, repo_id, **kwargs):
        calls.append(("create", repo_id))
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, **kwargs):
        files = {path.name for path in Path(folder_path).iterdir()}
        calls.append(("upload", repo_id, files, ModelCard.load(Path(folder_path) / "README.md")))
        return "uploaded"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert run.trainer.push_to_hub(license="cc-by-4.0", tags="street") == "uploaded"
    (created, (_, repo_id, files, card)) = calls
    assert created == ("create", "my_model")
    assert repo_id == "someone/my_model"
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "metrics.json"} <= files
    assert card.data.license == "cc-by-4.0"
    assert "street" in card.data.tags
    assert card.data.eval_results[0].metric_value == metrics["eval_mean_iou"]
    assert 'from_pretrained("someone/my_model", trust_remote_code=True)' in card.text


def test_a_run_pushes_when_it_is_told_to(tmp_path, monkeypatch):
    uploads = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **kwargs: uploads.append(kwargs["repo_id"]))
    draw_folder(tmp_path / "data")
    arguments = options(
        dataset_name=tmp_path / "data",
        output_dir=tmp_path / "out",
        max_steps=1,
        check_data="none",
        report=False,
        push_to_hub=True,
        hub_model_id="someone/something",
        hub_strategy="end",
    )
    prepare_run(*parse_run_arguments([*arguments, "--report_to", "none"])).execute()
    assert uploads == ["someone/something"]


def test_a_card_that_its_reader_took_over_is_left_alone(tmp_path):
    path = tmp_path / "README.md"
    content = CardContent("model", tiny_config(), 1_000_000, {"dataset_name": "scenes"})
    assert write_model_card(path, content)
    assert write_model_card(path, content)
    assert ModelCard.load(path).data.license == "apache-2.0"
    own = path.read_text().replace(MARKER, "My words.")
    path.write_text(own)
    assert not write_model_card(path, content)
    assert path.read_text() == own


def test_folders_of_the_machine_are_not_shown(tmp_path):
    given = {
        "dataset_name": str(tmp_path / "streets"),
        "model_name_or_path": "someone/model",
        "text_encoder": "../clip",
        "output_dir": str(tmp_path),
        "num_queries": 5,
    }
    assert public_options(given) == {
        "dataset_name": "streets",
        "model_name_or_path": "someone/model",
        "text_encoder": "clip",
        "num_queries": 5,
    }


def test_models_it_starts_from_are_named(tmp_path):
    given = {"dataset_name": "ade20k", "text_encoder": "openai/clip-vit-base-patch16", "backbone": "resnet50"}
    for named, expected in (([], ["openai/clip-vit-base-patch16"]), (["a/b"], ["a/b"])):
        content = CardContent("model", tiny_config(), 1, public_options(given), base_models=named)
        write_model_card(tmp_path / "README.md", content)
        assert ModelCard.load(tmp_path / "README.md").data.base_model == expected
