# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive: when they are saved, when one is complete, and what happens when the disk is full.

A checkpoint is complete when `trainer_state.json`, its last file, is there and whole. Older checkpoints are deleted
only after that.
"""

import errno
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import distributed
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, SaveStrategy, sort_checkpoints
from transformers.utils import CONFIG_NAME, logging

from ..configuration_mtaclip import MTAClipConfig


logger = logging.get_logger(__name__)

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# How safetensors and torch.save word an error of the disk, which they raise without its number.
DISK_MESSAGES = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "inline_container")
# What makes a model another one, most of all other classes for the same weights.
COMPARED_FIELDS = ("id2label", "num_queries", "hidden_size", "mask_feature_size", "encoder_layers", "decoder_layers")
COMPARED_FIELDS += ("text_branch", "num_prompt_contexts", "prompt_length")
# Several processes ask each other about SIGTERM every so many steps.
TERMINATION_INTERVAL = 10


class TrainingStopped(RuntimeError):  # noqa: N818 (a reason that the user can mend, not a defect)
    """A training that can't go on; the message says why, and how to go on."""


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """The checkpoint folder that `--resume_from_checkpoint` stands for: a folder, or `last` for the run's newest."""
    wanted, folder = arguments.resume_from_checkpoint, arguments.output_dir
    if wanted is None or wanted.lower() == "false":
        return None
    found = last_complete_checkpoint(folder) if wanted.lower() in ("last", "true") else Path(wanted)
    if found is None:
        raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint in {folder!r} to resume from.")
    if not _is_complete(found):
        raise ValueError(f"`resume_from_checkpoint`: {wanted!r} is no folder with a checkpoint of a run.")
    return str(found)


def require_same_model(checkpoint: str, config: MTAClipConfig) -> None:
    """Refuses to resume a run with another model than that of the checkpoint."""
    if not Path(checkpoint, CONFIG_NAME).is_file():
        # Of adapters, whose own configuration peft compares.
        return
    saved = MTAClipConfig.from_pretrained(checkpoint)
    for name in COMPARED_FIELDS:
        if getattr(saved, name) != getattr(config, name):
            raise ValueError(
                f"`resume_from_checkpoint`: {checkpoint} is of a model with another `{name}`, {getattr(saved, name)}; "
                f"that of this run is {getattr(config, name)}. Resume a run with its own options and data, or start "
                f"another with --model_name_or_path {checkpoint} and another --output_dir."
            )


def last_complete_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of a run that was saved to its end."""
    for path in reversed(_checkpoints(folder)):
        if _is_complete(path):
            return path
        logger.warning("%s is incomplete and passed over.", path)
    return None


def _checkpoints(folder: str | Path) -> list[Path]:
    """A run's checkpoints in the order of their steps. Folders like checkpoint-500-backup are the user's."""
    found = [Path(path) for path in sort_checkpoints(str(folder))]
    return [path for path in found if path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()]


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return True


class CheckpointCallback(TrainerCallback):
    """Saves a checkpoint just before the first evaluation, so that no evaluation can lose a whole training, and soon
    after any process got SIGTERM, which ends the training: one process after its step, several within ten steps.

    Older ones are deleted afterward. transformers would also delete folders like checkpoint-500-backup.

    Args:
        limit (`int`, *optional*): number of checkpoints that are kept; the newest and the best always are.

    Attributes:
        terminated (`bool`): whether SIGTERM ended the training.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit, self.terminated = limit, False
        self._received = self._saved = False
        self._previous: Any = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        # A training that was resumed has a checkpoint already.
        self._saved = state.global_step > 0
        self._previous = signal.signal(signal.SIGTERM, self._receive)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_: Any) -> None:
        self._received = True

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._saved and args.save_strategy != SaveStrategy.NO and _evaluates_soon(args, state):
            control.should_save = True
        if self._is_terminated(args, state.global_step):
            self.terminated = control.should_save = control.should_training_stop = True

    def _is_terminated(self, args: TrainingArguments, step: int) -> bool:
        if args.world_size == 1:
            return self._received
        if step % TERMINATION_INTERVAL:
            return False
        anywhere = torch.tensor(float(self._received), device=args.device)
        distributed.all_reduce(anywhere)
        return bool(anywhere > 0)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = True
        if args.world_size > 1:
            # Each process saves a part.
            distributed.barrier()
        if args.should_save and self.limit:
            newest = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            kept = {newest, Path(state.best_model_checkpoint or newest)}
            # By age: a run that was resumed earlier in time may leave later steps behind.
            older = sorted(set(_checkpoints(args.output_dir)) - kept, key=lambda path: path.stat().st_mtime_ns)
            for path in older[: max(0, len(older) + len(kept) - self.limit)]:
                shutil.rmtree(path, ignore_errors=True)


def _evaluates_soon(args: TrainingArguments, state: Any) -> bool:
    """Whether the first evaluation is one step away, or, at the end of an epoch, due now."""
    if args.eval_strategy == IntervalStrategy.STEPS:
        return state.global_step + 1 == state.eval_steps
    return args.eval_strategy == IntervalStrategy.EPOCH and state.epoch == int(state.epoch)


@contextmanager
def explained_disk_errors(folder: str) -> Iterator[None]:
    """Ends a training whose disk fails with the last good checkpoint's name. Errors that are not known to come from
    the disk stay as they are."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        of_the_disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if not of_the_disk and not any(message in str(error) for message in DISK_MESSAGES):
            raise
        free, last = shutil.disk_usage(folder).free / 2**20, last_complete_checkpoint(folder)
        raise TrainingStopped(
            f"{folder} could not be written to ({error}), and has {free:.0f} MiB free. The last good checkpoint is "
            f"{last}. Make room, lower `save_total_limit` or save elsewhere (`output_dir`), and resume with "
            "--resume_from_checkpoint last."
        ) from error


__all__ = [
    "CheckpointCallback",
    "TrainingStopped",
    "checkpoint_to_resume",
    "explained_disk_errors",
    "last_complete_checkpoint",
    "require_same_model",
]
