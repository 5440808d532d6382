# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""New models from what people have: CLIP, backbones, Mask2Former and the checkpoints of the authors' code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..classes_mtaclip import move_classes, new_classes
from ..configuration_mtaclip import MTAClipConfig
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from .backbones import CLIP_BACKBONES, backbone_weights, image_statistics, make_backbone_config
from .checkpoints import Checkpoint, load_checkpoint
from .clip import ClipSource, check_tokenizer, is_clip, is_pretrained, load_clip, load_tokenizer
from .segmentation_models import (
    Mask2FormerSource,
    convert_original_state_dict,
    fields_from_mask2former,
    fields_from_original,
)
from .weights import LoadingReport, SourceWeights, load_weights


# All of OpenAI's CLIP models read the same tokens; their `.pt` files come without a tokenizer.
CLIP_TOKENIZER = "openai/clip-vit-base-patch16"

WeightsFor = Callable[[MTAClipForSemanticSegmentation], SourceWeights]


@dataclass
class ModelBundle:
    """What is saved together.

    Attributes:
        model ([`MTAClipForSemanticSegmentation`]): the model.
        image_processor ([`MTAClipImageProcessor`]): for images of the model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the class names.
        loading_report ([`LoadingReport`], *optional*): of a new model, where each weight comes from.
    """

    model: MTAClipForSemanticSegmentation
    image_processor: MTAClipImageProcessor
    tokenizer: PreTrainedTokenizerBase | None
    loading_report: LoadingReport | None = None

    def save_pretrained(self, folder: str | Path) -> None:
        """Saves everything in a folder, for `from_pretrained`."""
        for each in (self.model, self.image_processor, self.tokenizer):
            if each is not None:
                each.save_pretrained(folder)


def from_pretrained_parts(
    class_names: Sequence[str] | None = None,
    *,
    text_encoder: str | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    backbone: str | None = None,
    backbone_config: Mapping[str, Any] | None = None,
    backbone_weights: str | None = None,
    mask2former: str | None = None,
    original: str | Path | None = None,
    **fields: Any,
) -> ModelBundle:
    """Makes a model for the given classes from weights of other models; what no source gives is random.

    Sizes and configurations are read from the sources. `str(bundle.loading_report)` lists every tensor: loaded and
    from where, new, or left out of a source, and why.

    Args:
        class_names (`Sequence[str]`, *optional*): in the order of the label ids; by default the classes of `original`
            or `mask2former`.
        text_encoder (`str`, *optional*): CLIP, as a folder or Hub id of transformers or as OpenAI's `.pt` file.
        tokenizer (`str` or `PreTrainedTokenizerBase`, *optional*): CLIP's; by default the one beside `text_encoder`,
            for `.pt` files that of openai/clip-vit-base-patch16.
        backbone (`str`, *optional*): CLIP like `text_encoder`, whose visual half is used with its weights, or else a
            name as for `--backbone` of run_seg.py: a folder or Hub id of transformers has weights, other names have
            random ones. By default the backbone of `mask2former`, else transformers' ResNet-50.
        backbone_config (`Mapping[str, Any]`, *optional*): fields of the backbone's configuration.
        backbone_weights (`str`, *optional*): `"pretrained"` for the weights that the name stands for (timm's or
            transformers'), a file of weights, or an installed package that contains one.
        mask2former (`str`, *optional*): folder or Hub id of a Mask2Former of transformers, whatever it was trained
            for: pixel decoder, decoder, mask queries, classes of the same names, and the backbone unless another is
            given.
        original (`str` or `Path`, *optional*): checkpoint of the authors' code (`.pth`), which gives everything.
        fields: other fields of [`MTAClipConfig`]; `text_branch=False` leaves the text out.

    Returns:
        [`ModelBundle`]: the model in evaluation mode and in float32, with image processor, tokenizer and report.

    Raises:
        ValueError: a source that is not there, does not fit, or has tensors that nobody knows.
    """
    if isinstance(class_names, str):
        raise ValueError(f"`class_names` must be a list of names, got the name {class_names!r}.")
    if original is not None:
        options = {"text_encoder": text_encoder, "backbone": backbone, "backbone_config": backbone_config}
        options |= {"mask2former": mask2former, "backbone_weights": backbone_weights}
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise ValueError(f"`original` gives a whole model, but {given} would replace parts of it. Leave them out.")
        return build_original(load_checkpoint(original), class_names, tokenizer, **fields)
    if backbone is None and backbone_weights == "pretrained":
        raise ValueError("`backbone_weights='pretrained'` needs the name of a `backbone`, whose weights these are.")
    with_text = fields.get("text_branch", True)
    clip = load_clip(text_encoder) if text_encoder is not None and with_text else None
    decoder = Mask2FormerSource(mask2former) if mask2former is not None else None
    if not class_names and decoder is None:
        raise ValueError("`class_names` is missing: only `mask2former` and `original` bring class names along.")
    class_names = class_names or decoder.class_names()
    given, weights = _gather(clip, decoder, backbone, backbone_config, backbone_weights)
    if with_text or tokenizer is not None:
        tokenizer = _load_tokenizer(tokenizer, text_encoder)
    if clip is not None:
        check_tokenizer(tokenizer, clip.text_config, text_encoder)
    return _build(class_names, tokenizer, given | fields, weights)


