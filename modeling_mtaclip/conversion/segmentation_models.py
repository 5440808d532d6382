# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Segmentation models as sources: Mask2Former of transformers, and the authors' MTA-CLIP (an mmsegmentation plugin).

Without text branch, our model computes what Mask2Former computes; with the authors' weights, what their code computes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from ..configuration_mtaclip import CONTRASTIVE_NEGATIVES, MTAClipConfig
from ..pixel_decoder_mtaclip import NUM_LEVELS
from .checkpoints import Checkpoint, load_config, load_pretrained, look_up
from .clip import (
    POOLING,
    TEXT_NAMES,
    count_layers,
    make_visual_config,
    openai_text_config,
    openai_visual_fields,
    visual_names,
)
from .weights import READS_BACKBONE, TEXT_QUERIES, SourceWeights


ENCODER, DECODER = r"model\.pixel_level_module\.encoder\.", r"model\.pixel_level_module\.decoder\."
TRANSFORMER = r"model\.transformer_module\."
MASK2FORMER_NAMES = {
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
MASK2FORMER_LEFT_OUT = {r"criterion\.empty_weight": "class weights of the loss, which the config holds"}
OTHER_BACKBONE = {
    rf"{ENCODER}.+": "the model has another backbone",
    rf"{DECODER}(input_projections|adapter_1)\..+": "the model has another backbone to read",
}
# Fields of the configuration with the same name and meaning.
SAME_FIELDS = (
    *("num_queries", "mask_feature_size", "encoder_layers", "encoder_feedforward_dim"),
    *("class_weight", "mask_weight", "dice_weight", "no_object_weight"),
    *("train_num_points", "oversample_ratio", "importance_sample_ratio"),
)


def fields_from_mask2former(original: Mask2FormerConfig) -> dict[str, Any]:
    """The fields of [`MTAClipConfig`] for the architecture and losses of a Mask2Former, without its classes."""
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


class Mask2FormerSource:
    """A Mask2Former of transformers, from a folder or the Hub; one that can't be used is a `ValueError`."""

    def __init__(self, name_or_path: str) -> None:
        load_config(name_or_path, "mask2former")
        self.source = name_or_path
        self.model, found = load_pretrained(Mask2FormerForUniversalSegmentation, name_or_path)
        self.missing = found["missing"]

    def class_names(self) -> list[str]:
        """Its classes in the order of their ids."""
        ids, names = zip(*sorted(self.model.config.id2label.items()), strict=True)
        if ids != tuple(range(len(ids))):
            raise ValueError(
                f"{self.source!r} has class ids with gaps, {list(ids)}: number its `id2label` without gaps in "
                "config.json."
            )
        return list(names)

    def weights(self, with_backbone: bool) -> SourceWeights:
        """What it gives to a model; the class head is still for its classes.

        Where the model has another backbone, the layers that read the backbone's feature maps are left out, too.
        """
        parts = r"model\.(pixel_decoder|decoder)\..+|class_predictor\..+"
        if with_backbone:
            lacks, covers, left_out = TEXT_QUERIES, rf"{parts}|model\.backbone\..+", MASK2FORMER_LEFT_OUT
        else:
            lacks, covers, left_out = rf"{TEXT_QUERIES}|{READS_BACKBONE}", parts, MASK2FORMER_LEFT_OUT | OTHER_BACKBONE
        weights = SourceWeights(self.source, rf"(?!{lacks})({covers})")
        weights.rename(self.model.state_dict(), MASK2FORMER_NAMES, left_out)
        weights.mark_missing(self.missing)
        return weights


ORIGINAL_NAMES = TEXT_NAMES | {
    r"^contexts$": "model.text_model.contexts",
    # Their vision transformer has the feature pyramid inside.
    r"^backbone\.fpn1\.": "model.feature_pyramid.levels.0.",
    r"^backbone\.fpn2\.": "model.feature_pyramid.levels.1.",
    r"^backbone\.fpn3\.": "model.feature_pyramid.levels.2.0.",
    r"^backbone\.fpn4\.": "model.feature_pyramid.levels.3.",
    r"^decode_head\.pixel_decoder\.(encoder\.)?": "model.pixel_decoder.",
    r"pixel_decoder\.input_convs\.": "pixel_decoder.input_projections.",
    r"pixel_decoder\.lateral_convs\.0\.": "pixel_decoder.lateral_projection.",
    r"pixel_decoder\.output_convs\.0\.": "pixel_decoder.output_projection.",
    r"(pixel_decoder\..+projections?)(\.\d)?\.conv\.": r"\1\2.0.",
    r"(pixel_decoder\..+projections?)(\.\d)?\.gn\.": r"\1\2.1.",
    r"pixel_decoder\.mask_feature\.": "pixel_decoder.mask_projection.",
    r"level_encoding\.weight$": "level_embed",
    r"(pixel_decoder\.layers\.\d+)\.norms\.0\.": r"\1.self_attn_layer_norm.",
    r"(pixel_decoder\.layers\.\d+)\.norms\.1\.": r"\1.final_layer_norm.",
    r"^decode_head\.transformer_decoder\.": "model.decoder.",
    r"(decoder\.layers\.\d+\.(?:cross|self)_attn)\.attn\.": r"\1.",
    r"(\.decoder\.layers\.\d+)\.norms\.0\.": r"\1.cross_attn_layer_norm.",
    r"(\.decoder\.layers\.\d+)\.norms\.1\.": r"\1.self_attn_layer_norm.",
    r"(\.decoder\.layers\.\d+)\.norms\.2\.": r"\1.final_layer_norm.",
    r"ffn\.layers\.0\.0\.": "fc1.",
    r"ffn\.layers\.1\.": "fc2.",
    r"decoder\.post_norm\.": "decoder.layer_norm.",
    r"^decode_head\.query_feat\.weight$": "model.decoder.mask_queries",
    r"^decode_head\.query_embed_decoder\.weight$": "model.decoder.query_positions",
    r"^decode_head\.query_project\.": "model.decoder.text_projection.",
    r"^decode_head\.norm_project\.": "model.decoder.query_layer_norm.",
    r"^decode_head\.level_embed\.weight$": "model.decoder.level_embed",
    r"^decode_head\.mask_embed\.": "model.decoder.mask_embedder.",
    r"^decode_head\.cls_embed\.": "class_predictor.",
    r"^decode_head\.query_reproject\.": "text_head.text_projection.",
    r"^decode_head\.norm_reproject\.": "text_head.text_layer_norm.",
    r"^decode_head\.mask_reproject\.": "text_head.mask_projection.",
    r"^decode_head\.gamma$": "text_head.gamma",
}
ORIGINAL_LEFT_OUT = POOLING | {
    r"data_preprocessor\..*": "mean and standard deviation of the images, which the image processor holds",
    r"gamma": "the original never uses it; the one that it uses is decode_head.gamma",
    r"decode_head\.visual_emb_proj\..*": "the original computes with it, but never uses the result",
    r"decode_head\.lang_embed\..*": "the original never uses it",
    r"decode_head\.criterion\..*|decode_head\.loss_.*": "a constant of the losses, which the config holds",
}
CLASS_TOKEN = "model.backbone.embeddings.class_embedding"
VIT_POSITIONS = "model.backbone.embeddings.position_embedding.weight"
QUERY_POSITIONS = "model.decoder.query_positions"

# Fields of our config that shapes of tensors don't tell, and where they stand in the `model` of a run's configuration.
RUN_CONFIG_FIELDS = {
    "encoder_num_points": "decode_head.pixel_decoder.encoder.layer_cfg.self_attn_cfg.num_points",
    "encoder_norm_groups": "decode_head.pixel_decoder.norm_cfg.num_groups",
    "decoder_attention_heads": "decode_head.transformer_decoder.layer_cfg.self_attn_cfg.num_heads",
    "class_weight": "decode_head.loss_cls.loss_weight",
    "contrastive_weight": "decode_head.loss_queries_wt",
    "mask_weight": "decode_head.loss_mask.loss_weight",
    "dice_weight": "decode_head.loss_dice.loss_weight",
    "train_num_points": "decode_head.train_cfg.num_points",
    "oversample_ratio": "decode_head.train_cfg.oversample_ratio",
    "importance_sample_ratio": "decode_head.train_cfg.importance_sample_ratio",
}
MATCH_COSTS = {
    "match_class_weight": "ClassificationCost",
    "match_mask_weight": "CrossEntropyLossCost",
    "match_dice_weight": "DiceCost",
}


def fields_from_original(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of [`MTAClipConfig`] for an original run, with the authors' behavior where ours differs.

    Sizes are read from the tensors, the rest from the run's configuration in the checkpoint, or else it is as the
    authors have it. A checkpoint of other code is a `ValueError`.
    """
    try:
        fields = _fields_from_run(checkpoint)
        num_points = fields.get("encoder_num_points", MTAClipConfig.encoder_num_points)
        return fields | _fields_from_shapes(checkpoint, num_points)
    except KeyError as error:
        raise ValueError(
            f"{checkpoint.source} is no checkpoint of the authors' MTA-CLIP code: it has no tensor {error}, but "
            f"{sorted(checkpoint.tensors)[:3]}."
        ) from error


def _fields_from_run(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the run's configuration says; the defaults of [`MTAClipConfig`] are the authors' values."""
    run = checkpoint.run_config.get("model")
    fields = {name: look_up(run, path) for name, path in RUN_CONFIG_FIELDS.items()}
    costs = {
        str(cost.get("type")).removeprefix("mmdet."): cost.get("weight", 1.0)
        for cost in look_up(run, "decode_head.train_cfg.assigner.match_costs", [])
        if isinstance(cost, Mapping)
    }
    fields |= {name: costs.get(cost) for name, cost in MATCH_COSTS.items()}
    fields["no_object_weight"] = look_up(run, "decode_head.loss_cls.class_weight", [None])[-1]
    return {name: value for name, value in fields.items() if value is not None} | {
        "contrastive_negatives": CONTRASTIVE_NEGATIVES[look_up(run, "decode_head.query_loss_type", 2)],
        "supervise_initial_prediction": False,
        "mask_loss_normalizer": "class_weights",
        "ignored_pixels": "background",
    }


def _fields_from_shapes(checkpoint: Checkpoint, num_points: int) -> dict[str, Any]:
    tensors = checkpoint.tensors
    num_contexts, prompt_length, _ = tensors["contexts"].shape
    num_queries, hidden_size = tensors["decode_head.query_feat.weight"].shape
    encoder, decoder = "decode_head.pixel_decoder.encoder.layers.", "decode_head.transformer_decoder.layers."
    text_config = openai_text_config(tensors, "text_encoder.")
    heads = look_up(checkpoint.run_config, "model.text_encoder.transformer_heads")
    text_config.num_attention_heads = heads or text_config.num_attention_heads
    num_offsets = len(tensors[f"{encoder}0.self_attn.sampling_offsets.bias"])
    return {
        "num_prompt_contexts": num_contexts,
        "prompt_length": prompt_length,
        "text_config": text_config,
        "backbone_config": make_visual_config(openai_visual_fields(tensors, "backbone.")),
        "num_queries": num_queries,
        "hidden_size": hidden_size,
        "mask_feature_size": len(tensors["decode_head.pixel_decoder.mask_feature.weight"]),
        "encoder_layers": count_layers(tensors, encoder),
        "encoder_attention_heads": num_offsets // (2 * NUM_LEVELS * num_points),
        "encoder_feedforward_dim": len(tensors[f"{encoder}0.ffn.layers.0.0.weight"]),
        "decoder_layers": count_layers(tensors, decoder),
        "decoder_feedforward_dim": len(tensors[f"{decoder}0.ffn.layers.0.0.weight"]),
    }


def convert_original_state_dict(
    original: Mapping[str, Tensor], config: MTAClipConfig, source: str = "the authors' checkpoint"
) -> SourceWeights:
    """What a state dict of the authors' code gives to a model of a config; its class head is still for its classes."""
    weights = SourceWeights(source, covers=".+")
    weights.rename(original, ORIGINAL_NAMES | visual_names(original, "backbone."), ORIGINAL_LEFT_OUT)
    tensors = weights.tensors
    if QUERY_POSITIONS in tensors:
        (name,) = weights.origins.pop(QUERY_POSITIONS).names
        mask_positions, text_positions = tensors.pop(QUERY_POSITIONS).tensor_split([config.num_queries])
        if len(text_positions) % config.num_prompt_contexts:
            raise ValueError(
                f"{source}: the tensor {name} is not for {config.num_queries} mask queries and "
                f"{config.num_prompt_contexts} prompt contexts. Leave out options that change the architecture."
            )
        weights.add("model.decoder.mask_query_positions", mask_positions.clone(), name)
        text_positions = text_positions.unflatten(0, (config.num_prompt_contexts, -1)).clone()
        weights.add("model.decoder.text_query_positions", text_positions, name)
    if CLASS_TOKEN in tensors:
        # Their vision transformer adds the class token a second time, together with its position.
        positions = tensors[VIT_POSITIONS].clone()
        positions[0] += tensors[CLASS_TOKEN]
        weights.add(VIT_POSITIONS, positions, *weights.origins[CLASS_TOKEN].names)
    return weights


__all__ = ["Mask2FormerSource", "convert_original_state_dict", "fields_from_mask2former", "fields_from_original"]
