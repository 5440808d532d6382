# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Backbones by name: their configuration, the images they expect, and their pretrained weights."""

import re
from collections.abc import Mapping
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from ..backbone_mtaclip import FEATURE_STRIDES, CLIPResNetBackboneConfig, CLIPViTBackboneConfig, spread_stages
from .checkpoints import load_checkpoint, load_config, load_pretrained
from .clip import is_pretrained, make_visual_config
from .weights import NORMS_OF_MAPS, SourceWeights


# CLIP's image encoders; the fields are those of OpenAI's checkpoints.
CLIP_BACKBONES: dict[str, dict[str, Any]] = {
    "clip_rn50": {"width": 64, "layers": [3, 4, 6, 3]},
    "clip_rn101": {"width": 64, "layers": [3, 4, 23, 3]},
    "clip_vit_base_patch16": {"patch_size": 16},
    "clip_vit_large_patch14": {
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
BACKBONE = "model.backbone."
# What classifiers have behind their backbone.
HEADS = r"(\w+\.)?(classifier|fc|head|layernorm|norm|pooler)\..+"


def make_backbone_config(name: str, overrides: Mapping[str, Any] | None = None) -> PreTrainedConfig:
    """Configures a backbone that returns four feature maps.

    Args:
        name (`str`): one of CLIP's image encoders (`clip_rn50`, `clip_rn101`, `clip_vit_base_patch16`,
            `clip_vit_large_patch14`), a folder or Hub id with the configuration of a transformers backbone, a model
            type of transformers (`resnet`, `swin`, `convnext`, `dinov2`, …) for its default configuration, or a timm
            model.
        overrides (`Mapping[str, Any]`, *optional*): fields of the backbone's configuration.

    Raises:
        ValueError: no such backbone, or it has no maps at the strides 4, 8, 16 and 32, nor all at one stride.
    """
    overrides = dict(overrides or {})
    if name in CLIP_BACKBONES:
        return make_visual_config(CLIP_BACKBONES[name] | overrides)
    if name in MODEL_FOR_BACKBONE_MAPPING_NAMES and name != TimmBackboneConfig.model_type:
        config = AutoConfig.for_model(name, **overrides)
    elif is_pretrained(name):
        config = load_config(name, **overrides)
    else:
        return _timm_config(name.removeprefix("timm/"), overrides)
    if not hasattr(config, "stage_names"):
        raise ValueError(f"{name!r} holds a model of the type {config.model_type!r}, which is no backbone.")
    if len(config.out_features or ()) != len(FEATURE_STRIDES):
        config.out_features = spread_stages(config.stage_names)
    # In what precision the source was saved is no matter of ours.
    config.dtype = None
    return config


def _timm_config(name: str, overrides: dict[str, Any]) -> TimmBackboneConfig:
    timm = _import_timm()
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name}*")[:5]
        raise ValueError(
            f"There is no backbone {name!r}: it is neither one of CLIP's ({', '.join(CLIP_BACKBONES)}), nor a folder, "
            f"nor a model type of transformers ({', '.join(sorted(MODEL_FOR_BACKBONE_MAPPING_NAMES)[:6])}, …), nor a "
            f"timm model{f' (similar ones: {similar})' if similar else ''}."
        )
    return TimmBackboneConfig(backbone=name, **({"out_indices": _timm_stages(name)} | overrides))


def _timm_stages(name: str) -> list[int]:
    with torch.device("meta"):
        # Without indices, timm's transformers tell of their last three layers only.
        info = _import_timm().create_model(name, features_only=True, pretrained=False).feature_info
    reductions = [stage["reduction"] for stage in info.info]
    if len(set(reductions)) == 1 and len(reductions) >= len(FEATURE_STRIDES):
        stage_names = [str(index) for index in range(len(reductions))]
        return [int(stage) for stage in spread_stages(stage_names)]
    # Of several maps with the same stride the deepest knows most.
    deepest = {reduction: index for index, reduction in enumerate(reductions)}
    if not set(FEATURE_STRIDES) <= deepest.keys():
        raise ValueError(
            f"The timm model {name!r} returns feature maps at the strides {reductions}, but the strides "
            f"{list(FEATURE_STRIDES)} or four times the same are needed. Choose a hierarchical backbone, like "
            "resnet50 or convnext_tiny, or a vision transformer."
        )
    return [deepest[stride] for stride in FEATURE_STRIDES]


def image_statistics(config: PreTrainedConfig | None) -> tuple[list[float], list[float]]:
    """Mean and deviation of the images in [0, 1] that a backbone expects: CLIP's, timm's own, or else ImageNet's."""
    if isinstance(config, (CLIPResNetBackboneConfig, CLIPViTBackboneConfig)):
        return list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD)
    if isinstance(config, TimmBackboneConfig):
        pretrained = _import_timm().get_pretrained_cfg(config.backbone)
        if pretrained is not None:
            return list(pretrained.mean), list(pretrained.std)
    return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)


