# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: which are complete, what a crash or a full disk in the middle of a save leaves, which is the best."""

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from modeling_mtaclip.training import MTAClipTrainer, MTAClipTrainingArguments
from modeling_mtaclip.training.callbacks import EMA_FILE
from modeling_mtaclip.training.checkpoints import (
    TrainingStopped,
    checkpoint_to_resume,
    last_complete_checkpoint,
    require_same_model,
)
from tests.tiny import tiny_config, tiny_model
from tests.training.conftest import options
from tests.training.distributed_steps import evaluation_example, example, trainer


EXAMPLES = [example(index) for index in range(6)]
SAVE_EACH_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "ema_decay": 0.5, "warmup_steps": 0}


def training(folder, **overrides):
    torch.manual_seed(0)
    return trainer(folder, tiny_model(), train_dataset=EXAMPLES, **(SAVE_EACH_STEP | overrides))


def fail_while_saving(run, error, step, method="_save_optimizer_and_scheduler"):
    """Lets a training fail in the middle of the checkpoint of a step."""
    save = getattr(run, method)

    def save_or_fail(output_dir):
        if run.state.global_step == step:
            raise error
        save(output_dir)

    setattr(run, method, save_or_fail)


def complete(folder, *names):
    for name in names:
        (folder / name).mkdir()
        (folder / name / "trainer_state.json").write_text("{}")


def test_last_checkpoint_of_the_run_is_found(tmp_path):
    arguments = MTAClipTrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="last", report_to="none")
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        checkpoint_to_resume(arguments)
    complete(tmp_path, "checkpoint-5", "checkpoint-20", "checkpoint-99", "checkpoint-500-backup", "checkpoint-best")
    (tmp_path / "checkpoint-99" / "trainer_state.json").write_text('{"epo')
    (tmp_path / "checkpoint-100").mkdir()
    for wanted, found in (("last", "checkpoint-20"), (str(tmp_path / "checkpoint-5"), "checkpoint-5")):
        arguments.resume_from_checkpoint = wanted
        assert checkpoint_to_resume(arguments) == str(tmp_path / found)
    arguments.resume_from_checkpoint = str(tmp_path)
    with pytest.raises(ValueError, match="is no folder with a checkpoint"):
        checkpoint_to_resume(arguments)
    arguments.resume_from_checkpoint = None
    assert checkpoint_to_resume(arguments) is None


