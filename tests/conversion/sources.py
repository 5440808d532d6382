# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Small random checkpoints in the formats of the originals: OpenAI's CLIP, transformers' folders, mmengine's files."""

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from modeling_mtaclip.conversion import make_tokenizer
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


class _Archive(nn.Module):
    """Modules and tensors by the names of a state dict; TorchScript saves nothing else."""

    def forward(self) -> int:
        return 0


def save_torchscript(state_dict: Mapping[str, Tensor], path: Path) -> Path:
    """Writes a TorchScript archive with these tensors, as OpenAI's files are."""
    root = _Archive()
    for name, value in state_dict.items():
        *modules, last = name.split(".")
        module = root
        for each in modules:
            if not hasattr(module, each):
                module.add_module(each, _Archive())
            module = getattr(module, each)
        module.register_buffer(last, value)
    torch.jit.save(torch.jit.script(root), path)
    return path


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


def make_original_state_dict(num_classes: int) -> dict[str, Tensor]:
    """Random tensors by the names of the authors' code with a ResNet, small but with the authors' numbers of heads."""
    size, width, queries, contexts, length = 32, 48, 5, 2, 4
    text_queries = contexts * (num_classes + 1)
    shapes: dict[str, tuple[int, ...]] = {"contexts": (contexts, length, TEXT_WIDTH), "gamma": (EMBEDDING_SIZE,)}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"decode_head.{name}.weight"] = shape
        if bias:
            shapes[f"decode_head.{name}.bias"] = shape[:1]

    for index, channels in enumerate((512, 256, 128)):
        add(f"pixel_decoder.input_convs.{index}.conv", size, channels, 1, 1)
        add(f"pixel_decoder.input_convs.{index}.gn", size)
    add("pixel_decoder.level_encoding", 3, size, bias=False)
    for name, kernel, channels in (("lateral", 1, 64), ("output", 3, size)):
        add(f"pixel_decoder.{name}_convs.0.conv", size, channels, kernel, kernel, bias=False)
        add(f"pixel_decoder.{name}_convs.0.gn", size)
    add("pixel_decoder.mask_feature", size, size, 1, 1)
    encoder, decoder = "pixel_decoder.encoder.layers.0", "transformer_decoder.layers.0"
    for name, rows in (
        ("sampling_offsets", 192),
        ("attention_weights", 96),
        ("value_proj", size),
        ("output_proj", size),
    ):
        add(f"{encoder}.self_attn.{name}", rows, size)
    for attention in ("cross_attn", "self_attn"):
        shapes[f"decode_head.{decoder}.{attention}.attn.in_proj_weight"] = (3 * size, size)
        shapes[f"decode_head.{decoder}.{attention}.attn.in_proj_bias"] = (3 * size,)
        add(f"{decoder}.{attention}.attn.out_proj", size, size)
    for layer, norms in ((encoder, 2), (decoder, 3)):
        add(f"{layer}.ffn.layers.0.0", width, size)
        add(f"{layer}.ffn.layers.1", size, width)
        for index in range(norms):
            add(f"{layer}.norms.{index}", size)
    add("transformer_decoder.post_norm", size)
    add("query_feat", queries, size, bias=False)
    add("query_embed_decoder", queries + text_queries, size, bias=False)
    add("level_embed", 3, size, bias=False)
    add("query_project", size, EMBEDDING_SIZE)
    add("norm_project", size)
    for index in (0, 2, 4):
        add(f"mask_embed.{index}", size, size)
    add("cls_embed", num_classes + 1, size)
    add("lang_embed", num_classes + 1, size)
    add("query_reproject", EMBEDDING_SIZE, size)
    add("norm_reproject", EMBEDDING_SIZE)
    add("mask_reproject", EMBEDDING_SIZE, size)
    add("visual_emb_proj", size, EMBEDDING_SIZE, 1, 1)
    shapes["decode_head.gamma"] = (EMBEDDING_SIZE,)
    state_dict = {name: torch.randn(shape) / max(1, shape[-1]) ** 0.5 for name, shape in shapes.items()}
    for name, value in make_open_clip("resnet").state_dict().items():
        if name.startswith("visual."):
            state_dict[name.replace("visual.", "backbone.", 1)] = value
        elif name != "logit_scale":
            state_dict[f"text_encoder.{name}"] = value
    return state_dict


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
