# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""New models from what people have: CLIP, backbones, Mask2Former and the checkpoints of the authors' code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Mask2FormerForUniversalSegmentation, PreTrainedTokenizerBase

from ..classes_mtaclip import move_classes, new_classes
from ..configuration_mtaclip import MTAClipConfig
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from .account import Part, WeightAccount, load_parts
from .backbones import (
    CLIP_BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    backbone_weights_part,
    image_statistics,
    make_backbone_config,
    pretrained_backbone_part,
)
from .clip import (
    ClipWeights,
    clip_text_config,
    load_clip,
    load_complete,
    text_encoder_part,
)
from .clip_backbone import clip_backbone_config, clip_backbone_part, is_clip
from .mask2former import fields_from_mask2former, mask2former_part
from .mmengine import Checkpoint, load_checkpoint
from .original import config_from_original, convert_original_state_dict, describe_checkpoint
from .tokenization import load_tokenizer


# All of OpenAI's CLIP models read the same tokens; their `.pt` files come without a tokenizer.
CLIP_TOKENIZER = "openai/clip-vit-base-patch16"


@dataclass
class ModelParts:
    """What is saved together.

    Attributes:
        model ([`MTAClipForSemanticSegmentation`]): the model.
        image_processor ([`MTAClipImageProcessor`]): for images of the model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the class names.
        account ([`WeightAccount`], *optional*): of a new model, where each weight comes from.
    """

    model: MTAClipForSemanticSegmentation
    image_processor: MTAClipImageProcessor
    tokenizer: PreTrainedTokenizerBase | None
    account: WeightAccount | None = None

    def save_pretrained(self, folder: str | Path) -> None:
        """Saves everything in a folder, for `from_pretrained`."""
        for part in (self.model, self.image_processor, self.tokenizer):
            if part is not None:
                part.save_pretrained(folder)


def from_pretrained_parts(
    class_names: Sequence[str] | None = None,
    *,
    text_encoder: str | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    text_positions: int | None = None,
    backbone: str | None = None,
    backbone_config: Mapping[str, Any] | None = None,
    backbone_weights: str | None = None,
    mask2former: str | None = None,
    original: str | Path | None = None,
    **fields: Any,
) -> ModelParts:
    """Makes a model for the given classes from weights of other models; what no source gives is random.

    Sizes and configurations are read from the sources. `str(parts.account)` lists every tensor: loaded and from where,
    new, or left out of a source, and why; what can't be explained is an error.

    Args:
        class_names (`Sequence[str]`, *optional*): in the order of the label ids; by default the classes of `original`
            or `mask2former`.
        text_encoder (`str`, *optional*): CLIP, as a folder or Hub id of transformers or as OpenAI's `.pt` file.
        tokenizer (`str` or `PreTrainedTokenizerBase`, *optional*): CLIP's; by default the one beside `text_encoder`,
            for `.pt` files that of openai/clip-vit-base-patch16.
        text_positions (`int`, *optional*): cuts the text encoder's position table to the first so many.
        backbone (`str`, *optional*): CLIP like `text_encoder`, whose visual half is used with its weights, or else a
            name as for `--backbone` of run_seg.py, which by itself has random weights unless it is a folder. By
            default the one of `mask2former`, else transformers' ResNet-50.
        backbone_config (`Mapping[str, Any]`, *optional*): fields of the backbone's configuration.
        backbone_weights (`str`, *optional*): `"pretrained"` for the weights that the name stands for (timm's or
            transformers'), a file of weights, or an installed package that contains one.
        mask2former (`str`, *optional*): folder or Hub id of a Mask2Former of transformers: pixel decoder, decoder,
            mask queries, classes of the same names, and the backbone unless another is given.
        original (`str` or `Path`, *optional*): checkpoint of the authors' code (`.pth`), which gives everything.
        fields: other fields of [`MTAClipConfig`]; `text_branch=False` leaves the text out.

    Returns:
        [`ModelParts`]: the model in evaluation mode, with image processor, tokenizer and account.

    Raises:
        ValueError: a source that is not there, does not fit, or has tensors that nobody knows.
    """
    if original is not None:
        others = {"text_encoder": text_encoder, "backbone": backbone, "backbone_config": backbone_config}
        others |= {"mask2former": mask2former, "backbone_weights": backbone_weights, "text_positions": text_positions}
        _refuse_others(others)
        return _from_original(original, class_names, tokenizer, fields)
    with_text = fields.get("text_branch", True)
    sources = _Sources.load(text_encoder if with_text else None, backbone, mask2former, backbone_weights)
    class_names = class_names or sources.class_names()
    fields = sources.fields(backbone_config, text_positions) | fields
    if with_text or tokenizer is not None:
        tokenizer = _load_tokenizer(tokenizer, text_encoder)
    model = MTAClipForSemanticSegmentation(_make_config(class_names, tokenizer, fields))
    account = load_parts(model, sources.parts(model))
    mean, std = image_statistics(model.config.backbone_config)
    return _with_processor(model, tokenizer, account, mean, std)


