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
from modeling_mtaclip.training.model_card import MARKER, public_options, write_model_card
from tests.tiny import CLASS_TOKEN_IDS, tiny_model


def test_the_card_has_what_the_hub_reads_and_what_the_run_came_to(finished):
    finished.trainer.create_model_card()
    card, metrics = ModelCard.load(finished.folder / "README.md"), finished.metrics
    data, text = card.data, card.text
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")
    assert (data.license, data.datasets, data.model_name) == ("unknown", ["data"], "out")
    assert {"mtaclip", "semantic-segmentation"} <= set(data.tags)
    assert data.metrics == ["mean_iou", "accuracy"]
    assert all((each.dataset_name, each.dataset_split) == ("data", "validation") for each in data.eval_results)
    assert [(each.metric_type, each.metric_name, each.metric_value) for each in data.eval_results] == [
        ("mean_iou", "Mean IoU", metrics["eval_mean_iou"]),
        ("accuracy", "Mean accuracy of the classes", metrics["eval_mean_accuracy"]),
        ("accuracy", "Pixel accuracy", metrics["eval_overall_accuracy"]),
    ]
    for expected in (
        f"| Mean IoU | {metrics['eval_mean_iou']:.4f} |",
        *(f"| {name} | {each['iou']:.4f} |" for name, each in metrics["classes"].items() if each["iou"] is not None),
        f"Classes: {', '.join(SCENE_CLASSES)}.",
        "data (8 training images, 5 validation images). Images keep their size.",
        "| `learning_rate` | `0.001` |\n| `",
        "| `num_queries` | `10` |",
        f"{finished.trainer.model.num_parameters() / 1e6:.1f} million parameters",
    ):
        assert expected in text
    assert str(finished.folder.parent) not in text


def test_the_snippet_runs(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished.folder, tmp_path / "out")
    make_scene(0)[0].save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), flags=re.DOTALL)
    exec(code, {})
    names = re.findall(r"'(.*?)'", capsys.readouterr().out)
    assert names
    assert set(names) <= set(SCENE_CLASSES)


def test_a_card_in_the_working_folder_has_its_name(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    monkeypatch.setattr(finished.trainer.args, "output_dir", ".")
    monkeypatch.setattr(finished.trainer.train_dataset.data, "info", DATASETS["scenes"])
    finished.trainer.create_model_card()
    card = ModelCard.load("README.md")
    assert (card.data.model_name, card.data.license) == ("out", "apache-2.0")
    assert "trained on Synthetic scenes:" in card.text


def test_pushing_goes_through_the_trainer_with_our_card(finished, monkeypatch):
    calls = []

    def create_repo(self, repo_id, **kwargs):
        calls.append(repo_id)
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, **kwargs):
        files = {path.name for path in Path(folder_path).iterdir()}
        calls.append((repo_id, files, ModelCard.load(Path(folder_path) / "README.md")))
        return "uploaded"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert finished.trainer.push_to_hub(license="cc-by-4.0", tags="street") == "uploaded"
    (created, (repo_id, files, card)) = calls
    assert (created, repo_id) == ("out", "someone/out")
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "metrics.json"} <= files
    assert card.data.license == "cc-by-4.0"
    assert "street" in card.data.tags
    assert 'from_pretrained("someone/out", trust_remote_code=True)' in card.text
    pushed = []
    monkeypatch.setattr(finished.trainer, "push_to_hub", lambda: pushed.append(True))
    for told in (False, True):
        monkeypatch.setattr(finished.trainer.args, "push_to_hub", told)
        finished.save_results()
        assert len(pushed) == told


def card(tmp_path, *, warnings=(), history=(), model=None, data=None, **options):
    """A card of a model that no run has made; `None` if it was not written."""
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path)),
        model=model or tiny_model(),
        processing_class=MTAClipImageProcessor(),
        options={"dataset_name": "scenes"} | options,
        train_dataset=SimpleNamespace(data=SimpleNamespace(info=data)),
        eval_dataset=None,
        state=SimpleNamespace(log_history=history),
        scores=SimpleNamespace(warnings=lambda: warnings),
    )
    is_written = write_model_card(trainer, "model")
    return ModelCard.load(tmp_path / "README.md") if is_written else None


def test_a_card_that_its_reader_took_over_is_left_alone(tmp_path):
    path = tmp_path / "README.md"
    assert card(tmp_path)
    assert card(tmp_path)
    own = path.read_text().replace(MARKER, "My words.")
    path.write_text(own)
    assert card(tmp_path) is None
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
    written = card(tmp_path, data=DATASETS.get(info), dataset_name=name, history=[evaluation])
    assert (written.data.license, written.data.datasets) == (license, [shown])
    title = DATASETS[info].title if info else name.split("/")[-1]
    assert written.data.eval_results[0].dataset_name == title
    assert text in written.text


@pytest.mark.parametrize("missing", [None, math.nan])
def test_scores_that_do_not_exist_are_not_shown(tmp_path, missing):
    evaluation = {"eval_mean_iou": missing, "eval_overall_accuracy": missing, "eval_iou_road": missing, "step": 1}
    written = card(tmp_path, warnings=["Nothing is annotated."], history=[evaluation])
    assert "There are no scores." in written.text
    assert "Nothing is annotated." in written.text
    assert written.data.eval_results is None
    assert "nan" not in (tmp_path / "README.md").read_text().lower()


def test_unusual_class_names_stay_in_their_cells(tmp_path):
    names = {"a | b": "a \\| b", "<script>": "&lt;script&gt;", "{{ 1 + 1 }}": "{{ 1 + 1 }}"}
    tokens = dict(zip([*names, "none"], CLASS_TOKEN_IDS.values(), strict=True))
    model = tiny_model(id2label=dict(enumerate(names)), class_token_ids=tokens)
    evaluation = {"eval_mean_iou": 0.5, "step": 1} | {f"eval_iou_{name}": 0.25 for name in names}
    written = card(tmp_path, history=[evaluation], model=model)
    assert all(f"| {cell} | 0.2500 |" in written.text for cell in names.values())


def test_tokens_and_folders_of_the_machine_are_not_shown(tmp_path):
    given_and_shown = {
        "dataset_name": (str(tmp_path / "streets"), "streets"),
        "model_name_or_path": ("someone/model", "someone/model"),
        "text_encoder": ("../clip", "clip"),
        "output_dir": (str(tmp_path), None),
        "backbone_weights": (Path("/home/me/weights.pt"), "weights.pt"),
        "lr_scheduler_kwargs": ({"file": "C:\\Users\\me\\x.json", "hub_token": "hf_secret"}, {"file": "x.json"}),
        "files": (["~/a.txt", "b"], ["a.txt", "b"]),
        "run_name": ("{dataset_name}", "{dataset_name}"),
        "hub_token": ("hf_secret", None),
        "token": ("hf_secret", None),
        "num_queries": (5, 5),
        "lr_scheduler_type": (SchedulerType.COSINE, "cosine"),
    }
    given = {name: value for name, (value, _) in given_and_shown.items()}
    assert public_options(given) == {name: shown for name, (_, shown) in given_and_shown.items() if shown is not None}
    written = card(tmp_path, **given, backbone="resnet50")
    assert written.data.base_model == ["someone/model"]
    assert not re.search(rf"hf_secret|/home|~/|Users|{tmp_path}", (tmp_path / "README.md").read_text())
