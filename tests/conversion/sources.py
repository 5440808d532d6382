# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints in the formats of the originals (OpenAI's CLIP, transformers' folders, mmengine's files), and what
models that are made from them must show."""

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from modeling_mtaclip.conversion import ModelBundle, make_tokenizer
from modeling_mtaclip.data.scenes import SCENE_CLASSES


NAMES = ["road", "sky", "swimming_pool"]
TOKENIZER = make_tokenizer([*NAMES, *SCENE_CLASSES, "wall", "none"])
TEXT_WIDTH, EMBEDDING_SIZE, NUM_POSITIONS = 64, 32, 20


def make_open_clip(visual: str) -> nn.Module:
    """OpenAI's architecture by the names of its authors, with a visual half `"resnet"` or `"vit"`."""
    vision = {"layers": [1, 2, 1, 1], "width": 16, "head_width": 64, "image_size": 64, "patch_size": None}
    if visual == "vit":
        vision = {"layers": 12, "width": 64, "head_width": 64, "image_size": 64, "patch_size": 16}
    text = {
        "context_length": NUM_POSITIONS,
        "vocab_size": len(TOKENIZER),
        "width": TEXT_WIDTH,
        "heads": 1,
        "layers": 2,
    }
    model = open_clip.CLIP(EMBEDDING_SIZE, vision, text, quick_gelu=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Freshly made, many biases and scales are the same everywhere, so that mistakes would not show.
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def openai_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of OpenAI's files: half precision but for norms, and three constants."""
    half = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    names = {name for name, module in model.named_modules() if isinstance(module, half)}
    state_dict = {
        name: value.half() if name.rsplit(".", 1)[0] in names or "projection" in name else value
        for name, value in model.state_dict().items()
    }
    constants = {"input_resolution": 64, "context_length": NUM_POSITIONS, "vocab_size": len(TOKENIZER)}
    return state_dict | {name: torch.tensor(value) for name, value in constants.items()}


def save_clip_folder(folder: Path) -> CLIPModel:
    """Writes a CLIP of transformers with its tokenizer."""
    sizes = {"intermediate_size": 96, "num_attention_heads": 2}
    text = {"vocab_size": len(TOKENIZER), "hidden_size": TEXT_WIDTH, "num_hidden_layers": 2, **sizes}
    text |= {"max_position_embeddings": NUM_POSITIONS, "projection_dim": EMBEDDING_SIZE}
    text |= {"bos_token_id": TOKENIZER.bos_token_id, "eos_token_id": TOKENIZER.eos_token_id}
    vision = {"hidden_size": 64, "num_hidden_layers": 12, "image_size": 64, "patch_size": 16, **sizes}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING_SIZE)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model


def save_mask2former_folder(folder: Path, names: Sequence[str]) -> Mask2FormerForUniversalSegmentation:
    """Writes a Mask2Former of transformers with a Swin backbone."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    sizes = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(out_features=stages, **sizes),
        **{"feature_size": 32, "hidden_dim": 32, "mask_feature_size": 16, "encoder_layers": 2, "decoder_layers": 4},
        **{"num_attention_heads": 4, "encoder_feedforward_dim": 48, "dim_feedforward": 40, "num_queries": 7},
        train_num_points=64,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        # Freshly made, offsets of the pixel decoder would not depend on the image, and all classes be as likely.
        model.class_predictor.bias.normal_()
        for layer in model.model.pixel_level_module.decoder.encoder.layers:
            layer.self_attn.sampling_offsets.weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


# With values that the authors don't use, to see them read.
RUN_CONFIG = """
crop_size = (512, 512)
custom_keys = dict(backbone=dict(decay_mult=1.0, lr_mult=0.1))
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], size=crop_size, type='SegDataPreProcessor')
model = dict(
    backbone=dict(layers=[1, 1, 1, 1], type='CLIPResNetWithAttention'),
    decode_head=dict(
        loss_cls=dict(class_weight=[{class_weight}0.2], loss_weight=1.5, type='mmdet.CrossEntropyLoss'),
        loss_dice=dict(loss_weight=4.0, type='mmdet.DiceLoss'),
        query_loss_type=1,
        train_cfg=dict(
            assigner=dict(
                match_costs=[
                    dict(type='mmdet.ClassificationCost', weight=3.0),
                    dict(pred_act=True, type='mmdet.DiceCost', weight=6.0),
                ],
                type='mmdet.HungarianAssigner'),
            num_points=100),
        transformer_decoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_heads=4)))),
    text_encoder=dict(transformer_heads=4, type='CLIPTextContextEncoder'),
    type='MTA_CLIP')
