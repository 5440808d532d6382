# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Builds a run's model, image processor and tokenizer: new ones for a data set, or a saved model's."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration_mtaclip import MTAClipConfig, tokenize_names
from ..conversion.backbones import (
    image_statistics,
    load_backbone_weights,
    load_pretrained_backbone,
    make_backbone_config,
)
from ..conversion.tokenization import load_text_config, load_tokenizer, make_tokenizer, small_text_config
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
    "train_num_points",
    "text_branch",
)


@dataclass
class ModelParts:
    """What is saved together.

    Attributes:
        model ([`MTAClipForSemanticSegmentation`]): in training mode when it is to be trained.
        image_processor ([`MTAClipImageProcessor`]): for images of the model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the class names.
    """

    model: MTAClipForSemanticSegmentation
    image_processor: MTAClipImageProcessor
    tokenizer: PreTrainedTokenizerBase | None


def build_model(
    arguments: ModelArguments, class_names: Sequence[str], size: dict[str, int] | None = None
) -> ModelParts:
    """Builds a new model for the classes, with the weights that the arguments name.

    Args:
        arguments ([`ModelArguments`]): the architecture and sources of weights.
        class_names (`Sequence[str]`): in the order of the label ids.
        size (`dict[str, int]`, *optional*): `shortest_edge` and `longest_edge` to which the image processor resizes;
            `None`: images keep their size.

    Raises:
        ValueError: something is not available, or does not fit.
    """
    backbone_config = make_backbone_config(arguments.backbone, arguments.backbone_config)
    tokenizer, text_config = _make_text_parts(arguments, class_names)
    config = MTAClipConfig.from_labels(
        list(class_names),
        tokenizer,
        backbone_config=backbone_config,
        text_config=text_config,
        **{name: getattr(arguments, name) for name in CONFIG_FIELDS},
        **arguments.model_config,
    )
    model = MTAClipForSemanticSegmentation(config)
    _load_backbone(model, arguments)
    if arguments.text_encoder is not None and arguments.text_branch:
        _load_text_encoder(model, arguments.text_encoder)
    mean, std = image_statistics(model.config.backbone_config)
    processor = MTAClipImageProcessor(
        **_size_options(size),
        image_mean=arguments.image_mean or mean,
        image_std=arguments.image_std or std,
        ignore_index=config.semantic_loss_ignore_index,
    )
    return ModelParts(model.train(), processor, tokenizer)


def _size_options(size: dict[str, int] | None) -> dict[str, Any]:
    return {"do_resize": False} if size is None else {"do_resize": True, "size": size}


def _make_text_parts(arguments: ModelArguments, class_names: Sequence[str]) -> tuple[PreTrainedTokenizerBase, Any]:
    if arguments.text_encoder is not None:
        return load_tokenizer(arguments.text_encoder), load_text_config(arguments.text_encoder)
    if arguments.text_branch:
        logger.warning(
            "No `--text_encoder` was given: the run uses a small text encoder with random weights, to which class "
            "names mean nothing. Give a CLIP model, e.g. --text_encoder openai/clip-vit-base-patch16, for real use."
        )
    tokenizer = make_tokenizer([*class_names, MTAClipConfig.no_object_name])
    return tokenizer, small_text_config(tokenizer, arguments.text_hidden_size, arguments.text_layers)


def _load_backbone(model: MTAClipForSemanticSegmentation, arguments: ModelArguments) -> None:
    backbone = model.model.backbone
    if arguments.backbone_weights == "pretrained":
        load_pretrained_backbone(backbone, arguments.backbone)
    elif arguments.backbone_weights is not None:
        logger.warning("%s", load_backbone_weights(backbone, arguments.backbone_weights))
    elif Path(arguments.backbone).is_dir():
        load_pretrained_backbone(backbone, arguments.backbone)


def _load_text_encoder(model: MTAClipForSemanticSegmentation, name_or_path: str) -> None:
    text_model = model.model.text_model
    source = CLIPTextModelWithProjection.from_pretrained(name_or_path)
    text_model.text_encoder.load_state_dict(source.state_dict())
    text_model.freeze_text_encoder()


def load_model(
    name_or_path: str, class_names: Sequence[str], adapt: bool, size: dict[str, int] | None = None
) -> ModelParts:
    """Loads a saved model with its image processor and tokenizer.

    Args:
        name_or_path (`str`): folder or Hub id.
        class_names (`Sequence[str]`): of the data set.
        adapt (`bool`): whether the model is to be trained, for which it is given these classes if it has others.
        size (`dict[str, int]`, *optional*): replaces the size to which the image processor resizes.

    Raises:
        ValueError: there is no model, it can't be trained, or it has other classes and is not to be adapted.
    """
    try:
        model = MTAClipForSemanticSegmentation.from_pretrained(name_or_path)
        processor = MTAClipImageProcessor.from_pretrained(name_or_path)
    except (OSError, TypeError) as error:
        raise ValueError(f"No MTA-CLIP model could be loaded from {name_or_path!r}: {error}") from error
    model.train(adapt)
    if size is not None:
        processor.do_resize, processor.size = True, size
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if names == list(class_names):
        tokenizer = _load_tokenizer_if_there(name_or_path)
    elif adapt:
        tokenizer = load_tokenizer(name_or_path)
        model = with_classes(model, class_names, tokenizer).train()
    else:
        raise ValueError(
            f"The model in {name_or_path!r} has the classes {names}, but the data set has {list(class_names)}: it "
            "can't be evaluated on them. Choose the data set it was trained on, or train it on this one."
        )
    return ModelParts(model, processor, tokenizer)


def _load_tokenizer_if_there(name_or_path: str) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(name_or_path)
    except ValueError:
        return None


@torch.no_grad()
def with_classes(
    model: MTAClipForSemanticSegmentation, class_names: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> MTAClipForSemanticSegmentation:
    """Copies a model to other classes: what belongs to a class moves with its name, new classes start anew.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): stays as it is.
        class_names (`Sequence[str]`): the new classes.
        tokenizer (`PreTrainedTokenizerBase`): of the model's text encoder.
    """
    config = deepcopy(model.config)
    config.id2label = dict(enumerate(class_names))
    config.class_token_ids = tokenize_names([*class_names, config.no_object_name], tokenizer)
    adapted = MTAClipForSemanticSegmentation(config)
    old_names, new_names = (each.class_names_with_no_object() for each in (model.config, config))
    kept = [(new, old_names.index(name)) for new, name in enumerate(new_names) if name in old_names]
    new_rows, old_rows = (list(rows) for rows in zip(*kept, strict=True))
    weights = model.state_dict()
    per_class = {"class_predictor.weight": 0, "class_predictor.bias": 0, "model.decoder.text_query_positions": 1}
    for name, dim in per_class.items():
        if name in weights:
            merged = adapted.state_dict()[name].movedim(dim, 0)
            merged[new_rows] = weights[name].movedim(dim, 0)[old_rows]
            weights[name] = merged.movedim(0, dim)
    adapted.load_state_dict(weights)
    new = [name for name in class_names if name not in old_names]
    logger.warning("The model was given other classes; these start with new weights: %s.", new or "none")
    return adapted


__all__ = ["ModelParts", "build_model", "load_model", "with_classes"]
