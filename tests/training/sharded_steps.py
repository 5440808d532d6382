# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny model whose weights FSDP2 shards, on the CPU.

accelerate uses FSDP on accelerators only, so that torch's own `fully_shard` is called here as accelerate would.
"""

import json
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modeling_mtaclip.data import TrainingCollator
from modeling_mtaclip.loss_mtaclip import loss_normalizers
from modeling_mtaclip.training.callbacks import BrokenStepsCallback
from modeling_mtaclip.training.evaluation import whole_weights
from tests.tiny import tiny_model
from tests.training.distributed_steps import convnext_config, example


CONFIG = Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp2.yaml"
WHOLE_BATCH = 4


def shard(model: torch.nn.Module) -> None:
    """Shards the layers that the configuration file names, and what is left."""
    names = yaml.safe_load(CONFIG.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def train(model: torch.nn.Module, num_steps: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, over all processes."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    share = WHOLE_BATCH // world_size
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3, eps=1e-3)
    guard = BrokenStepsCallback(max_skipped_steps=0)
    guard.on_train_begin(None, None, None, model=model)
    history = []
    for step in range(num_steps):
        first = step * WHOLE_BATCH + rank * share
        collate = TrainingCollator(model.config.num_labels)
        batch = collate([example(index) for index in range(first, first + share)])
        normalizers = loss_normalizers(batch["image_classes"], model.config)
        dist.all_reduce(normalizers)
        normalizers /= world_size
        loss = model(**batch, loss_normalizers=normalizers, output_logits=False).loss
        loss.backward()
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).full_tensor()
        guard.on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        history.append((float(total) / world_size, float(norm)))
    return history


def predict(model: torch.nn.Module, number: int) -> float:
    """Predicts so many images on this process."""
    with whole_weights(model), torch.no_grad():
        outputs = [model(pixel_values=example(index)["pixel_values"][None]) for index in range(number)]
    return float(outputs[0].logits.double().sum())


def train_sharded(output: Path) -> None:
    """Stores losses, gradient norms and a prediction of all processes."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = tiny_model(backbone_config=convnext_config()).train()
    shard(model)
    history = train(model, 2)
    # Processes that predict different numbers of images must not wait for each other.
    logits = predict(model.eval(), number=1 + dist.get_rank())
    history += train(model.train(), 1)
    if dist.get_rank() == 0:
        output.write_text(json.dumps({"history": history, "logits": logits}))
