# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' MTA-CLIP code (an mmsegmentation plugin): their names and ours, and what differs.

Every tensor of the original is accounted for: used, or left out for a stated reason; anything else is an error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import CLIPTextConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..backbone_mtaclip import CLIPResNetBackboneConfig, CLIPViTBackboneConfig
from ..configuration_mtaclip import MTAClipConfig, tokenize_names
from ..pixel_decoder_mtaclip import NUM_LEVELS
from .clip import OPENAI_TEXT_RENAMES, count_layers, openai_text_config, reshape_openai_text
from .clip_backbone import (
    RESNET_RENAMES,
    VIT_RENAMES,
    describe_visual_half,
    is_vision_transformer,
    with_prefix,
)
from .mmengine import Checkpoint
from .renaming import ConversionReport, rename_tensors


# Patterns of their names and ours; `{0}` is the pattern's first group.
RENAMES = {
    r"contexts": "model.text_model.contexts",
    **{rf"text_encoder\.{name}": target for name, target in OPENAI_TEXT_RENAMES.items()},
    r"decode_head\.pixel_decoder\.input_convs\.(\d)\.conv\.(\w+)": "model.pixel_decoder.input_projections.{0}.0.{1}",
    r"decode_head\.pixel_decoder\.input_convs\.(\d)\.gn\.(\w+)": "model.pixel_decoder.input_projections.{0}.1.{1}",
    r"decode_head\.pixel_decoder\.level_encoding\.weight": "model.pixel_decoder.level_embed",
    r"decode_head\.pixel_decoder\.encoder\.layers\.(\d+)\.self_attn\.(\w+\.\w+)": (
        "model.pixel_decoder.layers.{0}.self_attn.{1}"
    ),
    r"decode_head\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.0\.(\w+)": (
        "model.pixel_decoder.layers.{0}.self_attn_layer_norm.{1}"
    ),
    r"decode_head\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.1\.(\w+)": (
        "model.pixel_decoder.layers.{0}.final_layer_norm.{1}"
    ),
    r"decode_head\.pixel_decoder\.encoder\.layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)": (
        "model.pixel_decoder.layers.{0}.fc1.{1}"
    ),
    r"decode_head\.pixel_decoder\.encoder\.layers\.(\d+)\.ffn\.layers\.1\.(\w+)": (
        "model.pixel_decoder.layers.{0}.fc2.{1}"
    ),
    r"decode_head\.pixel_decoder\.lateral_convs\.0\.conv\.(\w+)": "model.pixel_decoder.lateral_projection.0.{0}",
    r"decode_head\.pixel_decoder\.lateral_convs\.0\.gn\.(\w+)": "model.pixel_decoder.lateral_projection.1.{0}",
    r"decode_head\.pixel_decoder\.output_convs\.0\.conv\.(\w+)": "model.pixel_decoder.output_projection.0.{0}",
    r"decode_head\.pixel_decoder\.output_convs\.0\.gn\.(\w+)": "model.pixel_decoder.output_projection.1.{0}",
    r"decode_head\.pixel_decoder\.mask_feature\.(\w+)": "model.pixel_decoder.mask_projection.{0}",
    r"decode_head\.query_feat\.weight": "model.decoder.mask_queries",
    r"decode_head\.query_embed_decoder\.weight": "model.decoder.query_positions",
    r"decode_head\.query_project\.(\w+)": "model.decoder.text_projection.{0}",
    r"decode_head\.norm_project\.(\w+)": "model.decoder.query_layer_norm.{0}",
    r"decode_head\.level_embed\.weight": "model.decoder.level_embed",
    r"decode_head\.transformer_decoder\.layers\.(\d+)\.(cross|self)_attn\.attn\.(in_proj_weight|in_proj_bias|out_proj\.\w+)": (  # noqa: E501
        "model.decoder.layers.{0}.{1}_attn.{2}"
    ),
    r"decode_head\.transformer_decoder\.layers\.(\d+)\.norms\.0\.(\w+)": (
        "model.decoder.layers.{0}.cross_attn_layer_norm.{1}"
    ),
    r"decode_head\.transformer_decoder\.layers\.(\d+)\.norms\.1\.(\w+)": (
        "model.decoder.layers.{0}.self_attn_layer_norm.{1}"
    ),
    r"decode_head\.transformer_decoder\.layers\.(\d+)\.norms\.2\.(\w+)": (
        "model.decoder.layers.{0}.final_layer_norm.{1}"
    ),
    r"decode_head\.transformer_decoder\.layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)": "model.decoder.layers.{0}.fc1.{1}",
    r"decode_head\.transformer_decoder\.layers\.(\d+)\.ffn\.layers\.1\.(\w+)": "model.decoder.layers.{0}.fc2.{1}",
    r"decode_head\.transformer_decoder\.post_norm\.(\w+)": "model.decoder.layer_norm.{0}",
    r"decode_head\.mask_embed\.(\d)\.(\w+)": "model.decoder.mask_embedder.{0}.{1}",
    r"decode_head\.cls_embed\.(\w+)": "class_predictor.{0}",
    r"decode_head\.query_reproject\.(\w+)": "text_head.text_projection.{0}",
    r"decode_head\.norm_reproject\.(\w+)": "text_head.text_layer_norm.{0}",
    r"decode_head\.gamma": "text_head.gamma",
    r"decode_head\.mask_reproject\.(\w+)": "text_head.mask_projection.{0}",
}

