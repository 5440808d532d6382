# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line from options to results: training, evaluation, resuming, several processes and bad input."""

import json
import os
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, AutoTokenizer

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.data import BadExamplesError
from modeling_mtaclip.data.examples import logger as examples_logger
from modeling_mtaclip.data.scenes import SCENE_CLASSES
from modeling_mtaclip.training.arguments import num_cores
from modeling_mtaclip.training.checkpoints import last_complete_checkpoint
from modeling_mtaclip.training.run import load_model
from tests.conversion.sources import save_clip_folder, save_mask2former_folder
from tests.training.conftest import prepare


dry_run_module = sys.modules["modeling_mtaclip.training.dry_run"]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_what_a_run_saves_is_evaluated_again_with_the_same_scores(finished, tmp_path, capsys):
    folder, metrics = finished.folder, metrics_of(finished.folder)
    assert list(metrics["classes"]) == list(SCENE_CLASSES)
    ious = [each["iou"] for each in metrics["classes"].values() if each["iou"] is not None]
    assert metrics["eval_mean_iou"] == pytest.approx(np.mean(ious))
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}

    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert list(model.config.id2label.values()) == list(SCENE_CLASSES)
    image = Image.open(folder.parent / "data" / "images" / "val" / "100.png")
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    assert model(**inputs).logits.shape == (1, len(SCENE_CLASSES), 16, 24)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("road", add_special_tokens=False)["input_ids"] == model.config.class_token_ids["road"]

    given = {"dataset_name": folder.parent / "data", "model_name_or_path": folder, "do_eval": True}
    prepare(tmp_path, **given).execute()
    output = capsys.readouterr().out
    assert metrics_of(tmp_path / "out")["classes"] == metrics["classes"]
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    scores = f"IoU {metrics['eval_mean_iou']:.4f} (constant prediction: {metrics['eval_constant_mean_iou']:.4f})"
    results = [tmp_path / "out" / name for name in ("metrics.json", "pictures", "report.html")]
    assert all(text in output for text in [scores, *map(str, results)])


def test_bad_input_is_one_message_without_traceback(repository_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_seg.py", "--dataset_name", str(tmp_path / "nowhere"), "--use_cpu"])
    with pytest.raises(SystemExit, match=r"^run_seg\.py: Unknown data set"):
        runpy.run_path(str(repository_dir / "scripts" / "run_seg.py"), run_name="__main__")


def label_out_of_range(path):
    Image.fromarray(np.full_like(Image.open(path), 9)).save(path)


NO_IMAGE = b"\x89PNG\r\n\x1a\n nonsense"


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("annotations/train/0.png", label_out_of_range, r"0\.png.* \[9\]"),
        ("annotations/val/100.png", lambda path: path.unlink(), r"100\.png"),
        ("images/val", lambda path: [each.unlink() for each in path.iterdir()], "images.val"),
        ("images/train/2.png", lambda path: path.write_bytes(NO_IMAGE), r"2\.png"),
        ("classes.json", lambda path: path.write_text('{"names": 3}'), r"classes\.json"),
        (
            "classes.json",
            lambda path: path.write_text(json.dumps([*SCENE_CLASSES[:-1], "ẞ " * 80])),
            "has 80 tokens, but at most",
        ),
    ],
)
def test_bad_data_is_refused_before_training(folder_data, tmp_path, name, spoil, message):
    spoil(folder_data / name)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, max_bad_share=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"do_eval": True}, "Evaluation without training needs a trained model"),
        ({"backbone": "resnet5x", "backbone_config": None}, "There is no backbone 'resnet5x'"),
        ({"backbone_weights": "nowhere.pth"}, "neither a file nor an installed package"),
        ({"text_encoder": "nowhere"}, "'nowhere' is no file, and no model of transformers could be read from it"),
        ({"model_name_or_path": "nowhere"}, "No MTA-CLIP model could be loaded from 'nowhere'"),
        ({"resume_from_checkpoint": "last"}, "there is no checkpoint in"),
        ({"metric_for_best_model": "category_iou"}, "is for data sets with categories"),
        ({"optim": "adamw_bnb_8bit"}, "`optim` adamw_bnb_8bit: "),
        ({"streaming": True, "max_steps": None, "num_train_epochs": 2}, "give `--max_steps`"),
        ({"hidden_size": 48}, r"`hidden_size` \(48\) must be a multiple"),
    ],
)
def test_bad_options_are_refused_before_training(folder_data, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, **overrides)