def _gather(
    clip: ClipSource | None,
    decoder: Mask2FormerSource | None,
    backbone: str | None,
    backbone_config: Mapping[str, Any] | None,
    weights_of_backbone: str | None,
) -> tuple[dict[str, Any], list[WeightsFor]]:
    """Fields of [`MTAClipConfig`] that the sources determine, and what gives their weights to a model."""
    fields: dict[str, Any] = {}
    weights: list[WeightsFor] = []
    if clip is not None:
        fields["text_config"] = clip.text_encoder_config()
        weights.append(lambda model: clip.text_encoder_weights())
    if decoder is not None:
        fields |= fields_from_mask2former(decoder.model.config)
        weights.append(lambda model: _give_classes(decoder.weights(backbone is None), model, decoder.class_names()))
    visual, visual_name = None, weights_of_backbone if backbone in CLIP_BACKBONES else backbone
    if visual_name is not None and is_clip(visual_name):
        visual = clip if clip is not None and clip.source == visual_name else load_clip(visual_name)
        weights.append(lambda model: visual.backbone_weights())
    elif weights_of_backbone is not None or (backbone is not None and is_pretrained(backbone)):
        source = weights_of_backbone or "pretrained"
        weights.append(lambda model: backbone_weights(model.model.backbone, backbone, source))
    if backbone is not None:
        is_named = visual is None or backbone in CLIP_BACKBONES
        make_config = partial(make_backbone_config, backbone) if is_named else visual.backbone_config
        fields["backbone_config"] = make_config(backbone_config)
    return fields, weights


def _give_classes(
    weights: SourceWeights, model: MTAClipForSemanticSegmentation, source_names: Sequence[str]
) -> SourceWeights:
    names = model.config.class_names_with_no_object()[:-1]
    for name, note in move_classes(weights.tensors, model.state_dict(), names, source_names).items():
        weights.origins[name].note = note
    weights.new_classes = new_classes(names, source_names)
    return weights


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


def build_original(
    checkpoint: Checkpoint,
    class_names: Sequence[str] | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    **fields: Any,
) -> ModelBundle:
    """Makes a model from a checkpoint of the authors' code; the arguments are those of [`from_pretrained_parts`]."""
    source_names = _original_class_names(checkpoint, class_names)
    tokenizer = _load_tokenizer(tokenizer or CLIP_TOKENIZER, None)
    fields = fields_from_original(checkpoint) | fields
    check_tokenizer(tokenizer, fields["text_config"], checkpoint.source)

    def weights(model: MTAClipForSemanticSegmentation) -> SourceWeights:
        converted = convert_original_state_dict(checkpoint.tensors, model.config, checkpoint.source)
        return _give_classes(converted, model, source_names)

    bundle = _build(class_names or source_names, tokenizer, fields, [weights])
    # The authors normalize images by ImageNet's values, CLIP or not.
    bundle.image_processor.image_mean, bundle.image_processor.image_std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return bundle


def _original_class_names(checkpoint: Checkpoint, class_names: Sequence[str] | None) -> Sequence[str]:
    """The classes with which a checkpoint was trained: as many as it has weights for."""
    number = len(checkpoint.tensors.get("decode_head.cls_embed.bias", [0])) - 1
    for names in (checkpoint.class_names, class_names):
        if names is not None and len(names) == number:
            return names
    if number == 0:
        return []  # it is another kind of checkpoint, which is refused by what it lacks
    told = "does not name its classes" if checkpoint.class_names is None else f"names {len(checkpoint.class_names)}"
    raise ValueError(
        f"{checkpoint.source} has weights for {number} classes, but {told}: give the {number} `class_names` with "
        "which it was trained. A converted model can be given other classes."
    )


def _build(
    class_names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    fields: Mapping[str, Any],
    weights: Sequence[WeightsFor],
) -> ModelBundle:
    if tokenizer is None:
        config = MTAClipConfig(id2label=dict(enumerate(class_names)), **fields)
    else:
        config = MTAClipConfig.from_labels(list(class_names), tokenizer, **fields)
    model = MTAClipForSemanticSegmentation(config)
    report = load_weights(model, [weights_for(model) for weights_for in weights])
    mean, std = image_statistics(config.backbone_config)
    processor = MTAClipImageProcessor(image_mean=mean, image_std=std, ignore_index=config.semantic_loss_ignore_index)
    return ModelBundle(model.eval(), processor, tokenizer, report)


__all__ = ["CLIP_TOKENIZER", "ModelBundle", "build_original", "from_pretrained_parts"]
