# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Options from the command line, files and the embedded default."""

import dataclasses
import json
import pickle
import re

import pytest
import torch
from transformers import SchedulerType, TrainingArguments

from modeling_mtaclip.training import DataArguments, ModelArguments, MTAClipTrainingArguments, parse_run_arguments
from modeling_mtaclip.training.arguments import HELP_GROUPS, UNUSABLE


def test_help_has_groups_the_papers_defaults_and_a_word_about_the_rest(capsys):
    with pytest.raises(SystemExit):
        parse_run_arguments(["--help"])
    printed = capsys.readouterr().out
    text = " ".join(printed.split())
    assert all(f"{title}: --" in text for title in HELP_GROUPS)
    shown = re.findall(r"^  --(\w+)", printed, flags=re.MULTILINE)
    assert sorted(shown) == sorted(" ".join(HELP_GROUPS.values()).split())
    assert len(shown) <= 65
    # Each has a text.
    assert not re.search(r"[A-Z_]+(?: \[\S+ \.\.\.\])?\n  --", printed)
    assert "--learning_rate LEARNING_RATE The initial learning rate for the optimizer. (default: 0.0001)" in text
    assert "(default: 160000)" in text
    assert "'last': the newest complete one" in text
    assert "and all of transformers' TrainingArguments are accepted" in text
    # The others are accepted all the same, in both spellings.
    model, _, training = parse_run_arguments(["--num_queries", "7", "--adam_beta1", "0.5", "--adam-beta2=0.6"])
    assert (model.num_queries, training.adam_beta1, training.adam_beta2) == (7, 0.5, 0.6)


