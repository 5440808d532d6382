# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive: which one to go on from, when one is complete, and what happens when one can't be saved.

A checkpoint is complete when `trainer_state.json`, its last file, is there and whole. Older checkpoints are deleted
only after that.
"""

import json
import os
import shutil
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging


logger = logging.get_logger(__name__)


class TrainingStopped(RuntimeError):  # noqa: N818 (a reason that the user can mend, not a defect)
    """A training that can't go on; the message says why, and how to go on."""


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """The checkpoint folder that `--resume_from_checkpoint` stands for: a folder, or `last` for the run's newest.

    Raises:
        ValueError: there is no such checkpoint.
    """
    wanted = arguments.resume_from_checkpoint
    if wanted is None or wanted.lower() == "false":
        return None
    if wanted.lower() not in ("last", "true"):
        if not (Path(wanted) / TRAINER_STATE_NAME).is_file():
            raise ValueError(f"`resume_from_checkpoint`: {wanted!r} is no folder with a checkpoint of a run.")
        return wanted
    last = last_complete_checkpoint(Path(arguments.output_dir))
    if last is None:
        raise ValueError(
            f"`resume_from_checkpoint`: there is no checkpoint in {arguments.output_dir!r} to resume from."
        )
    return str(last)


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that was saved to its end."""
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-[0-9]*")}
    for _, path in sorted(steps.items(), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text())
        except (OSError, json.JSONDecodeError):
            logger.warning("%s is incomplete and passed over.", path)
            continue
        return path
    return None


def write_through(folder: Path) -> None:
    """Makes sure that all files of a folder are on the disk, not only in memory."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def discard_failed_save(folder: Path, error: Exception) -> TrainingStopped:
    """Deletes a checkpoint that could not be written, and makes the error that ends the run.

    Args:
        folder (`Path`): of the checkpoint.
        error (`Exception`): why it could not be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free / 2**20
    last = last_complete_checkpoint(folder.parent)
    go_on = "There is no earlier checkpoint." if last is None else f"The last good checkpoint is {last}."
    return TrainingStopped(
        f"{folder} could not be saved ({error}) and was deleted; {folder.parent} has {free:.0f} MiB free now. {go_on} "
        "Make room, lower `save_total_limit` or save elsewhere (`output_dir`), and go on with "
        "--resume_from_checkpoint last."
    )


__all__ = [
    "TrainingStopped",
    "checkpoint_to_resume",
    "discard_failed_save",
    "last_complete_checkpoint",
    "write_through",
]
