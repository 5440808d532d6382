# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes: accelerate's configuration files, FSDP2's shards on the CPU."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modeling_mtaclip.data import TrainingCollator
from modeling_mtaclip.loss_mtaclip import loss_normalizers
from modeling_mtaclip.training.callbacks import BrokenStepsCallback
from modeling_mtaclip.training.evaluation import whole_weights
from tests.processes import run_on_processes
from tests.tiny import tiny_model
from tests.training.distributed_steps import convnext_config, example


REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "configs" / "accelerate"
FSDP = yaml.safe_load((FOLDER / "fsdp2.yaml").read_text())["fsdp_config"]
LAYERS = FSDP["fsdp_transformer_layer_cls_to_wrap"].split(",")
WHOLE_BATCH = 4


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp.yaml", "MULTI_GPU"), ("fsdp2.yaml", "FSDP"), ("zero2.yaml", "DEEPSPEED")]
)
def test_accelerate_reads_its_files(name, kind):
    config = load_config_from_file(str(FOLDER / name))
    assert config.distributed_type.value == kind
    assert config.num_processes == 8


def test_fsdp_finds_the_layers_to_shard():
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=FSDP["fsdp_version"],
        auto_wrap_policy=FSDP["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=LAYERS,
    )
    # Raises where the model has no such layer.
    plugin.set_auto_wrap_policy(tiny_model())
    classes = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {each.__name__ for each in classes} == {"MTAClipDecoderLayer", "MTAClipPixelDecoderLayer"}


def test_zero2_is_stage_2_and_takes_the_runs_options():
    config = yaml.safe_load((FOLDER / "zero2.yaml").read_text())["deepspeed_config"]
    settings = json.loads((REPOSITORY / config["deepspeed_config_file"]).read_text())
    assert settings["zero_optimization"]["stage"] == 2
    for option in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert settings[option] == "auto"


def train(model, num_steps):
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
        loss = model(**batch, loss_normalizers=normalizers / world_size, output_logits=False).loss
        loss.backward()
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).full_tensor()
        guard.on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        history.append((float(total) / world_size, float(norm)))
    guard.report(num_steps)
    return history


def train_sharded(output):
    """Stores losses, gradient norms and a prediction of all processes.

    accelerate uses FSDP on accelerators only, so that torch's own `fully_shard` is called here as accelerate would.
    """
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = tiny_model(backbone_config=convnext_config()).train()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in [each for each in model.modules() if type(each).__name__ in LAYERS] + [model]:
        fully_shard(module, mesh=mesh)
    history = train(model, 2)
    # Processes that predict different numbers of images must not wait for each other.
    with whole_weights(model.eval()), torch.no_grad():
        outputs = [model(pixel_values=example(index)["pixel_values"][None]) for index in range(1 + dist.get_rank())]
    history += train(model.train(), 1)
    if dist.get_rank() == 0:
        output.write_text(json.dumps({"history": history, "logits": float(outputs[0].logits.double().sum())}))


@pytest.mark.slow
def test_sharded_weights_give_the_steps_of_whole_ones(tmp_path):
    found = []
    for num_processes in (1, 2):
        output = tmp_path / f"{num_processes}.json"
        run_on_processes(num_processes, tmp_path / "log", train_sharded, output)
        found.append(json.loads(output.read_text()))
    for whole, sharded in zip(found[0]["history"], found[1]["history"], strict=True):
        assert sharded == pytest.approx(whole, rel=1e-5)
    assert found[1]["logits"] == pytest.approx(found[0]["logits"], rel=1e-5)