@dataclass
class _Sources:
    """The models to take parts from, and their names; a CLIP model that gives both halves is read once."""

    text_encoder: str | None
    backbone: str | None
    mask2former: str | None
    backbone_weights: str | None
    clip_text: ClipWeights | None
    clip_visual: ClipWeights | None
    decoder: Mask2FormerForUniversalSegmentation | None

    @classmethod
    def load(
        cls, text_encoder: str | None, backbone: str | None, mask2former: str | None, backbone_weights: str | None
    ) -> "_Sources":
        clip_text = None if text_encoder is None else load_clip(text_encoder)
        visual = backbone_weights if backbone in CLIP_BACKBONES else backbone
        clip_visual = None
        if visual is not None and visual == text_encoder:
            clip_visual = clip_text
        elif visual is not None and is_clip(visual):
            clip_visual = load_clip(visual)
        decoder = None if mask2former is None else load_complete(Mask2FormerForUniversalSegmentation, mask2former)
        return cls(text_encoder, backbone, mask2former, backbone_weights, clip_text, clip_visual, decoder)

    def class_names(self) -> list[str]:
        if self.decoder is None:
            raise ValueError("`class_names` is missing: only `mask2former` and `original` bring class names along.")
        id2label = self.decoder.config.id2label
        return [id2label[index] for index in range(len(id2label))]

    def fields(self, backbone_config: Mapping[str, Any] | None, text_positions: int | None) -> dict[str, Any]:
        """Fields of [`MTAClipConfig`] that the sources determine."""
        fields = {} if self.decoder is None else fields_from_mask2former(self.decoder.config)
        if self.clip_visual is not None and self.backbone not in CLIP_BACKBONES:
            fields["backbone_config"] = clip_backbone_config(self.clip_visual, backbone_config)
        elif self.backbone is not None:
            fields["backbone_config"] = make_backbone_config(self.backbone, backbone_config)
        if self.clip_text is not None:
            fields["text_config"] = clip_text_config(self.clip_text, text_positions)
        return fields

    def parts(self, model: MTAClipForSemanticSegmentation) -> list[Part]:
        """The tensors of all sources, by the model's names."""
        parts = []
        if self.clip_text is not None:
            parts.append(text_encoder_part(self.clip_text, model.config.text_config.max_position_embeddings))
        if self.decoder is not None:
            parts.append(self._mask2former_part(model))
        if self.clip_visual is not None:
            parts.append(clip_backbone_part(self.clip_visual))
        elif self.backbone_weights not in (None, "pretrained"):
            parts.append(backbone_weights_part(model.model.backbone, self.backbone_weights))
        elif self.backbone is not None and (self.backbone_weights == "pretrained" or Path(self.backbone).is_dir()):
            parts.append(pretrained_backbone_part(model.model.backbone, self.backbone))
        return parts

    def _mask2former_part(self, model: MTAClipForSemanticSegmentation) -> Part:
        part = mask2former_part(self.mask2former, self.decoder.state_dict(), with_backbone=self.backbone is None)
        names = model.config.class_names_with_no_object()[:-1]
        part.notes |= move_classes(part.tensors, model.state_dict(), names, self.class_names())
        part.new_classes = new_classes(names, self.class_names())
        return part


