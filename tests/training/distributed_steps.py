# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Small examples, a trainer of a tiny model, and a training that can be split among processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ConvNextConfig

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.training import MTAClipTrainer, MTAClipTrainingArguments
from tests.tiny import tiny_model


def example(index: int) -> dict[str, torch.Tensor]:
    """Image `index`, with one to three classes, some unlabeled pixels and its own random points."""
    generator = torch.Generator().manual_seed(index)
    labels = torch.randint(0, 1 + index % 3, (8, 8), generator=generator).repeat_interleave(8, 0)
    labels = labels.repeat_interleave(8, 1)
    labels[: 8 * (index % 4)] = 255
    return {
        "pixel_values": torch.randn(3, 64, 64, generator=generator) + labels.clamp(max=3),
        "labels": labels,
        "point_seeds": torch.tensor(index),
    }


def evaluation_example(index: int) -> dict[str, Any]:
    """Image `index` and its label map, of a size that few others have."""
    size = (40 + 8 * (index % 3), 50 + index, 3)
    values = np.random.default_rng(index).integers(0, 255, size, dtype=np.uint8)
    return {
        "image": Image.fromarray(values),
        "annotation": Image.fromarray(values[..., 0] % 3),
        "name": f"number {index}",
    }


def trainer(folder: Path, model: torch.nn.Module | None = None, **options: Any) -> MTAClipTrainer:
    """A trainer on the CPU that takes two steps and neither evaluates nor saves, unless the options say so."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_num_workers": 0,
    }
    of_trainer = {
        name: options.pop(name) for name in ("train_dataset", "eval_dataset", "data_collator") if name in options
    }
    return MTAClipTrainer(
        model=tiny_model() if model is None else model,
        args=MTAClipTrainingArguments(**(defaults | options)),
        processing_class=MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}),
        **of_trainer,
    )


def convnext_config() -> ConvNextConfig:
    """A backbone without batch norms, whose statistics would differ between a batch and its parts."""
    return ConvNextConfig(
        num_stages=4,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def train_some_steps(folder: Path, broken_image: int | None = None, **options: Any) -> None:
    """Trains, evaluates and stores weights, losses and scores."""
    torch.manual_seed(0)
    model = tiny_model(backbone_config=convnext_config())
    examples = [example(index) for index in range(24)]
    if broken_image is not None:
        examples[broken_image]["pixel_values"][0, 5, 5] = float("nan")
    recipe = {"learning_rate": 1e-3, "warmup_steps": 0, "max_grad_norm": 1.0, "adam_epsilon": 1e-3, "max_steps": 3}
    datasets = {"train_dataset": examples, "eval_dataset": [evaluation_example(index) for index in range(5)]}
    run = trainer(folder, model, **datasets, **(recipe | options))
    run.train()
    metrics = run.evaluate()
    if run.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "weights.safetensors")
        (folder / "log.json").write_text(json.dumps({"history": run.state.log_history, "metrics": metrics}))