train_cfg = dict(max_iters=160000)
"""


def original_state_dict(shared_dir: Path, num_classes: int) -> dict[str, Tensor]:
    """The reference's weights by the authors' names, for its first classes and the tokens of `TOKENIZER`."""
    tensors = load_file(shared_dir / "reference" / "mtaclip_tiny" / "weights.safetensors")
    for name in ("cls_embed.weight", "cls_embed.bias", "lang_embed.weight", "lang_embed.bias"):
        tensors[f"decode_head.{name}"] = tensors[f"decode_head.{name}"][: num_classes + 1].clone()
    mask_queries, text_queries = tensors["decode_head.query_embed_decoder.weight"].split((10, 21))
    text_queries = text_queries.unflatten(0, (3, 7))[:, : num_classes + 1].flatten(0, 1)
    tensors["decode_head.query_embed_decoder.weight"] = torch.cat([mask_queries, text_queries])
    tensors["text_encoder.token_embedding.weight"] = torch.randn(len(TOKENIZER), 32)
    return tensors


def save_mmengine(
    state_dict: Mapping[str, Tensor], path: Path, names: Sequence[str], run_config: str = RUN_CONFIG
) -> Path:
    """Writes a checkpoint as mmengine's runner does, with objects that only mmengine and numpy could read."""
    module = ModuleType("mmengine.logging.history_buffer")
    history_class = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = history_class
    history = history_class()
    history.__dict__ |= {"_log_history": np.ones(3), "_count_history": np.ones(3), "_max_length": 1000}
    checkpoint: dict[str, Any] = {
        "meta": {
            "epoch": 0,
            "iter": 160000,
            "cfg": run_config.format(class_weight="1.0, " * len(names)),
            "seed": np.int64(7),
            "mmengine_version": "0.10.4",
            "dataset_meta": {"classes": tuple(names), "palette": [[0, 0, 0]] * len(names), "label_map": None},
        },
        "state_dict": OrderedDict(state_dict),
        "message_hub": {"log_scalars": OrderedDict({"train/loss": history}), "runtime_info": {"iter": 160000}},
        "optimizer": {"state": {0: {"step": torch.tensor(160000.0)}}, "param_groups": [{"lr": 1e-4}]},
        "param_schedulers": [{"last_step": 160000}],
    }
    names_of_modules = ("mmengine", "mmengine.logging", module.__name__)
    sys.modules |= {name: ModuleType(name) for name in names_of_modules} | {module.__name__: module}
    try:
        torch.save(checkpoint, path)
    finally:
        for name in names_of_modules:
            del sys.modules[name]
    return path


def assert_complete(bundle: ModelBundle, sources: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Every tensor of the model is loaded or new, and every one of the sources used or left out."""
    report = bundle.loading_report
    assert sorted([*report.loaded, *report.new]) == sorted(bundle.model.state_dict())
    for source, tensors in sources.items():
        used = {name for each in report.loaded.values() if each.source == source for name in each.names}
        left_out = report.left_out.get(source, {})
        assert used.isdisjoint(left_out)
        assert used | left_out.keys() == tensors.keys()


def assert_same_maps(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compares feature maps."""
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def vit_maps(visual: nn.Module, images: Tensor, class_token_twice: bool = False) -> list[Tensor]:
    """Plainly, CLIP's vision transformer: patches, class token, positions, layers; maps after four of them."""
    patches = visual.conv1(images)
    grid = patches.shape[-2:]
    positions = visual.positional_embedding
    side = round((len(positions) - 1) ** 0.5)
    table = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    table = nn.functional.interpolate(table, grid, mode="bilinear").flatten(2).transpose(1, 2)
    token = visual.class_embedding * (2 if class_token_twice else 1) + positions[0]
    states = torch.cat([token.expand(len(images), 1, -1), patches.flatten(2).transpose(1, 2) + table], dim=1)
    states, maps = visual.ln_pre(states), []
    for index, block in enumerate(visual.transformer.resblocks):
        states = block(states)
        if index in (3, 5, 7, 11):
            maps.append(states[:, 1:].transpose(1, 2).unflatten(2, grid))
    return maps