def test_a_crash_in_the_middle_of_a_save_leaves_the_checkpoint_before_usable(tmp_path):
    whole, crashed = training(tmp_path / "whole"), tmp_path / "crashed"
    whole.train()
    # The second time a complete checkpoint is written anew.
    for resumed in (None, str(crashed / "checkpoint-2")):
        run = training(crashed)
        # Like the end of a killed process, which nothing catches: model and optimizer are there, but not all.
        fail_while_saving(run, KeyboardInterrupt, 3, "_save_scaler")
        with pytest.raises(KeyboardInterrupt):
            run.train(resume_from_checkpoint=resumed)
        assert (crashed / "checkpoint-3" / "optimizer.pt").is_file()
        assert last_complete_checkpoint(crashed) == crashed / "checkpoint-2"
        shutil.copytree(tmp_path / "whole" / "checkpoint-3", crashed / "checkpoint-3", dirs_exist_ok=True)
    resumed = training(crashed)
    resumed.train(resume_from_checkpoint=str(crashed / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_checkpoint_is_complete_only_with_its_averages_and_folders_of_the_user_stay(tmp_path, monkeypatch):
    # What is left of later steps of the run that was resumed goes first.
    complete(tmp_path, "checkpoint-1-backup", "checkpoint-9")
    found, save = [], TrainerState.save_to_json

    def save_state(state, path):
        found.append({each.name for each in Path(path).parent.iterdir()})
        save(state, path)

    monkeypatch.setattr(TrainerState, "save_to_json", save_state)
    training(tmp_path, save_total_limit=2).train()
    wanted = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", EMA_FILE}
    assert len(found) == 4
    assert all(wanted <= names for names in found)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
        "checkpoint-1-backup",
        "checkpoint-3",
        "checkpoint-4",
    }


@pytest.mark.parametrize("error", [RuntimeError("NCCL error in: unhandled cuda error"), PermissionError(13, "no")])
def test_errors_that_are_not_the_disks_stay_what_they_are(tmp_path, error):
    run = training(tmp_path)
    fail_while_saving(run, error, 1)
    with pytest.raises(type(error), match=str(error.args[0])):
        run.train()


def test_a_checkpoint_exists_before_the_first_evaluation(tmp_path):
    run = training(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=3, save_steps=3, eval_dataset=[])
    run.evaluate = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.train()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("PytorchStreamWriter failed writing file")],
)
def test_a_full_disk_ends_the_run_with_the_last_good_checkpoint(tmp_path, error):
    run = training(tmp_path, save_total_limit=1)
    fail_while_saving(run, error, 3)
    with pytest.raises(TrainingStopped, match=r"could not be written to .* MiB free.* is .*checkpoint-2\.") as stop:
        run.train()
    assert str(error) in str(stop.value)
    resumed = training(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4


@pytest.mark.slow
def test_a_disk_that_is_really_full(repository_dir, folder_data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = ["unshare", "--map-root-user", "--mount", "bash", "-c"]
    mount = f"mount -t tmpfs -o size=12m tmpfs {disk}"
    if shutil.which("unshare") is None or subprocess.run([*inside, mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    script = [sys.executable, str(repository_dir / "scripts" / "run_seg.py"), "--use_cpu"]
    settings = {"dataset_name": folder_data, "eval_strategy": "no", "save_steps": 1, "save_total_limit": 9}
    command = shlex.join([*script, *options(output_dir=disk, max_steps=20, report_to="none", **settings)])
    environment = os.environ | {"PYTHONPATH": str(repository_dir)}
    kept = tmp_path / "kept"
    finished = subprocess.run(
        [*inside, f"{mount} && {{ {command}; code=$?; cp -r {disk} {kept}; exit $code; }}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert finished.returncode == 1, finished.stderr
    message = next(line for line in finished.stderr.splitlines() if "run_seg.py:" in line)
    assert "could not be written to" in message
    assert "Traceback" not in finished.stderr
    last = last_complete_checkpoint(kept)
    assert f"The last good checkpoint is {disk / last.name}." in message


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_the_checkpoint_with_the_best_mean_iou_is_kept_and_loaded(tmp_path, monkeypatch, ema_decay):
    scores = iter([0.2, 0.5, 0.4, 0.3])
    evaluation = {"eval_dataset": [evaluation_example(0)], "eval_strategy": "steps", "eval_steps": 1}
    recipe = {"ema_decay": ema_decay, "save_total_limit": 2, "load_best_model_at_end": True, "learning_rate": 1e-2}
    run = training(tmp_path, **evaluation, **recipe)
    evaluate = MTAClipTrainer.evaluate
    monkeypatch.setattr(
        MTAClipTrainer, "evaluate", lambda *args, **more: evaluate(*args, **more) | {"eval_mean_iou": next(scores)}
    )
    run.train()
    assert run.state.best_global_step == 2
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    best, last = (load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4))
    if ema_decay:
        best |= load_file(tmp_path / "checkpoint-2" / EMA_FILE)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, best[name]), name
    assert not torch.equal(best["class_predictor.weight"], last["class_predictor.weight"])


@pytest.mark.parametrize(
    ("other", "field"),
    [({"id2label": {0: "road", 1: "swimming pool", 2: "house"}}, "id2label"), ({"num_queries": 9}, "num_queries")],
)
def test_checkpoints_of_other_models_are_not_resumed(tmp_path, other, field):
    tiny_config().save_pretrained(tmp_path)
    require_same_model(str(tmp_path), tiny_config())
    require_same_model(str(tmp_path), tiny_config(class_weight=1.0))
    with pytest.raises(ValueError, match=f"another `{field}`"):
        require_same_model(str(tmp_path), tiny_config(**other))
