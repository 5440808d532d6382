# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Every family of backbones runs, trains, is saved and loaded; CLIP's are those of open_clip and transformers."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoBackbone,
    BeitConfig,
    CLIPVisionModel,
    ConvNextConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    HieraConfig,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
)

from modeling_mtaclip import MTAClipForSemanticSegmentation
from modeling_mtaclip.backbone_mtaclip import (
    CLIPResNetBackbone,
    CLIPResNetBackboneConfig,
    CLIPViTBackbone,
    CLIPViTBackboneConfig,
    MTAClipFeaturePyramid,
    spread_stages,
)
from tests.tiny import assert_near, assert_same_weights, tiny_model


STAGES = ["stage1", "stage2", "stage3", "stage4"]
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
SIZE = (75, 101)

CONFIGS = {
    "clip_resnet": lambda: CLIPResNetBackboneConfig(width=8, layers=[1, 2, 1, 1]),
    "clip_vit_patch16": lambda: CLIPViTBackboneConfig(**VIT, patch_size=16, image_size=64),
    "clip_vit_patch14": lambda: CLIPViTBackboneConfig(**VIT, patch_size=14, image_size=56),
    "resnet": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], out_features=STAGES
    ),
    "swin": lambda: SwinConfig(embed_dim=12, depths=[2, 2, 2, 2], num_heads=[1, 2, 3, 4], out_features=STAGES),
    "convnext": lambda: ConvNextConfig(hidden_sizes=(8, 12, 16, 20), depths=(1, 1, 1, 1), out_features=STAGES),
    "dinov2": lambda: Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, out_features=STAGES
    ),
    "dinov3_vit": lambda: DINOv3ViTConfig(**VIT, num_register_tokens=2, out_features=STAGES),
    "beit": lambda: BeitConfig(**VIT, image_size=64, out_features=STAGES),
    "mobilenetv4_conv_small": lambda: timm_config("mobilenetv4_conv_small", [1, 2, 3, 4]),
}
LARGE_TIMM = {
    "resnet50_clip": [1, 2, 3, 4],
    "efficientnet_b0": [1, 2, 3, 4],
    "swin_tiny_patch4_window7_224": [0, 1, 2, 3],
    "vit_tiny_patch16_224": [3, 5, 7, 11],
    "vit_small_patch14_dinov2": [3, 5, 7, 11],
    "vit_small_patch16_dinov3": [3, 5, 7, 11],
}


def timm_config(name, out_indices):
    pytest.importorskip("timm")
    return TimmBackboneConfig(backbone=name, out_indices=out_indices)


@pytest.mark.parametrize("name", [*CONFIGS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE_TIMM)])
def test_every_family_runs_trains_and_is_saved(name, tmp_path):
    model = tiny_model(backbone_config=timm_config(name, LARGE_TIMM[name]) if name in LARGE_TIMM else CONFIGS[name]())
    images, labels = torch.randn(2, 3, *SIZE), torch.randint(0, 3, (2, *SIZE))
    with torch.no_grad():
        outputs = model(images)
        maps = model.model._backbone_maps(images)
    # Sides that no stride divides are rounded in some way, or after enlarging images to multiples of 32.
    for each, channels, stride in zip(maps, model.model.feature_channels, (4, 8, 16, 32), strict=True):
        assert each.shape[1] == channels
        for side, got in zip(SIZE, each.shape[2:], strict=True):
            assert side // stride <= got <= side / stride + 32 / stride
    assert outputs.logits.shape[2:] == maps[0].shape[2:]

    model.train()(images, labels=labels).loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name, parameter in trained.items() if parameter.grad is None]
    assert all(parameter.grad.isfinite().all() for parameter in trained.values())
    assert any(parameter.grad.any() for name, parameter in trained.items() if ".backbone." in name)

    model.eval().save_pretrained(tmp_path)
    loaded = MTAClipForSemanticSegmentation.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    with torch.no_grad():
        assert_near(loaded(images), model(images))
    # Nothing gives the backbone new weights.
    loaded.post_init()
    loaded.model.post_init()
    assert_same_weights(loaded, model)
    assert_same_weights(loaded.with_classes(["road", "house"]).model.backbone, model.model.backbone)


@pytest.mark.parametrize("name", ["clip_vit_patch16", "clip_vit_patch14", "dinov2", "dinov3_vit", "beit"])
def test_maps_of_vision_transformers_have_exact_sizes(name):
    model = tiny_model(backbone_config=CONFIGS[name]())
    for size in (64, 96), (75, 101), (31, 16):
        with torch.no_grad():
            maps = model.model._backbone_maps(torch.randn(1, 3, *size))
        for each, stride in zip(maps, (4, 8, 16, 32), strict=True):
            assert each.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", ["convnext", "resnet", "clip_vit_patch16"])