def test_a_trained_model_takes_other_classes_for_training_alone(folder_data, tmp_path):
    run = prepare(tmp_path)
    run.trainer.save_model()
    names = ["sky", "zebra", "road"]
    (folder_data / "classes.json").write_text(json.dumps(names))
    for path in folder_data.glob("annotations/*/*.png"):
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels < 3, labels, 255).astype(np.uint8)).save(path)
    saved = {"model_name_or_path": str(tmp_path / "out")}
    with pytest.raises(
        ValueError, match=r"has the classes \['road', .* but the data set has \['sky', 'zebra', 'road'\]"
    ):
        prepare(tmp_path, do_eval=True, **saved)
    old, new = run.trainer.model, prepare(tmp_path, **saved).trainer.model
    assert list(new.config.id2label.values()) == names
    for old_row, new_row in ((SCENE_CLASSES.index("sky"), 0), (SCENE_CLASSES.index("road"), 2), (-1, -1)):
        assert torch.equal(new.class_predictor.weight[new_row], old.class_predictor.weight[old_row])
        positions = [model.model.decoder.text_query_positions for model in (new, old)]
        assert torch.equal(positions[0][:, new_row], positions[1][:, old_row])
    assert torch.equal(new.model.decoder.mask_queries, old.model.decoder.mask_queries)
    assert new.config.class_token_ids["road"] == old.config.class_token_ids["road"]
    assert len(new.config.class_token_ids["zebra"]) == 5


def test_the_options_of_the_hub_reach_model_processor_and_tokenizer(finished, monkeypatch):
    seen = []
    for each in (MTAClipForSemanticSegmentation, MTAClipImageProcessor, AutoTokenizer):
        load = each.from_pretrained
        monkeypatch.setattr(
            each, "from_pretrained", lambda name, load=load, **more: (seen.append(more), load(name))[1]
        )
    hub_options = {"token": "x", "revision": "y", "cache_dir": "z"}
    load_model(str(finished.folder), SCENE_CLASSES, adapt=False, **hub_options)
    assert seen == [hub_options] * 3


SOURCE_SIZES = ("backbone", "backbone_config", "hidden_size", "mask_feature_size", "encoder_layers", "decoder_layers")
FROM_SOURCES = dict.fromkeys([*SOURCE_SIZES, "num_queries"])


def test_a_run_starts_from_clip_and_mask2former_and_prints_where_weights_come_from(folder_data, tmp_path, capsys):
    save_clip_folder(tmp_path / "clip")
    source = save_mask2former_folder(tmp_path / "mask2former", ["road", "meadow", "sky"])
    sources = {"mask2former": tmp_path / "mask2former", "text_encoder": tmp_path / "clip"}
    run = prepare(tmp_path, **FROM_SOURCES, **sources, max_steps=1, eval_strategy="no", save_strategy="no")
    printed = capsys.readouterr().out
    assert re.search(rf"From {tmp_path / 'mask2former'}: \d+ tensors\n  model.backbone.", printed)
    model = run.trainer.model
    assert model.config.num_queries == 7
    ours, theirs = model.class_predictor.weight, source.class_predictor.weight
    assert torch.equal(ours[SCENE_CLASSES.index("sky")], theirs[2])
    assert run.trainer.train().training_loss > 0


def test_a_mask2former_is_evaluated_as_it_is_and_not_with_new_weights(folder_data, tmp_path):
    source = save_mask2former_folder(tmp_path / "mask2former", list(SCENE_CLASSES))
    options_of_both = FROM_SOURCES | {"mask2former": tmp_path / "mask2former", "do_eval": True}
    run = prepare(tmp_path, **options_of_both, text_branch=False, num_pictures=0)
    image = run.trainer.eval_dataset[0]["image"]
    pixel_values = run.trainer.processing_class(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected, actual = source(pixel_values), run.trainer.model.eval()(pixel_values)
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-4)
    assert 0 <= run.execute()["eval_mean_iou"] <= 1
    with pytest.raises(ValueError, match=r"needs a trained model, but \d+ weights or classes are new"):
        prepare(tmp_path, **options_of_both)


def test_text_branch_false_trains_saves_and_takes_other_classes(folder_data, tmp_path):
    run = prepare(tmp_path, text_branch=False, max_steps=2, num_pictures=0)
    metrics = run.execute()
    assert metrics["train_loss"] > 0
    assert not any("text" in name or "contrastive" in name for name in run.trainer.model.state_dict())
    (folder_data / "classes.json").write_text(json.dumps([*SCENE_CLASSES[1:], "zebra"]))
    saved = {"model_name_or_path": str(tmp_path / "out"), "text_branch": None}
    model = prepare(tmp_path, **saved).trainer.model
    assert model.config.text_branch is False
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(model.class_predictor.weight[0], weights["class_predictor.weight"][1])