def backbone_weights(backbone: nn.Module, name: str, source: str) -> SourceWeights:
    """Pretrained weights for the backbone of a model, as `AutoBackbone` builds it; no such weights: `ValueError`.

    `source` is `"pretrained"` for the weights that the name stands for (timm's from the Hub, or those of a folder or
    Hub id), a file or folder of weights, or an installed package that contains a file. timm's are matched by name;
    where no name fits, in order, if number and shapes agree one by one with timm's whole classifier.
    """
    path = None if source == "pretrained" else _find_weights(source)
    weights = SourceWeights(str(path or name), covers=rf"(?!{NORMS_OF_MAPS})model\.backbone\..+")
    tensors = None if path is None else load_checkpoint(path).tensors
    if isinstance(backbone.config, TimmBackboneConfig):
        _match_timm(weights, tensors or _pretrained_timm(backbone.config), backbone)
    else:
        _match_transformers(weights, tensors, backbone)
    return weights


def _find_weights(source: str) -> Path:
    if Path(source).exists():
        return Path(source)
    try:
        files = metadata.files(source) or []
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"Backbone weights {source!r} are neither a file nor an installed package. Give the path of a "
            f"{', '.join(WEIGHT_SUFFIXES)} file, or install the package with pip."
        ) from None
    found = [str(file.locate()) for file in files if file.suffix in WEIGHT_SUFFIXES]
    if len(found) != 1:
        raise ValueError(
            f"The package {source!r} contains {len(found)} files of weights: give the path of one. {found}"
        )
    return Path(found[0])


def _match_transformers(weights: SourceWeights, tensors: Mapping[str, Tensor] | None, backbone: nn.Module) -> None:
    model, found = load_pretrained(
        type(backbone),
        weights.source,
        may_lack=NORMS_OF_MAPS,
        may_leave_out=HEADS,
        config=deepcopy(backbone.config),
        state_dict=tensors,
    )
    for name, tensor in model.state_dict().items():
        if name not in found["missing"] or not re.fullmatch(NORMS_OF_MAPS, name):
            weights.add(BACKBONE + name, tensor, name)
    weights.mark_missing(found["missing"])
    weights.left_out = dict.fromkeys(found["unexpected"], "not a part of the backbone")


def _pretrained_timm(config: TimmBackboneConfig) -> dict[str, Tensor]:
    try:
        return _import_timm().create_model(config.backbone, pretrained=True).state_dict()
    except Exception as error:  # the Hub, the reader and timm have their own kinds
        raise ValueError(f"timm has no pretrained weights for {config.backbone!r} here: {error}") from error


def _match_timm(weights: SourceWeights, tensors: Mapping[str, Tensor], backbone: nn.Module) -> None:
    name = backbone.config.backbone
    whole = {_flat(key): value.shape for key, value in _import_timm().create_model(name).state_dict().items()}
    ours = {_flat(key.removeprefix("_backbone.")): key for key in backbone.state_dict()}
    by_name = [
        {_flat(key.removeprefix(prefix)): key for key in tensors if key.startswith(prefix)}
        for prefix in ("", "model.", "backbone.")
    ]
    found, note = max(by_name, key=lambda names: len(ours.keys() & names.keys())), ""
    if not ours.keys() & found.keys() and [each.shape for each in tensors.values()] == list(whole.values()):
        found, note = dict(zip(whole, tensors, strict=True)), "matched in order"
    unknown = [original for key, original in found.items() if key not in ours and key not in whole]
    if unknown:
        raise ValueError(
            f"{weights.source} holds weights of another model than {name}, which does not have its {len(unknown)} "
            f"tensors {unknown[:3]}, … (nor as many of the same shapes in the same order)."
        )
    for key in [key for key in ours if key in found]:
        weights.add(BACKBONE + ours[key], tensors[found[key]], found[key], note)
    used = {found[key] for key in ours.keys() & found.keys()}
    weights.left_out = {key: "not a part of the backbone" for key in tensors if key not in used}


def _flat(name: str) -> str:
    """In a backbone, timm writes `layer1_0` for `layer1.0`."""
    return name.replace(".", "_")


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError("This backbone needs timm: pip install timm") from error
    return timm


__all__ = ["CLIP_BACKBONES", "backbone_weights", "image_statistics", "make_backbone_config"]
