# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Small examples, and a training of a tiny model that can be split among processes."""

import json
from pathlib import Path

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


def evaluation_example(index: int) -> dict[str, Image.Image]:
    """Image `index` and its label map, of a size that few others have."""
    size = (40 + 8 * (index % 3), 50 + index, 3)
    values = np.random.default_rng(index).integers(0, 255, size, dtype=np.uint8)
    return {"image": Image.fromarray(values), "annotation": Image.fromarray(values[..., 0] % 3)}


def convnext_config() -> ConvNextConfig:
    """A backbone without batch norms, whose statistics would differ between a batch and its parts."""
    return ConvNextConfig(
        num_stages=4,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def train_some_steps(
    folder: Path,
    batch_size: int,
    accumulation_steps: int = 1,
    num_steps: int = 3,
    static_graph: bool | None = None,
    broken_image: int | None = None,
) -> None:
    """Trains, evaluates and stores weights, losses and scores."""
    torch.manual_seed(0)
    model = tiny_model(backbone_config=convnext_config())
    arguments = MTAClipTrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulation_steps,
        learning_rate=1e-3,
        warmup_steps=0,
        max_grad_norm=1.0,
        adam_epsilon=1e-3,
        logging_steps=1,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_num_workers=0,
        ddp_static_graph=static_graph,
    )
    examples = [example(index) for index in range(24)]
    if broken_image is not None:
        examples[broken_image]["pixel_values"][0, 5, 5] = float("nan")
    trainer = MTAClipTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=[evaluation_example(index) for index in range(5)],
        processing_class=MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}),
    )
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "weights.safetensors")
        (folder / "log.json").write_text(json.dumps({"history": trainer.state.log_history, "metrics": metrics}))