def test_options_reach_model_data_and_processor(folder_data, tmp_path):
    run = prepare(
        tmp_path,
        shortest_edge=48,
        longest_edge=96,
        image_mean="0.1 0.2 0.3",
        image_std="0.4 0.5 0.6",
        max_train_samples=5,
        max_eval_samples=2,
        model_config='{"no_object_weight": 0.2}',
    )
    trainer = run.trainer
    assert trainer.model.config.no_object_weight == 0.2
    assert dict(trainer.processing_class.size) == {"shortest_edge": 48, "longest_edge": 96}
    assert list(trainer.processing_class.image_mean) == [0.1, 0.2, 0.3]
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (5, 2)
    example = trainer.train_dataset[0]
    assert example.pop("names").endswith("0.png")
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "pixel_values": (3, 64, 64),
        "labels": (64, 64),
        "point_seeds": (),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder"), [("ade20k", "ade20k/ADEChallengeData2016"), ("cityscapes", "cityscapes")])
def test_real_samples_take_a_step_and_are_evaluated(shared_dir, tmp_path, name, folder):
    given = {"dataset_name": name, "data_dir": shared_dir / "data" / folder, "shortest_edge": 64}
    metrics = prepare(tmp_path, **given, max_steps=1, eval_strategy="no", save_strategy="no").execute()
    assert metrics["train_loss"] > 0
    assert 0 <= metrics["eval_mean_iou"] <= 1
    assert len(metrics["classes"]) == {"ade20k": 150, "cityscapes": 19}[name]


def test_too_many_bad_images_end_the_run_with_a_message(folder_data, tmp_path):
    for index in range(3):
        (folder_data / "images" / "train" / f"{index}.png").write_bytes(NO_IMAGE)
    run = prepare(tmp_path, check_data="none", max_bad_share=0.3, max_steps=12, seed=3)
    with pytest.raises(BadExamplesError, match=r"3 of 8 training examples can't be used, and 2 may be"):
        run.execute()
    steps = run.trainer.state.global_step
    assert steps == 0 or last_complete_checkpoint(tmp_path / "out").name == f"checkpoint-{steps}"


def test_checks_say_what_was_seen(folder_data, tmp_path):
    run = prepare(tmp_path, check_data="full")
    labels = [np.array(Image.open(path)) for path in (folder_data / "annotations" / "val").iterdir()]
    for index, name in enumerate(SCENE_CLASSES):
        assert run.metrics["checked_pixels"]["validation"][name] == sum(int((each == index).sum()) for each in labels)
    (folder_data / "images" / "train" / "0.png").write_bytes(NO_IMAGE)
    assert not any(prepare(tmp_path, check_data="none").metrics["checked_pixels"]["train"].values())
    with pytest.raises(
        ValueError, match=r"1 unusable examples in the train split:\n- The file .*0\.png can't be read"
    ):
        prepare(tmp_path, check_data="full", max_bad_share=0)
    # Unless none is asked for, one is tolerated.
    prepare(tmp_path, check_data="full")


def test_an_unusable_validation_file_is_named_and_counted_and_the_run_goes_on(folder_data, tmp_path, caplog, capsys):
    run = prepare(tmp_path, max_steps=2, num_pictures=1)
    # After the checks, as a file that they missed.
    label_out_of_range(folder_data / "annotations" / "val" / "101.png")
    examples_logger.addHandler(caplog.handler)
    run.execute()
    examples_logger.removeHandler(caplog.handler)
    assert metrics_of(tmp_path / "out")["eval_num_bad"] == 1
    assert "101.png" in caplog.text
    assert "1 images could not be used" in capsys.readouterr().out


def test_a_score_over_one_class_is_no_success(folder_data, tmp_path, capsys):
    run = prepare(tmp_path, max_steps=1, num_pictures=0, eval_strategy="no", save_strategy="no", check_data="none")
    for path in (folder_data / "annotations" / "val").iterdir():
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels == 0, 0, 255).astype(np.uint8)).save(path)
    run.execute()
    printed = capsys.readouterr().out
    assert "NO MEANINGFUL SCORE: only 1 of 8 classes" in printed
    assert "mean of" not in printed
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["eval_num_annotated_classes"] == 1


def test_the_package_imports_and_runs_where_unix_ends(repository_dir, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr("os.sched_getaffinity")
    assert dry_run_module._peak_memory(torch.device("cpu")) == "unknown"
    assert num_cores() == os.cpu_count()
    run = prepare(tmp_path, dataset_name="scenes", num_threads=None, max_train_samples=8, max_eval_samples=3)
    run.execute()
    assert (tmp_path / "out" / "report.html").is_file()
