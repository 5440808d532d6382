# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes: accelerate's configuration files, FSDP2's shards on the CPU."""

import json

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin

from modeling_mtaclip.training.evaluation import whole_weights
from tests.processes import run_on_processes
from tests.tiny import tiny_model
from tests.training.sharded_steps import train_sharded


FOLDER = "configs/accelerate"


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp.yaml", "MULTI_GPU"), ("fsdp2.yaml", "FSDP"), ("zero2.yaml", "DEEPSPEED")]
)
def test_accelerate_reads_its_files(repository_dir, name, kind):
    config = load_config_from_file(str(repository_dir / FOLDER / name))
    assert config.distributed_type.value == kind
    assert config.num_processes == 8


def test_fsdp_finds_the_layers_to_shard(repository_dir):
    settings = yaml.safe_load((repository_dir / FOLDER / "fsdp2.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
    )
    model = tiny_model()
    # Raises where the model has no such layer.
    plugin.set_auto_wrap_policy(model)
    classes = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {each.__name__ for each in classes} == {"MTAClipDecoderLayer", "MTAClipPixelDecoderLayer"}


def test_zero2_is_stage_2_and_takes_the_runs_options(repository_dir):
    config = yaml.safe_load((repository_dir / FOLDER / "zero2.yaml").read_text())["deepspeed_config"]
    settings = json.loads((repository_dir / config["deepspeed_config_file"]).read_text())
    assert settings["zero_optimization"]["stage"] == 2
    for option in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert settings[option] == "auto"


def test_weights_that_are_whole_stay_as_they_are():
    model = tiny_model()
    before = [value.clone() for value in model.state_dict().values()]
    with whole_weights(model):
        pass
    assert all(torch.equal(old, new) for old, new in zip(before, model.state_dict().values(), strict=True))


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
