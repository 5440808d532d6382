# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""CLIP as a source of text encoders and backbones: folders and Hub ids of transformers, and OpenAI's `.pt` files.

OpenAI publishes RN50.pt, RN101.pt, ViT-B-16.pt, … (https://github.com/openai/CLIP) as TorchScript archives; a state
dict saved from one has the same names.
"""

import zipfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    PreTrainedModel,
)

from .account import Part
from .renaming import keep_shape, rename_tensors, split_packed_projection


TEXT_ENCODER = "model.text_model.text_encoder"
TEXT_LAYER = f"{TEXT_ENCODER}.text_model.encoder.layers.{{0}}"
POSITIONS = f"{TEXT_ENCODER}.text_model.embeddings.position_embedding.weight"
TEXT_PROJECTION = f"{TEXT_ENCODER}.text_projection.weight"

# The text half, by OpenAI's names.
OPENAI_TEXT_RENAMES = {
    r"token_embedding\.weight": f"{TEXT_ENCODER}.text_model.embeddings.token_embedding.weight",
    r"positional_embedding": POSITIONS,
    r"transformer\.resblocks\.(\d+)\.attn\.(in_proj_\w+|out_proj\.\w+)": f"{TEXT_LAYER}.self_attn.{{1}}",
    r"transformer\.resblocks\.(\d+)\.ln_(\d)\.(\w+)": f"{TEXT_LAYER}.layer_norm{{1}}.{{2}}",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)": f"{TEXT_LAYER}.mlp.fc1.{{1}}",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)": f"{TEXT_LAYER}.mlp.fc2.{{1}}",
    r"ln_final\.(\w+)": f"{TEXT_ENCODER}.text_model.final_layer_norm.{{0}}",
    r"text_projection": TEXT_PROJECTION,
}
TEXT_RENAMES = {r"((?:text_model|text_projection)\..+)": f"{TEXT_ENCODER}.{{0}}"}

CONSTANTS = {
    r"logit_scale": "CLIP's temperature; ours is in the config",
    r"input_resolution|context_length|vocab_size": "a constant, which the config holds",
}
VISUAL_HALF = {
    r"visual\..+|vision_model\..+|visual_projection\..+": "the visual half of CLIP: the backbone is another one"
}
TEXT_HALF = {
    r"(?:text_model|text_projection)\..+|token_embedding\.weight|positional_embedding|text_projection|ln_final\..+"
    r"|transformer\..+": "the text half of CLIP: the text encoder is another one"
}


@dataclass
class ClipWeights:
    """A CLIP model, or one of its halves.

    Attributes:
        source (`str`): the file, folder or Hub id.
        is_openai (`bool`): whether the names are OpenAI's; else they are transformers'.
        tensors (`dict[str, Tensor]`): float32.
        text_config (`CLIPTextConfig`, *optional*): absent without text half.
        vision_config (`CLIPVisionConfig`, *optional*): of a visual half that is a vision transformer.
    """

    source: str
    is_openai: bool
    tensors: dict[str, Tensor]
    text_config: CLIPTextConfig | None = None
    vision_config: CLIPVisionConfig | None = None


def load_clip(name_or_path: str) -> ClipWeights:
    """Reads CLIP.

    Args:
        name_or_path (`str`): OpenAI's `.pt` file (TorchScript or state dict), or a folder or Hub id of transformers.

    Raises:
        ValueError: there is none, or it is no CLIP model.
    """
    if Path(name_or_path).is_file():
        return _load_openai(Path(name_or_path))
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"No CLIP model could be read from {name_or_path!r}: {error}") from error
    if isinstance(config, CLIPConfig):
        text_config = config.text_config
        text_config.projection_dim = config.projection_dim
        tensors = load_complete(CLIPModel, name_or_path).state_dict()
        return ClipWeights(name_or_path, False, tensors, text_config, config.vision_config)
    if isinstance(config, CLIPTextConfig):
        tensors = load_complete(CLIPTextModelWithProjection, name_or_path).state_dict()
        return ClipWeights(name_or_path, False, tensors, text_config=config)
    raise ValueError(
        f"{name_or_path!r} holds a model of the type {config.model_type!r}; a CLIP model was expected, like "
        "openai/clip-vit-base-patch16."
    )


def load_complete(model_class: type[PreTrainedModel], name_or_path: str) -> PreTrainedModel:
    """Loads a model of transformers in float32, without which any tensor would be random or unused.

    Raises:
        ValueError: there is no such model, or its tensors are not exactly the architecture's.
    """
    try:
        model, info = model_class.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"No {model_class.__name__} could be loaded from {name_or_path!r}: {error}") from error
    for problem in ("missing_keys", "unexpected_keys"):
        if info[problem]:
            names = sorted(info[problem])
            raise ValueError(
                f"{name_or_path!r} is no complete {model_class.__name__}: {len(names)} {problem.replace('_keys', '')} "
                f"tensors, e.g. {names[:3]}."
            )
    return model


def _load_openai(path: Path) -> ClipWeights:
    tensors = {name: _in_float32(tensor) for name, tensor in _read_openai(path).items()}
    if "visual.conv1.weight" not in tensors and "token_embedding.weight" not in tensors:
        raise ValueError(
            f"{path} is no CLIP model by OpenAI's names: there is neither a tensor 'token_embedding.weight' nor "
            f"'visual.conv1.weight', but {sorted(tensors)[:3]}."
        )
    text_config = openai_text_config(tensors) if "token_embedding.weight" in tensors else None
    return ClipWeights(str(path), True, tensors, text_config)


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _read_openai(path: Path) -> Mapping[str, Tensor]:
    try:
        if _is_torchscript(path):
            return torch.jit.load(path, map_location="cpu").state_dict()
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds
        raise ValueError(f"{path} could not be read as TorchScript or as a state dict: {error}") from error
    if isinstance(weights, Mapping) and isinstance(weights.get("state_dict"), Mapping):
        weights = weights["state_dict"]
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no state dict: expected a mapping from names to tensors.")
    return weights


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def openai_text_config(tensors: Mapping[str, Tensor], prefix: str = "") -> CLIPTextConfig:
    """Configures the text encoder of a checkpoint with OpenAI's names by the shapes of its tensors.

    Args:
        tensors (`Mapping[str, Tensor]`): the checkpoint.
        prefix (`str`): in front of the names.
    """
    vocab_size, width = tensors[f"{prefix}token_embedding.weight"].shape
    blocks = f"{prefix}transformer.resblocks."
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=len(tensors[f"{blocks}0.mlp.c_fc.weight"]),
        projection_dim=tensors[f"{prefix}text_projection"].shape[1],
        num_hidden_layers=count_layers(tensors, blocks),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=len(tensors[f"{prefix}positional_embedding"]),
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
    )


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow a prefix of names, as in `layers.0.…`, `layers.1.…`."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})


def clip_text_config(clip: ClipWeights, num_positions: int | None) -> CLIPTextConfig:
    """Configures the text encoder of a CLIP model, with the first `num_positions` of its positions, or all.

    Raises:
        ValueError: the model has no text half, or fewer positions.
    """
    if clip.text_config is None:
        raise ValueError(f"{clip.source!r} is a CLIP model without text half. Give another one as text encoder.")
    config = deepcopy(clip.text_config)
    if num_positions is not None:
        if not 0 < num_positions <= config.max_position_embeddings:
            raise ValueError(
                f"`text_positions` is {num_positions}, but {clip.source!r} has {config.max_position_embeddings}."
            )
        config.max_position_embeddings = num_positions
    return config


def text_encoder_part(clip: ClipWeights, num_positions: int) -> Part:
    """The text encoder from a CLIP model, its position table cut to the first `num_positions`."""
    renames = OPENAI_TEXT_RENAMES if clip.is_openai else TEXT_RENAMES
    reshape = reshape_openai_text if clip.is_openai else keep_shape
    tensors, report = rename_tensors(clip.tensors, renames, CONSTANTS | VISUAL_HALF, reshape)
    positions = tensors.get(POSITIONS)
    notes = {}
    if positions is not None and len(positions) > num_positions:
        tensors[POSITIONS] = positions[:num_positions].clone()
        notes[POSITIONS] = f"the first {num_positions} of {len(positions)} positions"
    return Part(clip.source, tensors, report, r"model\.text_model\.text_encoder\..+", notes=notes)


def reshape_openai_text(target: str, tensor: Tensor) -> dict[str, Tensor]:
    """Brings a tensor of the text encoder from OpenAI's shape into transformers'."""
    if ".in_proj_" in target:
        return split_packed_projection(target, tensor)
    if target == TEXT_PROJECTION:
        return {target: tensor.T.contiguous()}
    return {target: tensor}


__all__ = [
    "OPENAI_TEXT_RENAMES",
    "ClipWeights",
    "clip_text_config",
    "count_layers",
    "load_clip",
    "load_complete",
    "openai_text_config",
    "reshape_openai_text",
    "text_encoder_part",
]