def test_a_backbone_is_built_once_and_leaves_the_config_as_it_was(name, monkeypatch):
    config, build = CONFIGS[name](), AutoBackbone.from_config
    before, built = copy.deepcopy(vars(config)), []
    monkeypatch.setattr(AutoBackbone, "from_config", lambda *args, **kwargs: built.append(build(*args)) or built[-1])
    with torch.inference_mode():
        model = tiny_model(backbone_config=config)
    assert built == [model.model.backbone]
    assert vars(config) == before
    assert not any(module.is_meta for module in model.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_takes_other_numbers_of_channels(name):
    config = CONFIGS[name]()
    config.num_channels = 4
    model = tiny_model(backbone_config=config)
    with torch.no_grad():
        assert model(torch.randn(1, 4, 64, 96)).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"shape \(batch, 4, height, width\).*got \(1, 3, 64, 96\)"):
        model(torch.randn(1, 3, 64, 96))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ResNetConfig(out_features=["stage4"]), r"'resnet' returns 1 feature maps .*'stage1', 'stage2', 'stage3'"),
        (
            ResNetConfig(depths=[1] * 4, out_features=["stem", *STAGES[:3]]),
            r"at the strides \[4, 4, 8, 16\].*among \['stem', 'stage1'",
        ),
        (HieraConfig(out_features=STAGES), r"'hiera' can't be used: it fails on an image of \(448, 672\) pixels"),
    ],
)
def test_unusable_backbones_are_refused_with_the_reason(config, reason):
    with pytest.raises(ValueError, match=reason):
        tiny_model(backbone_config=config)


@pytest.mark.parametrize(("depth", "stages"), [(4, [1, 2, 3, 4]), (5, [2, 3, 4, 5]), (24, [8, 12, 16, 24])])
def test_stages_are_spread_over_the_depth(depth, stages):
    names = [f"stage{number + 1}" for number in range(depth)]
    assert spread_stages(["stem", *names]) == [f"stage{number}" for number in stages]


def test_clip_resnet_is_that_of_open_clip():
    open_clip = pytest.importorskip("open_clip.modified_resnet")
    original = open_clip.ModifiedResNet([1, 2, 1, 2], output_dim=16, heads=2, image_size=64, width=16).eval()
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.weight.data, module.running_mean, module.running_var):
                torch.nn.init.uniform_(value, 0.5, 1.5)
    ours = CLIPResNetBackbone(CLIPResNetBackboneConfig(width=16, layers=[1, 2, 1, 2], out_features=["stem", *STAGES]))
    weights = {name: value for name, value in original.state_dict().items() if not name.startswith("attnpool.")}
    ours.load_state_dict(weights)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = original.forward_intermediates(images, intermediates_only=True)["image_intermediates"]
        maps = ours.eval()(images).feature_maps
    torch.testing.assert_close(list(maps), expected, rtol=0, atol=1e-4)


@pytest.fixture
def clip_vit():
    return CLIPViTBackbone(CLIPViTBackboneConfig(**VIT, patch_size=16, image_size=64)).eval()


def test_clip_vit_is_that_of_transformers(clip_vit):
    theirs = CLIPVisionModel(clip_vit.config).eval()
    result = theirs.load_state_dict(clip_vit.state_dict(), strict=False)
    assert all(name.startswith("post_layernorm") for name in result.missing_keys)
    assert not result.unexpected_keys
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        states = theirs(images, output_hidden_states=True).hidden_states
        maps = clip_vit(images).feature_maps
    expected = [state[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4) for state in states[1:]]
    torch.testing.assert_close(list(maps), expected, rtol=0, atol=1e-4)


def test_positions_are_interpolated_to_the_image(clip_vit):
    table = clip_vit.embeddings.position_embedding.weight
    positions = clip_vit.embeddings.interpolate_pos_encoding(torch.empty(1, 1 + 3 * 7, 32), 48, 112)[0]
    assert torch.equal(positions[0], table[0])
    grid = table[1:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, size=(3, 7), mode="bilinear", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(positions[1:], expected)


def test_pyramid_of_patches_of_16_is_that_of_the_authors():
    pyramid = MTAClipFeaturePyramid([6, 6, 6, 6], stride=16).eval()
    maps = [torch.randn(2, 6, 3, 5) for _ in range(4)]
    levels = pyramid.levels
    norms = [F.group_norm(each, 1, level[0].weight, level[0].bias) for each, level in zip(maps, levels, strict=True)]

    def enlarge(convolution, states):
        return F.conv_transpose2d(states, convolution.weight, convolution.bias, stride=2)

    batch_norm = levels[0][2]
    torch.nn.init.uniform_(batch_norm.running_var, 0.5, 2)
    mean, variance = batch_norm.running_mean[:, None, None], batch_norm.running_var[:, None, None]
    halfway = (enlarge(levels[0][1], norms[0]) - mean) / (variance + batch_norm.eps).sqrt()
    expected = [
        enlarge(levels[0][4], F.gelu(halfway)),
        enlarge(levels[1][1], norms[1]),
        norms[2],
        F.max_pool2d(norms[3], 2, ceil_mode=True),
    ]
    torch.testing.assert_close(list(pyramid(maps, (48, 80))), expected)


@pytest.mark.parametrize(("stride", "doublings"), [(8, [1, 0, -1, -2]), (14, [2, 1, 0, -1]), (32, [3, 2, 1, 0])])
def test_pyramid_of_other_strides(stride, doublings):
    pyramid = MTAClipFeaturePyramid([4] * 4, stride)
    counted = [sum(isinstance(layer, torch.nn.ConvTranspose2d) for layer in level) for level in pyramid.levels]
    assert counted == [max(each, 0) for each in doublings]
    size = (5 * stride, 3 * stride)
    for each, target in zip(pyramid([torch.randn(1, 4, 5, 3)] * 4, size), (4, 8, 16, 32), strict=True):
        assert each.shape[2:] == (-(-size[0] // target), -(-size[1] // target))
