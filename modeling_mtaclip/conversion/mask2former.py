# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Mask2Former of transformers: its config and weights as our model without text branch, which computes the same."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Mask2FormerConfig

from ..configuration_mtaclip import MTAClipConfig
from .weights import SourceWeights


ENCODER, DECODER = r"model\.pixel_level_module\.encoder\.", r"model\.pixel_level_module\.decoder\."
TRANSFORMER = r"model\.transformer_module\."
NAMES = {
    rf"^{ENCODER}": "model.backbone.",
    rf"^{DECODER}(encoder\.)?": "model.pixel_decoder.",
    r"pixel_decoder\.adapter_1\.": "pixel_decoder.lateral_projection.",
    r"pixel_decoder\.layer_1\.": "pixel_decoder.output_projection.",
    rf"^{TRANSFORMER}queries_embedder\.weight": "model.decoder.mask_query_positions",
    rf"^{TRANSFORMER}queries_features\.weight": "model.decoder.mask_queries",
    rf"^{TRANSFORMER}level_embed\.weight": "model.decoder.level_embed",
    rf"^{TRANSFORMER}decoder\.": "model.decoder.",
    r"^model\.decoder\.layernorm\.": "model.decoder.layer_norm.",
    **{
        rf"decoder\.mask_predictor\.mask_embedder\.{layer}\.0\.": f"decoder.mask_embedder.{2 * layer}."
        for layer in range(3)
    },
}
LEFT_OUT = {r"criterion\.empty_weight": "class weights of the loss, which the config holds"}
OTHER_BACKBONE = {
    rf"{ENCODER}.+": "the model has another backbone",
    rf"{DECODER}(input_projections|adapter_1)\..+": "the model has another backbone to read",
}
# Of our names, for which a Mask2Former has nothing, or nothing that is used.
TEXT_QUERIES = {
    r"model\.decoder\.(text_projection|query_layer_norm)\..+|model\.decoder\.text_query_positions": (
        "Mask2Former has no text queries"
    )
}
READS_BACKBONE = {
    r"model\.pixel_decoder\.(input_projections|lateral_projection)\..+": "the model has another backbone to read"
}


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
    supported = {"pre_norm": False, "enforce_input_projection": False, "common_stride": 4}
    supported |= {"activation_function": "relu", "dropout": 0.0, "feature_size": original.hidden_dim}
    for name, value in supported.items():
        if getattr(original, name) != value:
            raise ValueError(
                f"Mask2Former with `{name}={getattr(original, name)!r}` can't be converted, only {value!r}."
            )
    return {
        "backbone_config": original.backbone_config,
        "hidden_size": original.hidden_dim,
        "encoder_attention_heads": original.num_attention_heads,
        "decoder_layers": original.decoder_layers - 1,
        "decoder_attention_heads": original.num_attention_heads,
        "decoder_feedforward_dim": original.dim_feedforward,
        **{f"match_{name}": getattr(original, name) for name in ("class_weight", "mask_weight", "dice_weight")},
        **{name: getattr(original, name) for name in SAME_FIELDS},
    }


SAME_FIELDS = (
    *("num_queries", "mask_feature_size", "encoder_layers", "encoder_feedforward_dim"),
    *("class_weight", "mask_weight", "dice_weight", "no_object_weight"),
    *("train_num_points", "oversample_ratio", "importance_sample_ratio"),
)


def convert_mask2former_state_dict(
    original: Mapping[str, Tensor], source: str = "Mask2Former", with_backbone: bool = True
) -> SourceWeights:
    """Everything that a Mask2Former gives to a model; its class head is still for its own classes.

    Args:
        original (`Mapping[str, Tensor]`): its state dict.
        source (`str`): its folder or Hub id.
        with_backbone (`bool`): `False` where the model has another backbone; the layers that read the feature maps
            of the backbone are then left out, too.
    """
    covers = r"model\.(backbone|pixel_decoder|decoder)\..+|class_predictor\..+"
    if with_backbone:
        weights = SourceWeights(source, covers, TEXT_QUERIES)
        weights.rename(original, NAMES, LEFT_OUT)
    else:
        weights = SourceWeights(source, covers.replace("backbone|", ""), TEXT_QUERIES | READS_BACKBONE)
        weights.rename(original, NAMES, LEFT_OUT | OTHER_BACKBONE)
    return weights


__all__ = ["config_from_mask2former", "convert_mask2former_state_dict", "fields_from_mask2former"]
