# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Which parameter is trained how, and the schedule, against the recipe written out."""

import pytest
import torch
from torch import nn
from transformers import TimmBackboneConfig
from transformers.optimization import get_polynomial_decay_schedule_with_warmup

from modeling_mtaclip.conversion import make_backbone_config
from modeling_mtaclip.training.optimization import parameter_groups, polynomial_schedule, synchronize_batch_norms
from tests.tiny import tiny_model


def groups_of(model):
    """The name of each parameter's group, learning rate and weight decay."""
    groups = parameter_groups(model, learning_rate=1e-3, weight_decay=0.02, backbone_lr_factor=0.1)
    for group in groups:
        assert group["lr"] == pytest.approx(1e-4 if "backbone" in group["name"] else 1e-3)
        assert group["weight_decay"] == (0.0 if "no decay" in group["name"] else 0.02)
        assert len(group["params"]) == len(group["param_names"])
    return {name: group["name"] for group in groups for name in group["param_names"]}


def expected_group(name, module):
    """The recipe, parameter by parameter."""
    learned = ("mask_queries", "mask_query_positions", "text_query_positions", "level_embed", "contexts")
    undecayed = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)) or name.rsplit(".")[-1] in learned
    return ("backbone" if ".backbone." in name else "decoder") + (", no decay" if undecayed else "")


@pytest.mark.parametrize("text_branch", [True, False])
def test_every_parameter_has_its_group(text_branch):
    model = tiny_model(text_branch=text_branch)
    owners = {
        f"{prefix}.{name}".lstrip("."): module
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert groups_of(model) == {name: expected_group(name, owners[name]) for name in trainable}
    frozen = owners.keys() - trainable
    assert all(name.startswith("model.text_model.text_encoder.") for name in frozen)
    assert bool(frozen) == text_branch


def test_norms_positions_and_pyramids_of_transformers_train_like_the_backbone_without_decay():
    pytest.importorskip("timm")
    swin = TimmBackboneConfig(backbone="swin_tiny_patch4_window7_224", out_indices=[0, 1, 2, 3])
    found = groups_of(tiny_model(backbone_config=swin))
    undecayed = [name for name in found if "relative_position_bias_table" in name or ".norm" in name]
    undecayed = [name for name in undecayed if ".backbone." in name]
    assert any("bias_table" in name for name in undecayed)
    assert {found[name] for name in undecayed} == {"backbone, no decay"}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 64}
    found = groups_of(tiny_model(backbone_config=make_backbone_config("clip_vit_base_patch16", sizes)))
    pyramid = {group for name, group in found.items() if ".feature_pyramid." in name}
    assert pyramid == {"backbone", "backbone, no decay"}
    for name in ("class_embedding", "position_embedding.weight"):
        assert found[f"model.backbone.embeddings.{name}"] == "backbone, no decay"


def learning_rates(make_schedule, steps):
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.01}], lr=0.1)
    schedule, rates = make_schedule(optimizer), []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return torch.tensor(rates)


def test_schedule_warms_up_from_a_share_and_ends_at_zero():
    rates = learning_rates(lambda optimizer: polynomial_schedule(optimizer, 4, 12, warmup_start_factor=0.1), 13)
    expected = [0.1, 0.325, 0.55, 0.775] + [((12 - step) / 8) ** 0.9 for step in range(4, 13)]
    torch.testing.assert_close(rates[:, 0], 0.1 * torch.tensor(expected))
    torch.testing.assert_close(rates[:, 1], rates[:, 0] / 10)


def test_schedule_without_start_share_is_that_of_transformers():
    options = {"power": 2.0, "lr_end": 1e-3}
    ours = learning_rates(lambda each: polynomial_schedule(each, 3, 10, warmup_start_factor=0.0, **options), 12)
    theirs = learning_rates(lambda each: get_polynomial_decay_schedule_with_warmup(each, 3, 10, **options), 12)
    torch.testing.assert_close(ours, theirs)


def test_synchronized_batch_norms_compute_what_plain_ones_do():
    pytest.importorskip("timm")
    timm_backbone = TimmBackboneConfig(backbone="efficientnet_lite0", out_indices=[1, 2, 3, 4])
    for fields in ({"backbone_config": timm_backbone}, {}):
        model, pixel_values = tiny_model(**fields), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = model(pixel_values=pixel_values).class_queries_logits
            synchronize_batch_norms(model.model.backbone)
            torch.testing.assert_close(model(pixel_values=pixel_values).class_queries_logits, expected)
        kinds = {type(module) for module in model.model.backbone.modules()}
        assert any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
        assert not kinds & {nn.BatchNorm2d}
