# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Options from the command line, files and the embedded default."""

import dataclasses
import json

import pytest
import torch
import yaml

from modeling_mtaclip.training import DataArguments, ModelArguments, MTAClipTrainingArguments, parse_run_arguments
from modeling_mtaclip.training.arguments import DEFAULT_RUN


@pytest.mark.parametrize("arguments_class", [ModelArguments, DataArguments, MTAClipTrainingArguments])
def test_every_option_has_help(arguments_class):
    for option in dataclasses.fields(arguments_class):
        if option.init:
            assert len(option.metadata.get("help", "")) > 10, option.name


def test_toy_config_is_the_embedded_default(repository_dir):
    assert yaml.safe_load((repository_dir / "configs" / "toy.yaml").read_text()) == DEFAULT_RUN


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
    assert (training.lr_scheduler_kwargs, training.max_grad_norm) == ({"power": 0.9, "lr_end": 0.0}, 0.01)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16


@pytest.mark.parametrize(("num_processes", "accumulation"), [(4, 2), (8, 1)])
def test_the_whole_batch_is_the_same_on_any_number_of_processes(monkeypatch, num_processes, accumulation):
    arguments = MTAClipTrainingArguments(total_train_batch_size=16, per_device_train_batch_size=2, report_to="none")
    assert arguments.gradient_accumulation_steps == 8
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    assert arguments._accumulation_steps() == accumulation


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_options_on_the_command_line_override_the_file(tmp_path, suffix):
    path = tmp_path / f"config{suffix}"
    options = {"dataset_name": "x", "learning_rate": "3e-4", "model_config": {"init_std": 0.1}, "crop_size": [64, 96]}
    path.write_text(json.dumps(options))
    model, data, training = parse_run_arguments([str(path), "--dataset_name", "y", "--num_queries", "7"])
    assert (data.dataset_name, data.crop_size, training.learning_rate) == ("y", [64, 96], 3e-4)
    assert (model.num_queries, model.model_config) == (7, {"init_std": 0.1})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_bfloat16_without_accelerator_is_for_the_cpu():
    _, _, training = parse_run_arguments(["--bf16"])
    assert (training.bf16, training.use_cpu) == (True, True)


def test_evaluation_alone_has_no_schedule(tmp_path):
    _, _, training = parse_run_arguments(["--dataset_name", "x", "--do_eval"])
    assert (training.do_train, training.do_eval, training.load_best_model_at_end) == (False, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "'nowhere.yaml' does not exist"),
        (["--crop_size", "100", "128"], r"`crop_size` must be .* multiples of 32, got \[100, 128\]"),
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
