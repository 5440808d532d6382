# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Backbones of a run: their configuration by name, and weights from local files."""

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.utils import logging

from ..backbone_mtaclip import FEATURE_STRIDES, CLIPResNetBackboneConfig, CLIPViTBackboneConfig, spread_stages
from .account import Part
from .renaming import ConversionReport


logger = logging.get_logger(__name__)

# CLIP's image encoders; the fields are those of OpenAI's checkpoints.
CLIP_BACKBONES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "clip_rn50": (CLIPResNetBackboneConfig, {"width": 64, "layers": [3, 4, 6, 3]}),
    "clip_rn101": (CLIPResNetBackboneConfig, {"width": 64, "layers": [3, 4, 23, 3]}),
    "clip_vit_base_patch16": (CLIPViTBackboneConfig, {"patch_size": 16}),
    "clip_vit_large_patch14": (
        CLIPViTBackboneConfig,
        {
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
    ),
}
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# What classifiers have beside their backbone.
HEADS = {"classifier", "fc", "head", "layernorm", "norm", "pooler"}
BACKBONE = "model.backbone."
CLIP_MODEL_TYPES = {config_class.model_type for config_class, _ in CLIP_BACKBONES.values()}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        config_class, fields = CLIP_BACKBONES[name]
        return config_class(**(fields | overrides))
    if name in MODEL_FOR_BACKBONE_MAPPING_NAMES and name != TimmBackboneConfig.model_type:
        config = AutoConfig.for_model(name, **overrides)
    elif Path(name).is_dir() or ("/" in name and not name.startswith("timm/")):
        config = AutoConfig.from_pretrained(name, **overrides)
    else:
        return _timm_config(name.removeprefix("timm/"), overrides)
    if len(getattr(config, "out_features", None) or ()) != len(FEATURE_STRIDES):
        config.out_features = spread_stages(config.stage_names)
    return config


def _timm_config(name: str, overrides: dict[str, Any]) -> TimmBackboneConfig:
    timm = _import_timm()
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name}*")[:5]
        raise ValueError(
            f"There is no backbone {name!r}: it is neither one of CLIP's ({', '.join(CLIP_BACKBONES)}), nor a folder, "
            f"nor a model type of transformers ({', '.join(sorted(MODEL_FOR_BACKBONE_MAPPING_NAMES)[:6])}, …), nor a "
            f"timm model"
            f"{f' (similar ones: {similar})' if similar else ''}."
        )
    if "out_indices" not in overrides:
        overrides["out_indices"] = _timm_stages(name)
    return TimmBackboneConfig(backbone=name, **overrides)


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
    """Mean and standard deviation of the images that a backbone's pretrained weights expect, in [0, 1].

    Args:
        config (`PreTrainedConfig`, *optional*): of the backbone; ImageNet's values for all but CLIP's image encoders
            and timm's models.
    """
    if getattr(config, "model_type", None) in CLIP_MODEL_TYPES:
        return list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD)
    if isinstance(config, TimmBackboneConfig):
        pretrained = _import_timm().get_pretrained_cfg(config.backbone)
        if pretrained is not None:
            return list(pretrained.mean), list(pretrained.std)
    return list(IMAGENET_MEAN), list(IMAGENET_STD)


def backbone_weights_part(backbone: nn.Module, source: str) -> Part:
    """Local weights for the backbone of a model.

    Tensors are matched by name; where the names differ throughout and the backbone is a timm model, in order, if
    number and shapes agree one by one with timm's whole classifier.

    Args:
        backbone (`nn.Module`): as `AutoBackbone` builds it.
        source (`str`): a `.safetensors`, `.pth`, `.pt` or `.bin` file, or an installed package that contains one.

    Raises:
        ValueError: no such file or package, or the tensors don't fit.
    """
    path = _find_weights(source)
    weights = _read_weights(path)
    inner = "_backbone." if hasattr(backbone, "_backbone") else ""
    target = {name.removeprefix(inner): value for name, value in backbone.state_dict().items()}
    matches, how = _match_by_name(weights, target), "by name"
    if matches is None:
        matches, how = _match_in_order(backbone, weights, target, path), "in order"
    else:
        _refuse_unknown(backbone, weights, matches, path)
    for name, source_name in matches.items():
        if weights[source_name].shape != target[name].shape:
            raise ValueError(
                f"{path}: the tensor {source_name!r} has the shape {tuple(weights[source_name].shape)}, but "
                f"{name!r} of the backbone needs {tuple(target[name].shape)}. These weights belong to another model."
            )
    report = ConversionReport(used={theirs: [f"{BACKBONE}{inner}{name}"] for name, theirs in matches.items()})
    report.left_out = {name: "not a part of the backbone" for name in weights if name not in report.used}
    tensors = {f"{BACKBONE}{inner}{name}": weights[theirs] for name, theirs in matches.items()}
    notes = dict.fromkeys(tensors, "matched in order") if how == "in order" else {}
    return Part(str(path), tensors, report, rf"{re.escape(BACKBONE)}.+", notes=notes)


