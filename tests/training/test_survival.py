# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, terminated or meet broken numbers, and averaged weights."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_mtaclip.data import TrainingCollator
from modeling_mtaclip.training.callbacks import EMA_FILE, AveragedWeightsCallback, BrokenStepsCallback
from modeling_mtaclip.training.checkpoints import TrainingStopped, last_complete_checkpoint
from tests.tiny import tiny_model
from tests.training.conftest import options, prepare
from tests.training.distributed_steps import evaluation_example, example, trainer
from tests.training.test_trainer import run_steps


LONG_RUN = {"max_steps": 16, "save_steps": 4, "eval_strategy": "no", "do_train": True}


def start(repository_dir, folder, num_processes=1, **overrides):
    """Starts a run that saves every few steps, and goes on in the background."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    command = [sys.executable, *launcher * (num_processes > 1), str(repository_dir / "scripts" / "run_seg.py")]
    arguments = options(**{"dataset_name": folder / "data", "output_dir": folder / "out"} | LONG_RUN | overrides)
    return subprocess.Popen(
        [*command, *arguments, "--use_cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(repository_dir), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for(condition, process, timeout=240):
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(repository_dir, folder_data, tmp_path):
    more = {"ema_decay": 0.9, "dataloader_num_workers": 1}
    process = start(repository_dir, tmp_path, **more)
    wait_for(lambda: last_complete_checkpoint(tmp_path / "out"), process)
    # With all its processes, as schedulers do: a worker whose parent dies while it starts would never end.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    prepare(tmp_path, output_dir=tmp_path / "whole", **LONG_RUN | more).execute()
    prepare(tmp_path, resume_from_checkpoint="last", **LONG_RUN | more).execute()
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_terminated_run_saves_and_exits(repository_dir, folder_data, tmp_path, num_processes):
    endless = {"max_steps": 100_000, "save_steps": 100_000, "logging_steps": 1}
    process, folder = start(repository_dir, tmp_path, num_processes, **endless), tmp_path / "out"
    wait_for(lambda: any((folder / "runs").rglob("*tfevents*")), process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "--resume_from_checkpoint last" in output
    (saved,) = folder.glob("checkpoint-*/trainer_state.json")
    assert json.loads(saved.read_text())["global_step"] > 0
    assert not (folder / "model.safetensors").exists()


def broken_training(folder, model, **options):
    examples = [example(index) | {"names": f"photo {index}"} for index in range(6)]
    examples[3]["pixel_values"][0, 5, 5] = math.nan
    return trainer(folder, model, train_dataset=examples, data_collator=TrainingCollator(3), max_steps=3, **options)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch"])
def test_steps_with_broken_images_are_named_and_left_out(tmp_path, caplog, optimizer):
    model, states = tiny_model(), []
    run = broken_training(tmp_path, model, seed=1, optim=optimizer, logging_steps=3)
    run.add_callback(Recorder(lambda: states.append({k: v.clone() for k, v in model.state_dict().items()})))
    with caplog.at_level(logging.WARNING):
        run.train()
    (named,) = [record.getMessage() for record in caplog.records if "the loss is NaN" in record.getMessage()]
    assert named.endswith("because of the images photo 3.")
    assert sum("are left out" in record.getMessage() for record in caplog.records) == 1
    step = int(named.split(":")[0].removeprefix("Step "))
    for name, value in states[step].items():
        assert value.isfinite().all()
        # Nothing of the step is left, weights, moments and statistics of batch norms alike.
        assert name.endswith("num_batches_tracked") or torch.equal(value, states[step - 1][name]), name
    # The log has the mean of the other two.
    assert sum("loss" in entry for entry in run.state.log_history) == 1
    json.dumps(run.state.log_history, allow_nan=False)


class Recorder(TrainerCallback):
    """Notes something before the first and after each step."""

    def __init__(self, note):
        self.note = note

    def on_train_begin(self, *args, **kwargs):
        self.note()

    on_step_end = on_train_begin


def test_too_many_broken_steps_are_an_error(tmp_path):
    with pytest.raises(TrainingStopped, match="1 steps in a row had NaN or infinite gradients"):
        broken_training(tmp_path, tiny_model(), max_skipped_steps=0).train()


@pytest.mark.parametrize(
    ("gradients", "scale", "stops"),
    [
        ("BBBBBBBBB", 2.0**10, False),
        ("BBBBBBBBB", 0.5, True),
        ("BBBBB", None, True),
        ("BBBNBBBNBBB", None, False),
        ("NBBBBN", None, True),
        ("IIII", None, True),
    ],
)
def test_broken_steps_in_a_row_count_but_not_the_overflows_of_a_scaler(gradients, scale, stops):
    model = torch.nn.Linear(2, 2)
    scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
    guard = BrokenStepsCallback(max_skipped_steps=3, scaler=scaler)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard.on_train_begin(None, None, None, model=model)
    for kind in gradients:
        model.weight.grad = torch.ones(2, 2)
        model.weight.grad[1, 1] = {"N": 1.0, "B": math.nan, "I": math.inf}[kind]
        guard.on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    with pytest.raises(TrainingStopped) if stops else nullcontext():
        guard.report(step=len(gradients))


@pytest.mark.slow
def test_one_broken_image_of_two_processes_stops_neither(tmp_path):
    weights, steps, _, output = run_steps(tmp_path, 2, per_device_train_batch_size=1, max_steps=12, broken_image=3)
    assert output.count("because of the images") == 1
    assert "1 step(s) are left out" in output
    assert [entry["step"] for entry in steps] == list(range(1, 13))
    assert all(value.isfinite().all() for value in weights.values())


def test_averaged_weights_follow_the_formula_and_end_in_the_model(tmp_path):
    model = tiny_model()
    history = [model.class_predictor.weight.detach().clone()]
    recipe = {"max_steps": 3, "ema_decay": 0.3, "learning_rate": 1e-2, "warmup_steps": 0}
    evaluation = {"eval_dataset": [evaluation_example(0)], "eval_strategy": "steps", "eval_steps": 2}
    saving = {"save_strategy": "steps", "save_steps": 3}
    run = trainer(tmp_path, model, train_dataset=[example(0), example(1)], **recipe, **evaluation, **saving)
    run.add_callback(Recorder(lambda: history.append(model.class_predictor.weight.detach().clone())))
    evaluated = []
    model.text_head.register_forward_hook(lambda *_: evaluated.append(model.class_predictor.weight.detach().clone()))
    run.train()
    average = history[0]
    for step, weight in enumerate(history[2:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        if step == 2:
            torch.testing.assert_close(evaluated[2], average)
    torch.testing.assert_close(model.class_predictor.weight.detach(), average)
    own, averaged = (load_file(tmp_path / "checkpoint-3" / name) for name in ("model.safetensors", EMA_FILE))
    assert torch.equal(own["class_predictor.weight"], history[-1])
    assert torch.equal(averaged["class_predictor.weight"], model.class_predictor.weight)
    with pytest.raises(ValueError, match="has no averaged weights"):
        AveragedWeightsCallback(model, 0.9).load(tmp_path)
