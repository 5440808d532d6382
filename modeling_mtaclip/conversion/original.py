# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' MTA-CLIP code (an mmsegmentation plugin): their names and ours, and what differs.

Every tensor of the original is accounted for: used, or left out for a stated reason; anything else is an error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig

from ..configuration_mtaclip import MTAClipConfig
from ..pixel_decoder_mtaclip import NUM_LEVELS
from .renaming import ConversionReport, rename_tensors, split_packed_projection


# Patterns of their names and ours; `{0}` is the pattern's first group.
RENAMES = {
    r"contexts": "model.text_model.contexts",
    r"text_encoder\.token_embedding\.weight": (
        "model.text_model.text_encoder.text_model.embeddings.token_embedding.weight"
    ),
    r"text_encoder\.positional_embedding": (
        "model.text_model.text_encoder.text_model.embeddings.position_embedding.weight"
    ),
    r"text_encoder\.transformer\.resblocks\.(\d+)\.attn\.(in_proj_weight|in_proj_bias|out_proj\.\w+)": (
        "model.text_model.text_encoder.text_model.encoder.layers.{0}.self_attn.{1}"
    ),
    r"text_encoder\.transformer\.resblocks\.(\d+)\.ln_(\d)\.(\w+)": (
        "model.text_model.text_encoder.text_model.encoder.layers.{0}.layer_norm{1}.{2}"
    ),
    r"text_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)": (
        "model.text_model.text_encoder.text_model.encoder.layers.{0}.mlp.fc1.{1}"
    ),
    r"text_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)": (
        "model.text_model.text_encoder.text_model.encoder.layers.{0}.mlp.fc2.{1}"
    ),
    r"text_encoder\.ln_final\.(\w+)": "model.text_model.text_encoder.text_model.final_layer_norm.{0}",
    r"text_encoder\.text_projection": "model.text_model.text_encoder.text_projection.weight",
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
    r"gamma": "the original never uses it; the one that it uses is decode_head.gamma",
    r"decode_head\.visual_emb_proj\..*": "the original computes with it, but never uses the result",
    r"decode_head\.lang_embed\..*": "the original never uses it",
    r"decode_head\.criterion\..*|decode_head\.loss_.*": "a constant of the losses, which the config holds",
    r"backbone\.attnpool\..*": "the original reads only shapes from it",
    r"backbone\..*": "the converted model has no backbone: it takes `feature_maps`",
}

CONTRASTIVE_NEGATIVES = ("all_positive", "separate", "mix")


def load_original_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a `.safetensors` file, or of a `.pth` file (mmengine's `{"state_dict": ...}`, or plain).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without a state dict, or that holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: expected weights as .safetensors or .pth.")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} can't be read safely: {error}. Keep its `state_dict` only, in a file of its own: "
            'torch.save(torch.load(path, weights_only=False)["state_dict"], new_path), if you trust its origin.'
        ) from error
    state_dict = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(
            f"{path} holds no state dict: expected names and tensors, or these under the key 'state_dict'."
        )
    return dict(state_dict)


def config_from_original(original: Mapping[str, Any]) -> MTAClipConfig:
    """Our config for the hyper-parameters of an original run, with the authors' behaviour where ours differs.

    The model has no backbone: it takes the `feature_maps` of the original's.

    Args:
        original (`Mapping[str, Any]`): hyper-parameters, class names and token ids (start token first, padded behind
            the end token, which has the largest id), as in the project's reference files.

    Raises:
        ValueError: a missing entry, or a choice that we don't know.
    """
    try:
        _check_architecture(original)
        return _config_from_original(original)
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


def _config_from_original(original: Mapping[str, Any]) -> MTAClipConfig:
    text, encoder, decoder, loss = (original[key] for key in ("text", "pixel_decoder", "decoder", "loss"))
    negatives = original["contrastive_negatives"]
    if isinstance(negatives, int):
        negatives = CONTRASTIVE_NEGATIVES[negatives]
    names = [*original["class_names"], original["no_object_name"]]
    end = max(max(ids) for ids in original["class_token_ids"])
    start = original["class_token_ids"][0][0]
    return MTAClipConfig(
        id2label=dict(enumerate(original["class_names"])),
        no_object_name=original["no_object_name"],
        class_token_ids={
            name: list(ids[1 : ids.index(end)]) for name, ids in zip(names, original["class_token_ids"], strict=True)
        },
        prompt_start_token_id=start,
        prompt_end_token_id=end,
        feature_channels=list(original["backbone"]["channels"]),
        text_config=CLIPTextConfig(
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
        num_prompt_contexts=original["num_contexts"],
        prompt_length=original["num_context_tokens"],
        contrastive_negatives=negatives,
        num_queries=original["num_queries"],
        hidden_size=original["hidden_size"],
        mask_feature_size=original["mask_feature_size"],
        encoder_layers=encoder["num_layers"],
        encoder_attention_heads=encoder["num_attention_heads"],
        encoder_feedforward_dim=encoder["feedforward_dim"],
        encoder_num_points=encoder["num_points"],
        encoder_norm_groups=encoder["group_norm_groups"],
        decoder_layers=decoder["num_layers"],
        decoder_attention_heads=decoder["num_attention_heads"],
        decoder_feedforward_dim=decoder["feedforward_dim"],
        class_weight=loss["class_weight"],
        no_object_weight=loss["no_object_weight"],
        contrastive_weight=loss["contrastive_weight"],
        contrastive_temperature=loss["temperature"],
        mask_weight=loss["mask_weight"],
        dice_weight=loss["dice_weight"],
        train_num_points=loss["num_points"],
        oversample_ratio=loss["oversample_ratio"],
        importance_sample_ratio=loss["importance_sample_ratio"],
        match_class_weight=loss["match_class"],
        match_mask_weight=loss["match_mask"],
        match_dice_weight=loss["match_dice"],
        supervise_initial_prediction=loss["supervises_initial_prediction"],
        mask_loss_normalizer="class_weights",
        ignored_pixels="background",
    )


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
    return rename_tensors(original, RENAMES, LEFT_OUT, lambda target, tensor: _reshape(target, tensor, config))


def _reshape(target: str, tensor: Tensor, config: MTAClipConfig) -> dict[str, Tensor]:
    if ".in_proj_" in target:
        return split_packed_projection(target, tensor)
    if target == "model.text_model.text_encoder.text_projection.weight":
        return {target: tensor.T.contiguous()}
    if target == "model.decoder.query_positions":
        mask_positions, text_positions = tensor.tensor_split([config.num_queries])
        return {
            "model.decoder.mask_query_positions": mask_positions.clone(),
            "model.decoder.text_query_positions": text_positions.unflatten(
                0, (config.num_prompt_contexts, -1)
            ).clone(),
        }
    return {target: tensor}


__all__ = ["config_from_original", "convert_original_state_dict", "load_original_weights"]