LEFT_OUT = {
    r"data_preprocessor\..*": "mean and standard deviation of the images, which the image processor holds",
    r"gamma": "the original never uses it; the one that it uses is decode_head.gamma",
    r"decode_head\.visual_emb_proj\..*": "the original computes with it, but never uses the result",
    r"decode_head\.lang_embed\..*": "the original never uses it",
    r"decode_head\.criterion\..*|decode_head\.loss_.*": "a constant of the losses, which the config holds",
    r"backbone\.(attnpool\..*|ln_post\..*|proj)": "the original reads only shapes from it",
}

CLASS_TOKEN = "model.backbone.embeddings.class_embedding"
VIT_POSITIONS = "model.backbone.embeddings.position_embedding.weight"
# Their vision transformer has the feature pyramid inside.
PYRAMID_RENAMES = {
    r"backbone\.fpn1\.(\d)\.(\w+)": "model.feature_pyramid.levels.0.{0}.{1}",
    r"backbone\.fpn2\.(\d)\.(\w+)": "model.feature_pyramid.levels.1.{0}.{1}",
    r"backbone\.fpn3\.(\w+)": "model.feature_pyramid.levels.2.0.{0}",
    r"backbone\.fpn4\.0\.(\w+)": "model.feature_pyramid.levels.3.0.{0}",
}

RESNET, VISION_TRANSFORMER = "clip_modified_resnet", "clip_vision_transformer"
CONTRASTIVE_NEGATIVES = ("all_positive", "separate", "mix")


# Hyper-parameters that shapes of tensors don't tell: our name for them, where they stand in the `model` of a run's
# configuration, and the authors' value.
RUN_CONFIG_ENTRIES = {
    "text_heads": ("text_encoder.transformer_heads", None),
    "num_points": ("decode_head.pixel_decoder.encoder.layer_cfg.self_attn_cfg.num_points", 4),
    "decoder_heads": ("decode_head.transformer_decoder.layer_cfg.self_attn_cfg.num_heads", 8),
    "group_norm_groups": ("decode_head.pixel_decoder.norm_cfg.num_groups", 32),
    "query_loss_type": ("decode_head.query_loss_type", 2),
    "class_weights": ("decode_head.loss_cls.class_weight", [1.0, 0.1]),
    "class_weight": ("decode_head.loss_cls.loss_weight", 2.0),
    "contrastive_weight": ("decode_head.loss_queries_wt", 1.0),
    "mask_weight": ("decode_head.loss_mask.loss_weight", 5.0),
    "dice_weight": ("decode_head.loss_dice.loss_weight", 5.0),
    "train_num_points": ("decode_head.train_cfg.num_points", 12544),
    "oversample_ratio": ("decode_head.train_cfg.oversample_ratio", 3.0),
    "importance_sample_ratio": ("decode_head.train_cfg.importance_sample_ratio", 0.75),
    "match_costs": ("decode_head.train_cfg.assigner.match_costs", []),
}
MATCH_COSTS = {"match_class": "ClassificationCost", "match_mask": "CrossEntropyLossCost", "match_dice": "DiceCost"}
MATCH_WEIGHTS = {"match_class": 2.0, "match_mask": 5.0, "match_dice": 5.0}