def test_options_that_help_leaves_out_are_in_the_documentation(repository_dir):
    page = (repository_dir / "docs" / "training.md").read_text()
    shown = " ".join(HELP_GROUPS.values()).split()
    ours = {option.name for each in (ModelArguments, DataArguments) for option in dataclasses.fields(each)}
    ours |= MTAClipTrainingArguments.__annotations__.keys() - TrainingArguments.__dataclass_fields__.keys()
    assert [name for name in sorted(ours.difference(shown)) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("arguments", [[], ["--use_cpu"]])
def test_embedded_default_runs_without_data_set_and_file(arguments):
    model, data, training = parse_run_arguments(arguments)
    assert (model.hidden_size, model.backbone_config["depths"]) == (64, [1, 1, 1, 1])
    assert (data.dataset_name, data.size, data.crop_size) == ("scenes", None, [96, 128])
    assert (training.learning_rate, training.do_train, training.do_eval) == (1e-3, True, True)


def test_a_named_data_set_starts_from_the_papers_recipe():
    model, data, training = parse_run_arguments(["--dataset_name", "ade20k"])
    assert (model.num_queries, model.num_prompt_contexts, model.prompt_length) == (100, 3, 8)
    assert (model.encoder_layers, model.decoder_layers, model.train_num_points) == (6, 9, 12544)
    assert data.size == {"shortest_edge": 512, "longest_edge": 2048}
    assert (data.scale_range, data.crop_size, data.cat_max_ratio) == ([0.5, 2.0], [512, 512], 0.75)
    assert (training.learning_rate, training.weight_decay, training.backbone_lr_factor) == (1e-4, 0.02, 0.1)
    assert (training.warmup_steps, training.warmup_start_factor, training.max_steps) == (1500, 0.1, 160_000)
    assert (training.lr_scheduler_type, training.max_grad_norm) == ("polynomial", 0.01)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16


@pytest.mark.parametrize(("num_processes", "accumulation"), [(4, 2), (8, 1)])
def test_the_whole_batch_is_the_same_on_any_number_of_processes(monkeypatch, num_processes, accumulation):
    arguments = MTAClipTrainingArguments(total_train_batch_size=16, per_device_train_batch_size=2, report_to="none")
    assert arguments.gradient_accumulation_steps == 8
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    assert arguments._accumulation_steps() == accumulation


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_options_on_the_command_line_override_the_file_and_the_file_its_bases(tmp_path, suffix):
    path = tmp_path / "sub" / f"config{suffix}"
    path.parent.mkdir()
    options = {"dataset_name": "x", "learning_rate": "3e-4", "model_config": {"init_std": 0.1}, "crop_size": [64, 96]}
    path.write_text(json.dumps(options | {"base": ["../a.yaml", "../b.yaml"], "text_encoder": "clip"}))
    (tmp_path / "a.yaml").write_text("learning_rate: 1.0\nweight_decay: 2.0\nmax_grad_norm: 3.0")
    (tmp_path / "b.yaml").write_text("weight_decay: 4.0\nnum_queries: 5")
    model, data, training = parse_run_arguments([str(path), "--dataset_name", "y", "--hidden-size=64"])
    assert (data.dataset_name, data.crop_size, training.learning_rate) == ("y", [64, 96], 3e-4)
    assert (training.weight_decay, training.max_grad_norm) == (4.0, 3.0)
    assert (model.hidden_size, model.num_queries, model.model_config) == (64, 5, {"init_std": 0.1})
    # A saved model brings what the file says of a new one.
    model, _, training = parse_run_arguments([str(path), "--model_name_or_path", "outputs/x", "--do_eval"])
    assert (model.text_encoder, model.num_queries, training.learning_rate) == (None, 100, 3e-4)
    # Evaluation alone has no schedule.
    assert (training.do_train, training.do_eval, training.load_best_model_at_end) == (False, True, False)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_bfloat16_without_accelerator_is_for_the_cpu():
    _, _, training = parse_run_arguments(["--bf16"])
    assert (training.bf16, training.use_cpu) == (True, True)


@pytest.mark.parametrize(
    ("arguments", "steps", "epochs"),
    [
        ([], 800, 3.0),
        (["--num_train_epochs", "2"], -1, 2.0),
        (["--max-steps", "7"], 7, 3.0),
        (["--dataset_name", "x", "--num-train-epochs=2"], -1, 2.0),
        (["--dataset_name", "x", "--max_steps", "5", "--num_train_epochs", "2"], 5, 2.0),
    ],
)
def test_epochs_are_not_overruled_by_steps_that_nobody_gave(arguments, steps, epochs):
    training = parse_run_arguments(arguments)[2]
    assert (training.max_steps, training.num_train_epochs) == (steps, epochs)


SCHEDULE_OPTIONS = {"cosine_with_min_lr": {"min_lr": 1e-6}, "cosine_warmup_with_min_lr": {"min_lr": 1e-6}}
SCHEDULE_OPTIONS |= {"warmup_stable_decay": {"num_decay_steps": 10}}


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_every_schedule_works_as_the_help_says(kind):
    arguments = ["--lr_scheduler_type", kind]
    if kind in SCHEDULE_OPTIONS:
        with pytest.raises(ValueError, match=rf"`lr_scheduler_type` {kind} does not work with"):
            parse_run_arguments(arguments)
        arguments += ["--lr_scheduler_kwargs", json.dumps(SCHEDULE_OPTIONS[kind])]
    for more in ([], ["--warmup_steps", "0"], ["--learning_rate", "0"] if kind not in SCHEDULE_OPTIONS else []):
        assert parse_run_arguments([*arguments, *more])[2].lr_scheduler_type == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "'nowhere.yaml' does not exist"),
        (["--crop_size", "100", "128"], r"`crop_size` must be .* multiples of 32, got \[100, 128\]"),
        (["--crop_size", "32", "32"], "more than 32 32, of which the backbone's last level is one pixel"),
        (["--max_bad_share", "2"], "`max_bad_share` must be between 0 and 1, got 2"),
        (["--learning_rate", "nan"], "`learning_rate` must not be negative, got nan"),
        (["--scale_range", "2", "1"], "the lower one first, got"),
        (["--shortest_edge", "512", "--longest_edge", "256"], "got 512 and 256"),
        (["--max_eval_samples", "0"], "`max_eval_samples` must be positive, got 0"),
        (["--model_config", "{"], "`model_config` must be JSON, got '{'"),
        (["--backbone_config", "[1]"], r"`backbone_config` must be a mapping .*, got \[1\]"),
        (["--model_name_or_path", "x", "--text_encoder", "y"], "are for new models"),
        (["--backbone_lr_factor", "-1"], "`backbone_lr_factor` must not be negative, got -1"),
        (["--remove_unused_columns", "True"], "`remove_unused_columns` must be False"),
        (["--total_train_batch_size", "16", "--per_device_train_batch_size", "3"], r"must be a multiple of .* \(3\)"),
        (["--no_such_option", "1"], "no_such_option"),
        (["--metric_for_best_model", "eval_loss"], r"must be one of \['mean_iou', .*, got 'loss'"),
        (["--metric_for_best_model", "boundary_iou"], "must be one of"),
        (["--lr_scheduler_kwargs", '{"lr_end": 1}'], "`lr_end` must be between 0 and the learning rate"),
        (["--learning_rate", "0", "--lr_scheduler_kwargs", '{"lr_end": 1e-6}'], "`lr_end` must be between 0"),
        (["--report_to", "nowhere"], r"`report_to` \['nowhere'\] is not installed"),
        (["--learning_rate", "-1"], "`learning_rate` must not be negative"),
        (["--max_steps", "0"], "`max_steps` must be positive"),
        (["--num_threads", "0"], "`num_threads` must be positive"),
        (["--per_device_train_batch_size", "0"], "`per_device_train_batch_size` must be positive"),
        (["--ema_decay", "1"], "`ema_decay` must be below 1"),
        (["--ema_decay", "0.9", "--fsdp", "full_shard"], "`ema_decay` needs whole weights"),
        (["--fp16", "--use_cpu"], "`fp16` needs a GPU"),
        (["--tokenizer", "x"], "`tokenizer` belongs to `text_encoder`"),
        (["--image_std", "1", "0", "1"], "`image_std` must be three numbers"),
        (["--model_name_or_path", "x", "--num_queries", "7"], r"\['num_queries'\] are for new models"),
        (["--save_steps", "300", "--eval_steps", "200"], "not a round multiple"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_run_arguments(arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", r"Unknown options in the configuration file: \['learning_rat'\]"),
        ("- 1", "must hold a mapping from options to values, got list"),
        ("a: [", "could not be read"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_run_arguments([str(path)])


@pytest.mark.parametrize("name", UNUSABLE)
def test_options_without_effect_are_refused(name):
    if name in MTAClipTrainingArguments.__dataclass_fields__:
        with pytest.raises(ValueError, match=f"`{name}` must be "):
            MTAClipTrainingArguments(**{name: True}, report_to="none")


def test_saved_arguments_hold_no_token():
    arguments = MTAClipTrainingArguments(hub_token="hf_secret", report_to="none")
    saved = pickle.dumps(arguments)
    assert b"hf_secret" not in saved
    assert arguments.hub_token == "hf_secret"
    arguments.hub_token = None
    assert pickle.loads(saved) == arguments