def _find_weights(source: str) -> Path:
    if Path(source).is_file():
        return Path(source)
    try:
        files = metadata.files(source) or []
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"Backbone weights {source!r} are neither a file nor an installed package. Give the path of a "
            f"{', '.join(WEIGHT_SUFFIXES)} file, or install the package with pip."
        ) from None
    found = [file for file in files if file.suffix in WEIGHT_SUFFIXES]
    if len(found) != 1:
        raise ValueError(
            f"The package {source!r} contains {len(found)} files of weights ({[str(file) for file in found]}), "
            "expected one. Give the path of the right one."
        )
    return Path(found[0].locate())


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds
        raise ValueError(f"{path} could not be read as a file of weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no state dict: expected a mapping from names to tensors.")
    return dict(weights)


def _match_by_name(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Maps each name of the backbone to the file's, or `None` unless all are there. timm may write `_` for `.`."""
    for prefix in ("", "module.", "model.", "backbone.", "model.backbone."):
        canonical = {name.removeprefix(prefix).replace(".", "_"): name for name in weights if name.startswith(prefix)}
        if all(name.replace(".", "_") in canonical for name in target):
            return {name: canonical[name.replace(".", "_")] for name in target}
    return None


def _refuse_unknown(
    backbone: nn.Module, weights: Mapping[str, Tensor], matches: Mapping[str, str], path: Path
) -> None:
    """Tensors beside the backbone's may be those of a head, but not those of a deeper backbone."""
    name, theirs = next(iter(matches.items()))
    prefix = theirs[: len(theirs) - len(name)]
    known = set()
    if isinstance(backbone.config, TimmBackboneConfig):
        known = set(_import_timm().create_model(backbone.config.backbone, pretrained=False).state_dict())
    unknown = [
        each
        for each in weights.keys() - set(matches.values())
        if each.startswith(prefix)
        and each.removeprefix(prefix) not in known
        and each.removeprefix(prefix).split(".")[0] not in HEADS
    ]
    if unknown:
        raise ValueError(
            f"{path} has {len(unknown)} tensors that the backbone does not have, e.g. {sorted(unknown)[:3]}. These "
            "weights belong to another model."
        )


def _match_in_order(
    backbone: nn.Module, weights: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path
) -> dict[str, str]:
    missing = next(name for name in target if name not in weights)
    refusal = f"{path} does not fit the backbone: it has no tensor {missing!r}"
    if not isinstance(backbone.config, TimmBackboneConfig):
        raise ValueError(f"{refusal}. Convert its names to those of {type(backbone).__name__}.")
    whole = _import_timm().create_model(backbone.config.backbone, pretrained=False).state_dict()
    if len(whole) != len(weights):
        raise ValueError(
            f"{refusal}, and it can't be read in order, because it has {len(weights)} tensors where timm's "
            f"{backbone.config.backbone} has {len(whole)}."
        )
    order = dict(zip((name.replace(".", "_") for name in whole), weights, strict=True))
    for (name, expected), (source_name, found) in zip(whole.items(), weights.items(), strict=True):
        if expected.shape != found.shape:
            raise ValueError(
                f"{refusal}, and it can't be read in order, because its {source_name!r} has the shape "
                f"{tuple(found.shape)} where timm's {name!r} has {tuple(expected.shape)}."
            )
    return {name: order[name.replace(".", "_")] for name in target}


def pretrained_backbone_part(backbone: nn.Module, name: str) -> Part:
    """The weights that a backbone's name stands for: timm's from the Hub, or those of a transformers folder.

    Args:
        backbone (`nn.Module`): as `AutoBackbone` builds it.
        name (`str`): as for [`make_backbone_config`].

    Raises:
        ValueError: the weights are not there, or not complete.
    """
    if isinstance(backbone.config, TimmBackboneConfig):
        state_dict, left_out = _pretrained_timm(backbone.config), {}
    else:
        state_dict, left_out = _pretrained_transformers(name, backbone.config)
    report = ConversionReport({name: [f"{BACKBONE}{name}"] for name in state_dict}, left_out)
    tensors = {f"{BACKBONE}{name}": value for name, value in state_dict.items()}
    return Part(name, tensors, report, rf"{re.escape(BACKBONE)}.+")


def _pretrained_timm(config: TimmBackboneConfig) -> dict[str, Tensor]:
    try:
        pretrained = _import_timm().create_model(
            config.backbone, pretrained=True, features_only=True, out_indices=config.out_indices
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"timm has no pretrained weights for {config.backbone!r} here: {error}") from error
    return {f"_backbone.{name}": value for name, value in pretrained.state_dict().items()}


def _pretrained_transformers(name: str, config: PreTrainedConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        pretrained, info = AutoBackbone.from_pretrained(name, config=config, output_loading_info=True)
    except OSError as error:
        raise ValueError(f"No weights of a backbone could be loaded from {name!r}: {error}") from error
    if info["missing_keys"]:
        raise ValueError(f"{name!r} lacks the weights for {sorted(info['missing_keys'])[:5]} of the backbone.")
    left_out = dict.fromkeys(sorted(info["unexpected_keys"]), "not a part of the backbone")
    return pretrained.state_dict(), left_out


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError("This backbone needs timm: pip install timm") from error
    return timm


__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "backbone_weights_part",
    "image_statistics",
    "make_backbone_config",
    "pretrained_backbone_part",
]