def _load_tokenizer(
    tokenizer: str | PreTrainedTokenizerBase | None, text_encoder: str | None
) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        if text_encoder is None:
            raise ValueError(
                "Class names need a text encoder: give `text_encoder`, e.g. openai/clip-vit-base-patch16, or "
                "`text_branch=False` for a model without text."
            )
        tokenizer = CLIP_TOKENIZER if Path(text_encoder).is_file() else text_encoder
    return load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer


def _make_config(
    class_names: Sequence[str], tokenizer: PreTrainedTokenizerBase | None, fields: Mapping[str, Any]
) -> MTAClipConfig:
    if tokenizer is None:
        return MTAClipConfig(id2label=dict(enumerate(class_names)), **fields)
    return MTAClipConfig.from_labels(list(class_names), tokenizer, **fields)


def _with_processor(
    model: MTAClipForSemanticSegmentation,
    tokenizer: PreTrainedTokenizerBase | None,
    account: WeightAccount,
    mean: Sequence[float],
    std: Sequence[float],
) -> ModelParts:
    ignore_index = model.config.semantic_loss_ignore_index
    processor = MTAClipImageProcessor(image_mean=list(mean), image_std=list(std), ignore_index=ignore_index)
    return ModelParts(model.eval(), processor, tokenizer, account)


def _refuse_others(options: Mapping[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"`original` gives a whole model, but {given} would replace parts of it. Leave them out.")


def _from_original(
    path: str | Path,
    class_names: Sequence[str] | None,
    tokenizer: str | PreTrainedTokenizerBase | None,
    fields: Mapping[str, Any],
) -> ModelParts:
    checkpoint = load_checkpoint(path)
    source_names = _original_class_names(checkpoint, class_names)
    names = list(class_names or source_names)
    tokenizer = _load_tokenizer(tokenizer or CLIP_TOKENIZER, None)
    config = config_from_original(describe_checkpoint(checkpoint, names, tokenizer), **fields)
    model, account = build_original(checkpoint, config, source_names)
    return _with_processor(model, tokenizer, account, IMAGENET_MEAN, IMAGENET_STD)


def build_original(
    checkpoint: Checkpoint, config: MTAClipConfig, class_names: Sequence[str]
) -> tuple[MTAClipForSemanticSegmentation, WeightAccount]:
    """Makes a model from a checkpoint of the authors' code.

    Args:
        checkpoint ([`Checkpoint`]): of the authors' code.
        config ([`MTAClipConfig`]): of the model.
        class_names (`Sequence[str]`): of the checkpoint, in the order of its label ids.

    Raises:
        ValueError: a tensor that is missing, doesn't fit, or is unknown.
    """
    model = MTAClipForSemanticSegmentation(config)
    tensors, report = convert_original_state_dict(checkpoint.tensors, config)
    names = config.class_names_with_no_object()[:-1]
    notes = move_classes(tensors, model.state_dict(), names, class_names)
    part = Part(checkpoint.source, tensors, report, ".+", notes=notes, new_classes=new_classes(names, class_names))
    return model, load_parts(model, [part])


def _original_class_names(checkpoint: Checkpoint, class_names: Sequence[str] | None) -> Sequence[str]:
    names = checkpoint.class_names or class_names
    number = len(checkpoint.tensors.get("decode_head.cls_embed.bias", [])) - 1
    if names is None or (number >= 0 and len(names) != number):
        told = "does not name its classes" if checkpoint.class_names is None else f"names {len(names)} classes"
        raise ValueError(
            f"{checkpoint.source} has weights for {number} classes, but {told}: give the {number} `class_names` with "
            "which it was trained. A converted model can be given other classes."
        )
    return names


__all__ = ["CLIP_TOKENIZER", "ModelParts", "build_original", "from_pretrained_parts"]
