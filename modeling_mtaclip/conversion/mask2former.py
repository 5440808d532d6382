# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Mask2Former of transformers: its config and weights as our model without text branch, which computes the same."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Mask2FormerConfig

from ..configuration_mtaclip import MTAClipConfig
from .account import Part
from .renaming import ConversionReport, leave_out, rename_tensors, split_packed_projection


RENAMES = {
    r"model\.pixel_level_module\.encoder\.(.+)": "model.backbone.{0}",
    r"model\.pixel_level_module\.decoder\.level_embed": "model.pixel_decoder.level_embed",
    r"model\.pixel_level_module\.decoder\.(input_projections\.\d\.\d\.\w+)": "model.pixel_decoder.{0}",
    r"model\.pixel_level_module\.decoder\.encoder\.(layers\..+)": "model.pixel_decoder.{0}",
    r"model\.pixel_level_module\.decoder\.mask_projection\.(\w+)": "model.pixel_decoder.mask_projection.{0}",
    r"model\.pixel_level_module\.decoder\.adapter_1\.(\d\.\w+)": "model.pixel_decoder.lateral_projection.{0}",
    r"model\.pixel_level_module\.decoder\.layer_1\.(\d\.\w+)": "model.pixel_decoder.output_projection.{0}",
    r"model\.transformer_module\.queries_embedder\.weight": "model.decoder.mask_query_positions",
    r"model\.transformer_module\.queries_features\.weight": "model.decoder.mask_queries",
    r"model\.transformer_module\.level_embed\.weight": "model.decoder.level_embed",
    r"model\.transformer_module\.decoder\.(layers\..+)": "model.decoder.{0}",
    r"model\.transformer_module\.decoder\.layernorm\.(\w+)": "model.decoder.layer_norm.{0}",
    r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.0\.0\.(\w+)": (
        "model.decoder.mask_embedder.0.{0}"
    ),
    r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.1\.0\.(\w+)": (
        "model.decoder.mask_embedder.2.{0}"
    ),
    r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.2\.0\.(\w+)": (
        "model.decoder.mask_embedder.4.{0}"
    ),
    r"class_predictor\.(\w+)": "class_predictor.{0}",
}

# Of our names, for which a Mask2Former has nothing, or nothing that is used.
TEXT_QUERIES = {
    r"model\.decoder\.(text_projection|query_layer_norm)\..+|model\.decoder\.text_query_positions": (
        "Mask2Former has no text queries"
    )
}
BACKBONE = {r"model\.backbone\..+": "the model has another backbone"}
READS_BACKBONE = {
    r"model\.pixel_decoder\.(input_projections|lateral_projection)\..+": "the model has another backbone to read"
}

LEFT_OUT = {r"criterion\.empty_weight": "class weights of the loss, which the config holds"}


def config_from_mask2former(original: Mask2FormerConfig, **overrides: Any) -> MTAClipConfig:
    """Our config for the architecture and losses of a Mask2Former.

    Args:
        original (`Mask2FormerConfig`): of the model.
        overrides: fields of [`MTAClipConfig`]; `text_branch` is `False` unless given here.

    Raises:
        ValueError: an architecture that ours does not have.
    """
    return MTAClipConfig(
        **({"id2label": original.id2label, "text_branch": False} | fields_from_mask2former(original) | overrides)
    )


def fields_from_mask2former(original: Mask2FormerConfig) -> dict[str, Any]:
    """The fields of [`MTAClipConfig`] for the architecture and losses of a Mask2Former, without its classes.

    Raises:
        ValueError: an architecture that ours does not have.
    """
    unsupported = {"pre_norm": False, "enforce_input_projection": False, "common_stride": 4}
    unsupported |= {"activation_function": "relu", "dropout": 0.0}
    for name, value in unsupported.items():
        if getattr(original, name) != value:
            raise ValueError(
                f"Mask2Former with `{name}={getattr(original, name)!r}` can't be converted, only {value!r}."
            )
    if original.feature_size != original.hidden_dim:
        raise ValueError(
            f"Mask2Former with different `feature_size` ({original.feature_size}) and `hidden_dim` "
            f"({original.hidden_dim}) can't be converted."
        )
    return {
        "backbone_config": original.backbone_config,
        "num_queries": original.num_queries,
        "hidden_size": original.hidden_dim,
        "mask_feature_size": original.mask_feature_size,
        "encoder_layers": original.encoder_layers,
        "encoder_attention_heads": original.num_attention_heads,
        "encoder_feedforward_dim": original.encoder_feedforward_dim,
        "decoder_layers": original.decoder_layers - 1,
        "decoder_attention_heads": original.num_attention_heads,
        "decoder_feedforward_dim": original.dim_feedforward,
        "class_weight": original.class_weight,
        "mask_weight": original.mask_weight,
        "dice_weight": original.dice_weight,
        "match_class_weight": original.class_weight,
        "match_mask_weight": original.mask_weight,
        "match_dice_weight": original.dice_weight,
        "no_object_weight": original.no_object_weight,
        "train_num_points": original.train_num_points,
        "oversample_ratio": original.oversample_ratio,
        "importance_sample_ratio": original.importance_sample_ratio,
    }


def convert_mask2former_state_dict(original: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ConversionReport]:
    """Renames the tensors of a `Mask2FormerForUniversalSegmentation`.

    Args:
        original (`Mapping[str, Tensor]`): its state dict.

    Returns:
        `tuple[dict[str, Tensor], ConversionReport]`: a state dict of [`MTAClipForSemanticSegmentation`] without text
        branch, and the account.

    Raises:
        ValueError: a tensor that is neither used nor known to be unused.
    """
    return rename_tensors(original, RENAMES, LEFT_OUT, _reshape)


def mask2former_part(source: str, original: Mapping[str, Tensor], with_backbone: bool = True) -> Part:
    """Everything that a Mask2Former gives to a model; its class head is still for its own classes.

    Args:
        source (`str`): its folder or Hub id.
        original (`Mapping[str, Tensor]`): its state dict.
        with_backbone (`bool`): `False` where the model has another backbone; the layers that read the feature maps
            of the backbone are then left out, too.

    Raises:
        ValueError: a tensor that is neither used nor known to be unused.
    """
    tensors, report = convert_mask2former_state_dict(original)
    covers = r"model\.(backbone|pixel_decoder|decoder)\..+|class_predictor\..+"
    if with_backbone:
        return Part(source, tensors, report, covers, new=TEXT_QUERIES)
    leave_out(tensors, report, BACKBONE | READS_BACKBONE)
    covers = covers.replace("backbone|", "")
    return Part(source, tensors, report, covers, new=TEXT_QUERIES | READS_BACKBONE)


def _reshape(target: str, tensor: Tensor) -> dict[str, Tensor]:
    return split_packed_projection(target, tensor) if ".in_proj_" in target else {target: tensor}


__all__ = [
    "config_from_mask2former",
    "convert_mask2former_state_dict",
    "fields_from_mask2former",
    "mask2former_part",
]
