# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Builds a run's model, image processor and tokenizer: new ones for a data set, or a saved model's."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration_mtaclip import MTAClipConfig
from ..conversion import (
    ModelBundle,
    from_pretrained_parts,
    load_tokenizer,
    make_tokenizer,
    small_text_config,
)
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from .arguments import ModelArguments


logger = logging.get_logger(__name__)

# Options of a run that are fields of `MTAClipConfig` by the same name.
CONFIG_FIELDS = (
    "num_queries",
    "hidden_size",
    "mask_feature_size",
    "encoder_layers",
    "decoder_layers",
    "num_prompt_contexts",
    "prompt_length",
    "contrastive_negatives",
    "contrastive_temperature",
    "train_num_points",
    "text_branch",
)
DEFAULT_BACKBONE = "resnet50"


def build_model(
    arguments: ModelArguments, class_names: Sequence[str], size: dict[str, int] | None = None
) -> ModelBundle:
    """Builds a new model for the classes, with the weights that the arguments name.

    Args:
        arguments ([`ModelArguments`]): the architecture and sources of weights.
        class_names (`Sequence[str]`): in the order of the label ids.
        size (`dict[str, int]`, *optional*): `shortest_edge` and `longest_edge` to which the image processor resizes;
            `None`: images keep their size.

    Returns:
        [`ModelBundle`]: the model in training mode, and what belongs to it.

    Raises:
        ValueError: something is not available, or does not fit.
    """
    gives_sizes = arguments.mask2former is not None or arguments.original_checkpoint is not None
    parts = from_pretrained_parts(
        class_names,
        text_encoder=arguments.text_encoder,
        text_positions=arguments.text_positions,
        backbone=arguments.backbone or (None if gives_sizes else DEFAULT_BACKBONE),
        backbone_config=arguments.backbone_config or None,
        backbone_weights=arguments.backbone_weights,
        mask2former=arguments.mask2former,
        original=arguments.original_checkpoint,
        **_text_parts(arguments, class_names),
        **_config_fields(arguments, only_chosen=gives_sizes),
        **arguments.model_config,
    )
    processor = parts.image_processor
    processor.image_mean = arguments.image_mean or processor.image_mean
    processor.image_std = arguments.image_std or processor.image_std
    processor.do_resize = size is not None
    processor.size = size or processor.size
    parts.model.train()
    return parts


def _config_fields(arguments: ModelArguments, only_chosen: bool) -> dict[str, Any]:
    """Fields of the model's config; defaults must not override the sizes of a source."""
    defaults = {option.name: option.default for option in fields(arguments)}
    chosen = {name: getattr(arguments, name) for name in CONFIG_FIELDS}
    return {name: value for name, value in chosen.items() if not only_chosen or value != defaults[name]}


def _text_parts(arguments: ModelArguments, class_names: Sequence[str]) -> dict[str, Any]:
    if arguments.text_encoder is not None or arguments.original_checkpoint is not None or not arguments.text_branch:
        return {"tokenizer": arguments.tokenizer}
    logger.warning(
        "No `--text_encoder` was given: the run uses a small text encoder with random weights, to which class "
        "names mean nothing. Give a CLIP model, e.g. --text_encoder openai/clip-vit-base-patch16, for real use."
    )
    tokenizer = make_tokenizer([*class_names, MTAClipConfig.no_object_name])
    text_config = small_text_config(tokenizer, arguments.text_hidden_size, arguments.text_layers)
    return {"tokenizer": tokenizer, "text_config": text_config}


def load_model(
    name_or_path: str,
    class_names: Sequence[str],
    adapt: bool,
    size: dict[str, int] | None = None,
    **hub_options: Any,
) -> ModelBundle:
    """Loads a saved model with its image processor and tokenizer.

    Args:
        name_or_path (`str`): folder or Hub id.
        class_names (`Sequence[str]`): of the data set.
        adapt (`bool`): whether the model is to be trained, for which it is given these classes if it has others.
        size (`dict[str, int]`, *optional*): replaces the size to which the image processor resizes.
        hub_options: `revision`, `token` and `cache_dir` of a model on the Hub.

    Raises:
        ValueError: there is no model, it can't be trained, or it has other classes and is not to be adapted.
    """
    try:
        model = MTAClipForSemanticSegmentation.from_pretrained(name_or_path, **hub_options)
        processor = MTAClipImageProcessor.from_pretrained(name_or_path, **hub_options)
    except (OSError, TypeError) as error:
        raise ValueError(f"No MTA-CLIP model could be loaded from {name_or_path!r}: {error}") from error
    if size is not None:
        processor.do_resize, processor.size = True, size
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    tokenizer = _load_tokenizer_if_there(name_or_path)
    if names != list(class_names):
        if not adapt:
            raise ValueError(
                f"The model in {name_or_path!r} has the classes {names}, but the data set has {list(class_names)}: "
                "it can't be evaluated on them. Choose the data set it was trained on, or train it on this one."
            )
        model = model.with_classes(class_names, tokenizer)
    model.train(adapt)
    return ModelBundle(model, processor, tokenizer)


def _load_tokenizer_if_there(name_or_path: str) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(name_or_path)
    except ValueError:
        return None


__all__ = ["ModelBundle", "build_model", "load_model"]