def describe_checkpoint(
    checkpoint: Checkpoint, class_names: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """The hyper-parameters of an original run, for [`config_from_original`], as far as its checkpoint tells.

    Sizes are read from the tensors; what these don't tell, from the run's configuration in the checkpoint, or else it
    is the authors' value.

    Args:
        checkpoint ([`Checkpoint`]): of the authors' code.
        class_names (`Sequence[str]`): of the model that is wanted.
        tokenizer (`PreTrainedTokenizerBase`): CLIP's.

    Raises:
        ValueError: the checkpoint is not one of the authors' code.
    """
    tensors = checkpoint.tensors
    try:
        sizes = _describe_sizes(tensors, _run_entries(checkpoint))
    except KeyError as error:
        raise ValueError(
            f"{checkpoint.source} is no checkpoint of the authors' MTA-CLIP code: it has no tensor {error}, but "
            f"{sorted(tensors)[:3]}."
        ) from error
    return sizes | _describe_names(class_names, tokenizer)


def _run_entries(checkpoint: Checkpoint) -> dict[str, Any]:
    entries = {}
    for name, (path, default) in RUN_CONFIG_ENTRIES.items():
        value = checkpoint.run_config.get("model")
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        entries[name] = default if value is None else value
    return entries


def _describe_names(class_names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    names = [*class_names, MTAClipConfig.no_object_name]
    token_ids = tokenize_names(names, tokenizer)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        "class_names": list(class_names),
        "no_object_name": MTAClipConfig.no_object_name,
        "class_token_ids": [[start, *token_ids[name], end] for name in names],
    }


def _describe_sizes(tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> dict[str, Any]:
    num_contexts, context_length, _ = tensors["contexts"].shape
    num_queries, hidden_size = tensors["decode_head.query_feat.weight"].shape
    encoder, decoder = "decode_head.pixel_decoder.encoder.layers.", "decode_head.transformer_decoder.layers."
    text = openai_text_config(tensors, "text_encoder.")
    text.num_attention_heads = entries["text_heads"] or text.num_attention_heads
    offsets = len(tensors[f"{encoder}0.self_attn.sampling_offsets.bias"])
    return {
        "num_contexts": num_contexts,
        "num_context_tokens": context_length,
        "contrastive_negatives": entries["query_loss_type"],
        "text": text.to_dict(),
        "backbone": _describe_backbone(tensors),
        "num_queries": num_queries,
        "hidden_size": hidden_size,
        "mask_feature_size": len(tensors["decode_head.pixel_decoder.mask_feature.weight"]),
        "pixel_decoder": {
            "num_layers": count_layers(tensors, encoder),
            "num_attention_heads": offsets // (2 * NUM_LEVELS * entries["num_points"]),
            "num_levels": NUM_LEVELS,
            "num_points": entries["num_points"],
            "feedforward_dim": len(tensors[f"{encoder}0.ffn.layers.0.0.weight"]),
            "group_norm_groups": entries["group_norm_groups"],
            "hidden_size": hidden_size,
        },
        "decoder": {
            "num_layers": count_layers(tensors, decoder),
            "num_attention_heads": entries["decoder_heads"],
            "feedforward_dim": len(tensors[f"{decoder}0.ffn.layers.0.0.weight"]),
            "activation": "relu",
            "dropout": 0,
        },
        "loss": _describe_losses(entries),
    }


def _describe_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    kind = VISION_TRANSFORMER if is_vision_transformer(tensors, "backbone.") else RESNET
    return {"type": kind} | describe_visual_half(tensors, "backbone.")


def _describe_losses(entries: Mapping[str, Any]) -> dict[str, Any]:
    costs = {str(cost["type"]).removeprefix("mmdet."): cost.get("weight", 1.0) for cost in entries["match_costs"]}
    matching = {name: costs.get(cost, MATCH_WEIGHTS[name]) for name, cost in MATCH_COSTS.items()}
    copied = ("class_weight", "contrastive_weight", "mask_weight", "dice_weight")
    copied += ("oversample_ratio", "importance_sample_ratio")
    return (
        {name: entries[name] for name in copied}
        | matching
        | {
            "no_object_weight": entries["class_weights"][-1],
            "num_points": entries["train_num_points"],
            "temperature": 1.0,
            "supervises_initial_prediction": False,
        }
    )


def config_from_original(original: Mapping[str, Any], **overrides: Any) -> MTAClipConfig:
    """Our config for the hyper-parameters of an original run, with the authors' behaviour where ours differs.

    Args:
        original (`Mapping[str, Any]`): hyper-parameters, class names and token ids (start token first, padded behind
            the end token, which has the largest id), as in the project's reference files.
        overrides: fields of [`MTAClipConfig`].

    Raises:
        ValueError: a missing entry, or a choice that we don't know.
    """
    try:
        _check_architecture(original)
        return MTAClipConfig(**(_fields_from_original(original) | overrides))
    except KeyError as error:
        raise ValueError(f"The original's config has no entry {error}.") from error


def _check_architecture(original: Mapping[str, Any]) -> None:
    """What ours can't be configured to, because the authors never vary it."""
    encoder, decoder = original["pixel_decoder"], original["decoder"]
    for name, value, expected in (
        ("pixel_decoder.num_levels", encoder["num_levels"], NUM_LEVELS),
        ("pixel_decoder.hidden_size", encoder["hidden_size"], original["hidden_size"]),
        ("decoder.activation", decoder["activation"], "relu"),
        ("decoder.dropout", decoder["dropout"], 0),
    ):
        if value != expected:
            raise ValueError(f"The original's `{name}` is {value!r}; only {expected!r} can be converted.")


def _backbone_config(backbone: Mapping[str, Any]) -> PreTrainedConfig:
    if backbone["type"] == RESNET:
        return CLIPResNetBackboneConfig(width=backbone["width"], layers=list(backbone["layers"]))
    if backbone["type"] == VISION_TRANSFORMER:
        return CLIPViTBackboneConfig(**{name: value for name, value in backbone.items() if name != "type"})
    raise ValueError(
        f"The original's backbone is {backbone['type']!r}; {RESNET!r} and {VISION_TRANSFORMER!r} can be converted."
    )


def _fields_from_original(original: Mapping[str, Any]) -> dict[str, Any]:
    text, encoder, decoder, loss = (original[key] for key in ("text", "pixel_decoder", "decoder", "loss"))
    negatives = original["contrastive_negatives"]
    if isinstance(negatives, int):
        negatives = CONTRASTIVE_NEGATIVES[negatives]
    names = [*original["class_names"], original["no_object_name"]]
    end = max(max(ids) for ids in original["class_token_ids"])
    start = original["class_token_ids"][0][0]
    return {
        "id2label": dict(enumerate(original["class_names"])),
        "no_object_name": original["no_object_name"],
        "class_token_ids": {
            name: list(ids[1 : ids.index(end)]) for name, ids in zip(names, original["class_token_ids"], strict=True)
        },
        "prompt_start_token_id": start,
        "prompt_end_token_id": end,
        "backbone_config": _backbone_config(original["backbone"]),
        "text_config": CLIPTextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            num_hidden_layers=text["num_hidden_layers"],
            num_attention_heads=text["num_attention_heads"],
            intermediate_size=text["intermediate_size"],
            hidden_act=text["hidden_act"],
            layer_norm_eps=text["layer_norm_eps"],
            max_position_embeddings=text["max_position_embeddings"],
            projection_dim=text["projection_dim"],
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=0,
        ),
        "num_prompt_contexts": original["num_contexts"],
        "prompt_length": original["num_context_tokens"],
        "contrastive_negatives": negatives,
        "num_queries": original["num_queries"],
        "hidden_size": original["hidden_size"],
        "mask_feature_size": original["mask_feature_size"],
        "encoder_layers": encoder["num_layers"],
        "encoder_attention_heads": encoder["num_attention_heads"],
        "encoder_feedforward_dim": encoder["feedforward_dim"],
        "encoder_num_points": encoder["num_points"],
        "encoder_norm_groups": encoder["group_norm_groups"],
        "decoder_layers": decoder["num_layers"],
        "decoder_attention_heads": decoder["num_attention_heads"],
        "decoder_feedforward_dim": decoder["feedforward_dim"],
        "class_weight": loss["class_weight"],
        "no_object_weight": loss["no_object_weight"],
        "contrastive_weight": loss["contrastive_weight"],
        "contrastive_temperature": loss["temperature"],
        "mask_weight": loss["mask_weight"],
        "dice_weight": loss["dice_weight"],
        "train_num_points": loss["num_points"],
        "oversample_ratio": loss["oversample_ratio"],
        "importance_sample_ratio": loss["importance_sample_ratio"],
        "match_class_weight": loss["match_class"],
        "match_mask_weight": loss["match_mask"],
        "match_dice_weight": loss["match_dice"],
        "supervise_initial_prediction": loss["supervises_initial_prediction"],
        "mask_loss_normalizer": "class_weights",
        "ignored_pixels": "background",
    }


def convert_original_state_dict(
    original: Mapping[str, Tensor], config: MTAClipConfig
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Renames and reshapes the original's tensors.

    Args:
        original (`Mapping[str, Tensor]`): the original's state dict.
        config ([`MTAClipConfig`]): of the model that is to load the result.

    Returns:
        `tuple[dict[str, Tensor], ConversionReport]`: a state dict of [`MTAClipForSemanticSegmentation`] and the
        account.

    Raises:
        ValueError: a tensor that is neither used nor known to be unused.
    """
    renames = RENAMES | _backbone_renames(original)
    tensors, report = rename_tensors(
        original, renames, LEFT_OUT, lambda target, tensor: _reshape(target, tensor, config)
    )
    if CLASS_TOKEN in tensors:
        # Their vision transformer adds the class token a second time, together with its position.
        tensors[VIT_POSITIONS] = tensors[VIT_POSITIONS].clone()
        tensors[VIT_POSITIONS][0] += tensors[CLASS_TOKEN]
        report.used["backbone.class_embedding"].append(VIT_POSITIONS)
    return tensors, report


def _backbone_renames(original: Mapping[str, Tensor]) -> dict[str, str]:
    if is_vision_transformer(original, "backbone."):
        return with_prefix(VIT_RENAMES, r"backbone\.") | PYRAMID_RENAMES
    return with_prefix(RESNET_RENAMES, r"backbone\.")


def _reshape(target: str, tensor: Tensor, config: MTAClipConfig) -> dict[str, Tensor]:
    if target == "model.decoder.query_positions":
        mask_positions, text_positions = tensor.tensor_split([config.num_queries])
        return {
            "model.decoder.mask_query_positions": mask_positions.clone(),
            "model.decoder.text_query_positions": text_positions.unflatten(
                0, (config.num_prompt_contexts, -1)
            ).clone(),
        }
    return reshape_openai_text(target, tensor)


__all__ = ["config_from_original", "convert_original_state_dict"]
