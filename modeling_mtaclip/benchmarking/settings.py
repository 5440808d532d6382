# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What is measured: sizes, number format, device; it travels to the processes that measure memory."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    """Settings of all measurements of a run.

    Attributes:
        device (`str`): as in `torch.device`.
        dtype (`str`): `"float32"`, or `"bfloat16"` for autocast to it.
        size (`int`): side of the images, a multiple of 32.
        batch (`int`): number of images.
        classes (`int`): number of classes.
        contexts (`int`): number of prompt contexts.
        queries (`int`): number of mask queries.
        threads (`int`): of PyTorch on the CPU.
        warmup (`int`): runs before the measured ones.
        repeats (`int`): measured runs.
        workers (`int`): processes that read data.
        small (`bool`): tiny layers and data, to try the benchmark itself.
        seed (`int`): of weights, images, labels and class names.
    """

    device: str = "cpu"
    dtype: str = "float32"
    size: int = 512
    batch: int = 2
    classes: int = 150
    contexts: int = 3
    queries: int = 100
    threads: int = 2
    warmup: int = 1
    repeats: int = 5
    workers: int = 2
    small: bool = False
    seed: int = 0

    def prepare(self) -> None:
        """Makes this process measure under the settings."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)

    def autocast(self) -> AbstractContextManager:
        """The context that forward passes run in."""
        enabled = self.dtype != "float32"
        return torch.autocast(torch.device(self.device).type, dtype=getattr(torch, self.dtype), enabled=enabled)

    def synchronize(self) -> None:
        """Waits until the device has done what it was given."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


__all__ = ["Settings"]
