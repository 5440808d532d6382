# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""CLIP's visual half as a backbone: ResNets and vision transformers, by OpenAI's names and by transformers'."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, CLIPConfig, PreTrainedConfig

from ..backbone_mtaclip import CLIPResNetBackboneConfig, CLIPViTBackboneConfig
from .account import Part
from .clip import CONSTANTS, TEXT_HALF, ClipWeights, count_layers
from .renaming import keep_shape, rename_tensors, split_packed_projection


# The visual half by OpenAI's names, which the authors' code has, too.
RESNET_RENAMES = {
    r"((?:conv|bn)\d\.\w+)": "model.backbone.{0}",
    r"(layer\d\.\d+\.(?:conv\d|bn\d|downsample\.\d)\.\w+)": "model.backbone.{0}",
}
VIT_LAYER = "model.backbone.encoder.layers.{0}"
VIT_RENAMES = {
    r"class_embedding": "model.backbone.embeddings.class_embedding",
    r"positional_embedding": "model.backbone.embeddings.position_embedding.weight",
    r"conv1\.weight": "model.backbone.embeddings.patch_embedding.weight",
    r"ln_pre\.(\w+)": "model.backbone.pre_layrnorm.{0}",
    r"transformer\.resblocks\.(\d+)\.attn\.(in_proj_\w+|out_proj\.\w+)": f"{VIT_LAYER}.self_attn.{{1}}",
    r"transformer\.resblocks\.(\d+)\.ln_(\d)\.(\w+)": f"{VIT_LAYER}.layer_norm{{1}}.{{2}}",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)": f"{VIT_LAYER}.mlp.fc1.{{1}}",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)": f"{VIT_LAYER}.mlp.fc2.{{1}}",
}
TRANSFORMERS_RENAMES = {r"vision_model\.((?:embeddings|pre_layrnorm|encoder)\..+)": "model.backbone.{0}"}
# Behind the last feature map.
POOLING = {r"attnpool\..+|ln_post\..+|proj": "pools the feature maps into one embedding of the image"}
TRANSFORMERS_POOLING = {
    r"vision_model\.post_layernorm\..+|visual_projection\..+": "pools the feature maps into one embedding of the image"
}


def is_clip(name_or_path: str) -> bool:
    """Whether a name is that of a file, or of a folder or Hub id with a CLIP model."""
    if Path(name_or_path).is_file():
        return True
    if not Path(name_or_path).is_dir() and ("/" not in name_or_path or name_or_path.startswith("timm/")):
        return False
    try:
        return isinstance(AutoConfig.from_pretrained(name_or_path), CLIPConfig)
    except (OSError, ValueError):
        return False


def with_prefix(patterns: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The same regular expressions with a prefix (itself one) in front of each."""
    return {f"{prefix}(?:{pattern})": text for pattern, text in patterns.items()}


def is_vision_transformer(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether the visual half with this prefix is a vision transformer; else it is a ResNet."""
    return f"{prefix}class_embedding" in tensors


def describe_visual_half(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Fields of the backbone's configuration by the shapes of tensors with OpenAI's names.

    Args:
        tensors (`Mapping[str, Tensor]`): the checkpoint.
        prefix (`str`): in front of the names.
    """
    if not is_vision_transformer(tensors, prefix):
        layers = [count_layers(tensors, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4)]
        return {"width": len(tensors[f"{prefix}conv3.weight"]), "layers": layers}
    hidden_size, _, patch_size, _ = tensors[f"{prefix}conv1.weight"].shape
    blocks = f"{prefix}transformer.resblocks."
    return {
        "hidden_size": hidden_size,
        "patch_size": patch_size,
        "image_size": patch_size * math.isqrt(len(tensors[f"{prefix}positional_embedding"]) - 1),
        "num_hidden_layers": count_layers(tensors, blocks),
        "num_attention_heads": max(1, hidden_size // 64),
        "intermediate_size": len(tensors[f"{blocks}0.mlp.c_fc.weight"]),
    }


def clip_backbone_config(clip: ClipWeights, overrides: Mapping[str, Any] | None = None) -> PreTrainedConfig:
    """Configures the visual half of a CLIP model as a backbone.

    Args:
        clip ([`ClipWeights`]): the model.
        overrides (`Mapping[str, Any]`, *optional*): fields of the configuration.

    Raises:
        ValueError: the model has no visual half.
    """
    overrides = dict(overrides or {})
    if not clip.is_openai and clip.vision_config is not None:
        fields = clip.vision_config.to_diff_dict()
        return CLIPViTBackboneConfig(**{name: fields[name] for name in fields if name != "model_type"} | overrides)
    if "visual.conv1.weight" not in clip.tensors:
        raise ValueError(f"{clip.source!r} is a CLIP model without visual half. Give another one as backbone.")
    fields = describe_visual_half(clip.tensors, "visual.") | overrides
    is_vit = is_vision_transformer(clip.tensors, "visual.")
    return CLIPViTBackboneConfig(**fields) if is_vit else CLIPResNetBackboneConfig(**fields)


def clip_backbone_part(clip: ClipWeights) -> Part:
    """The backbone from a CLIP model.

    Raises:
        ValueError: a tensor that is neither used nor known to be unused.
    """
    if clip.is_openai:
        renames = VIT_RENAMES if is_vision_transformer(clip.tensors, "visual.") else RESNET_RENAMES
        renames, pooling, reshape = with_prefix(renames, r"visual\."), with_prefix(POOLING, r"visual\."), split_packed
    else:
        renames, pooling, reshape = TRANSFORMERS_RENAMES, TRANSFORMERS_POOLING, keep_shape
    tensors, report = rename_tensors(clip.tensors, renames, CONSTANTS | pooling | TEXT_HALF, reshape)
    return Part(clip.source, tensors, report, r"model\.backbone\..+")


def split_packed(target: str, tensor: Tensor) -> dict[str, Tensor]:
    """Splits packed projections of attention; leaves other tensors as they are."""
    return split_packed_projection(target, tensor) if ".in_proj_" in target else {target: tensor}


__all__ = [
    "POOLING",
    "RESNET_RENAMES",
    "VIT_RENAMES",
    "clip_backbone_config",
    "clip_backbone_part",
    "describe_visual_half",
    "is_clip",
    "is_vision_transformer",
    "split_packed",
    "with_prefix",
]
