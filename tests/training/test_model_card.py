# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card: metadata that the Hub can read, a snippet that runs, and pushing through the trainer."""

import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard
from transformers import SchedulerType

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.data import DATASETS
from modeling_mtaclip.data.scenes import SCENE_CLASSES, make_scene
from modeling_mtaclip.training import parse_run_arguments, prepare_run
from modeling_mtaclip.training.model_card import MARKER, public_options, write_model_card
from tests.tiny import CLASS_TOKEN_IDS, tiny_model
from tests.training.conftest import draw_folder, options


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is over, and its metrics."""
    folder = tmp_path_factory.mktemp("card")
    draw_folder(folder / "my_data")
    arguments = options(dataset_name=folder / "my_data", output_dir=folder / "my_model", check_data="none")
    run = prepare_run(*parse_run_arguments([*arguments, "--report_to", "none", "--report", "False"]))
    return run, run.execute(), folder / "my_model"


def test_the_card_has_what_the_hub_reads_and_what_the_run_came_to(finished):
    run, metrics, folder = finished
    card = ModelCard.load(folder / "README.md")
    data, text = card.data, card.text
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")
    assert (data.license, data.datasets, data.model_name) == ("unknown", ["my_data"], "my_model")
    assert {"mtaclip", "semantic-segmentation"} <= set(data.tags)
    assert data.metrics == ["mean_iou", "accuracy"]
    results = [
        (each.task_type, each.dataset_name, each.dataset_split, each.metric_type, each.metric_name, each.metric_value)
        for each in data.eval_results
    ]
    of_data = ("image-segmentation", "my_data", "validation")
    assert results == [
        (*of_data, "mean_iou", "Mean IoU", metrics["eval_mean_iou"]),
        (*of_data, "accuracy", "Mean accuracy of the classes", metrics["eval_mean_accuracy"]),
        (*of_data, "accuracy", "Pixel accuracy", metrics["eval_overall_accuracy"]),
    ]
    assert f"| Mean IoU | {metrics['eval_mean_iou']:.4f} |" in text
    for name, figures in metrics["classes"].items():
        assert figures["iou"] is None or f"| {name} | {figures['iou']:.4f} |" in text
    assert f"Classes: {', '.join(SCENE_CLASSES)}." in text
    assert "my_data (8 training images, 3 validation images). Images keep their size." in text
    assert "| `learning_rate` | `0.001` |\n| `" in text
    assert "| `num_queries` | `10` |" in text
    assert f"{run.trainer.model.num_parameters() / 1e6:.1f} million parameters" in text
    assert str(folder.parent) not in text


def test_the_snippet_runs(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished[2], tmp_path / "my_model")
    make_scene(0)[0].save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (finished[2] / "README.md").read_text(), flags=re.DOTALL)
    exec(code, {})
    names = re.findall(r"'(.*?)'", capsys.readouterr().out)
    assert names
    assert set(names) <= set(SCENE_CLASSES)


def test_a_card_in_the_working_folder_has_its_name_and_tells_the_data(finished, monkeypatch):
    trainer, folder = finished[0].trainer, finished[2]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(trainer.args, "output_dir", ".")
    trainer.create_model_card()
    card = ModelCard.load("README.md")
    assert (card.data.model_name, card.data.license) == ("my_model", "unknown")
    monkeypatch.setattr(trainer.train_dataset.data, "info", DATASETS["scenes"])
    trainer.create_model_card()
    card = ModelCard.load("README.md")
    assert card.data.license == "apache-2.0"
    assert "trained on Synthetic scenes:" in card.text


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
    assert (created, repo_id) == (("create", "my_model"), "someone/my_model")
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "metrics.json"} <= files
    assert card.data.license == "cc-by-4.0"
    assert "street" in card.data.tags
    assert card.data.eval_results[0].metric_value == metrics["eval_mean_iou"]
    assert 'from_pretrained("someone/my_model", trust_remote_code=True)' in card.text


def test_a_run_pushes_when_it_is_told_to(finished, monkeypatch):
    run, pushed = finished[0], []
    monkeypatch.setattr(run.trainer, "push_to_hub", lambda: pushed.append(True))
    for told in (False, True):
        monkeypatch.setattr(run.trainer.args, "push_to_hub", told)
        run.save_results()
        assert len(pushed) == told


def card(tmp_path, warnings=(), history=(), model=None, data=None, **options):
    """A card of a model that no run has made: whether it was written, and the card."""
    path = tmp_path / "README.md"
    is_written = write_model_card(
        path,
        model=model or tiny_model(),
        image_processor=MTAClipImageProcessor(),
        model_id="model",
        options={"dataset_name": "scenes"} | options,
        history=history,
        data=data,
        warnings=warnings,
    )
    return is_written, ModelCard.load(path)


def test_a_card_that_its_reader_took_over_is_left_alone(tmp_path):
    path = tmp_path / "README.md"
    assert card(tmp_path)[0]
    assert card(tmp_path)[0]
    own = path.read_text().replace(MARKER, "My words.")
    path.write_text(own)
    assert not card(tmp_path)[0]
    assert path.read_text() == own


@pytest.mark.parametrize(
    ("info", "name", "license", "shown", "text"),
    [
        ("scenes", "scenes", "apache-2.0", "scenes", "trained on Synthetic scenes:"),
        ("cityscapes", "cityscapes", "unknown", "cityscapes", "License of the data: for non-commercial purposes"),
        (None, "/home/me/scenes", "unknown", "scenes", "trained on scenes:"),
        (None, "/home/me/my own: data", "unknown", "my-own-data", "trained on my own: data:"),
    ],
)
def test_known_data_have_their_title_and_license(tmp_path, info, name, license, shown, text):
    """A folder named like them is not taken for them."""
    evaluation = {"eval_mean_iou": 0.5, "step": 1}
    _, written = card(tmp_path, data=DATASETS.get(info), dataset_name=name, history=[evaluation])
    assert (written.data.license, written.data.datasets) == (license, [shown])
    title = DATASETS[info].title if info else name.split("/")[-1]
    assert written.data.eval_results[0].dataset_name == title
    assert text in written.text


@pytest.mark.parametrize("missing", [None, math.nan])
def test_scores_that_do_not_exist_are_not_shown(tmp_path, missing):
    evaluation = {"eval_mean_iou": missing, "eval_overall_accuracy": missing, "eval_iou_road": missing, "step": 1}
    _, written = card(tmp_path, ["Nothing is annotated."], [evaluation])
    assert "There are no scores." in written.text
    assert "Nothing is annotated." in written.text
    assert written.data.eval_results is None
    assert "nan" not in (tmp_path / "README.md").read_text().lower()


def test_unusual_class_names_stay_in_their_cells(tmp_path):
    names = ["a | b", "<script>", "{{ 1 + 1 }}"]
    tokens = dict(zip([*names, "none"], CLASS_TOKEN_IDS.values(), strict=True))
    model = tiny_model(id2label=dict(enumerate(names)), class_token_ids=tokens)
    evaluation = {"eval_mean_iou": 0.5, "step": 1} | {f"eval_iou_{name}": 0.25 for name in names}
    _, written = card(tmp_path, history=[evaluation], model=model)
    assert "| a \\| b | 0.2500 |" in written.text
    assert "| &lt;script&gt; | 0.2500 |" in written.text
    assert "| {{ 1 + 1 }} | 0.2500 |" in written.text


def test_tokens_and_folders_of_the_machine_are_not_shown(tmp_path):
    given = {
        "dataset_name": str(tmp_path / "streets"),
        "model_name_or_path": "someone/model",
        "text_encoder": "../clip",
        "output_dir": str(tmp_path),
        "backbone_weights": Path("/home/me/weights.pt"),
        "backbone_config": {"layers": 3, "file": "/home/me/config.json"},
        "lr_scheduler_kwargs": {"file": "C:\\Users\\me\\x.json", "hub_token": "hf_secret"},
        "files": ["~/a.txt", "b"],
        "run_name": "{dataset_name}",
        "hub_token": "hf_secret",
        "token": "hf_secret",
        "num_queries": 5,
        "lr_scheduler_type": SchedulerType.COSINE,
    }
    shown = {
        "dataset_name": "streets",
        "model_name_or_path": "someone/model",
        "text_encoder": "clip",
        "backbone_weights": "weights.pt",
        "backbone_config": {"layers": 3, "file": "config.json"},
        "lr_scheduler_kwargs": {"file": "x.json"},
        "files": ["a.txt", "b"],
        "run_name": "{dataset_name}",
        "num_queries": 5,
        "lr_scheduler_type": "cosine",
    }
    assert public_options(given) == shown
    _, written = card(tmp_path, **given, backbone="resnet50")
    assert written.data.base_model == ["someone/model"]
    text = (tmp_path / "README.md").read_text()
    assert not re.search(r"hf_secret|/home|~/|Users", text)
    assert str(tmp_path) not in text
