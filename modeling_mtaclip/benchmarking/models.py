# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What runs with models: training step, inference, text encoding and post-processing, ours and the peer's.

Each workload makes models and inputs from the settings and returns the function to measure. Both models have the same
backbone, pixel decoder and decoder; ours has the text branch on top.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from ..configuration_mtaclip import MTAClipConfig
from ..conversion.mask2former import config_from_mask2former
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import (
    MTAClipForSemanticSegmentation,
    MTAClipForSemanticSegmentationOutput,
    MTAClipModel,
)
from .settings import Settings


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL_BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
SMALL_HEAD = {
    "hidden_dim": 32,
    "feature_size": 32,
    "mask_feature_size": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "train_num_points": 64,
}
SMALL_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# Classes in an image, which lie in a grid of so many rows and columns.
CLASSES_PER_IMAGE, GRID = 8, 4
# How many of ADE20K's names, "none" included, have one, two and three tokens.
NAMES_OF_LENGTH = {1: 121, 2: 27, 3: 3}
POSTPROCESSED_SIZE, SMALL_POSTPROCESSED_SIZE = (1024, 2048), (64, 128)
MASK_STRIDE = 4


def peer_config(settings: Settings) -> Mask2FormerConfig:
    """Mask2Former with a ResNet-50."""
    backbone = ResNetConfig(out_features=STAGES, **(SMALL_BACKBONE if settings.small else {}))
    return Mask2FormerConfig(
        backbone_config=backbone,
        num_queries=settings.queries,
        num_labels=settings.classes,
        **(SMALL_HEAD if settings.small else {}),
    )


def our_config(settings: Settings) -> MTAClipConfig:
    """The same with the text branch, on random class names."""
    text = CLIPTextConfig(**(SMALL_TEXT if settings.small else {}))
    generator = random.Random(settings.seed)
    names = {f"class {index}": _random_name(generator, text.vocab_size) for index in range(settings.classes)}
    return config_from_mask2former(
        peer_config(settings),
        text_branch=True,
        text_config=text,
        id2label=dict(enumerate(names)),
        class_token_ids=names | {"none": _random_name(generator, text.vocab_size)},
        num_prompt_contexts=settings.contexts,
        semantic_loss_ignore_index=max(255, settings.classes),
    )


def _random_name(generator: random.Random, vocabulary: int) -> list[int]:
    (length,) = generator.choices([*NAMES_OF_LENGTH], weights=NAMES_OF_LENGTH.values())
    return [generator.randrange(vocabulary - 2) for _ in range(length)]


def our_model(settings: Settings) -> MTAClipForSemanticSegmentation:
    """Our model with random weights."""
    settings.prepare()
    return MTAClipForSemanticSegmentation(our_config(settings)).to(settings.device)


def peer_model(settings: Settings) -> Mask2FormerForUniversalSegmentation:
    """The peer with random weights."""
    settings.prepare()
    return Mask2FormerForUniversalSegmentation(peer_config(settings)).to(settings.device)


def random_images(settings: Settings) -> Tensor:
    """`(B, 3, size, size)`."""
    settings.prepare()
    return torch.randn(settings.batch, 3, settings.size, settings.size, device=settings.device)


def random_labels(settings: Settings) -> Tensor:
    """Label maps `(B, size, size)` with rectangles of up to eight classes."""
    settings.prepare()
    shape = (settings.batch, CLASSES_PER_IMAGE)
    classes = torch.rand(settings.batch, settings.classes).argsort(dim=1)[:, :CLASSES_PER_IMAGE]
    cells = torch.randint(min(shape[1], settings.classes), (settings.batch, GRID**2))
    grid = classes.gather(1, cells).view(-1, 1, GRID, GRID).float()
    labels = F.interpolate(grid, size=(settings.size, settings.size), mode="nearest")
    return labels[:, 0].long().to(settings.device)


def our_training(settings: Settings) -> Callable[[], Any]:
    """Forward and backward pass of our model, with the label maps."""
    model, images, labels = our_model(settings).train(), random_images(settings), random_labels(settings)

    def forward() -> Tensor:
        return model(pixel_values=images, labels=labels, output_logits=False).loss

    return _training_step(model, forward, settings)


def peer_training(settings: Settings) -> Callable[[], Any]:
    """Forward and backward pass of the peer, with the masks that its image processor makes of the same label maps."""
    model, images = peer_model(settings).train(), random_images(settings)
    classes = [labels.unique() for labels in random_labels(settings)]
    masks = [
        (labels == present[:, None, None]).float()
        for labels, present in zip(random_labels(settings), classes, strict=True)
    ]

    def forward() -> Tensor:
        return model(pixel_values=images, mask_labels=masks, class_labels=classes).loss

    return _training_step(model, forward, settings)


def _training_step(model: nn.Module, forward: Callable[[], Tensor], settings: Settings) -> Callable[[], Any]:
    def step() -> None:
        with settings.autocast():
            loss = forward()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def our_inference(settings: Settings) -> Callable[[], Any]:
    """Forward pass of our model with its text embeddings as constants."""
    return _inference(our_model(settings).for_inference(), settings)


def peer_inference(settings: Settings) -> Callable[[], Any]:
    """Forward pass of the peer."""
    return _inference(peer_model(settings), settings)


def _inference(model: nn.Module, settings: Settings) -> Callable[[], Any]:
    model.eval()
    images = random_images(settings)

    def infer() -> Any:
        with torch.inference_mode(), settings.autocast():
            return model(pixel_values=images)

    return infer


def our_text_encoding(settings: Settings) -> Callable[[], Any]:
    """Encodes all names in all contexts behind shared prefixes, and goes back to the contexts."""
    model = _text_model(settings)
    return _training_step(model, lambda: model().square().sum(), settings)


def peer_text_encoding(settings: Settings) -> Callable[[], Any]:
    """The same through CLIP's text encoder as one padded batch of whole prompts."""
    model = _text_model(settings)
    return _training_step(model, lambda: padded_text_embeddings(model).square().sum(), settings)


def _text_model(settings: Settings) -> nn.Module:
    settings.prepare()
    return MTAClipModel(our_config(settings)).text_model.to(settings.device).train()


def padded_text_embeddings(model: nn.Module) -> Tensor:
    """Embeddings `(C, K + 1, E)` from a padded batch with a sequence for each name and context."""
    config, clip = model.config, model.text_encoder.text_model
    device = model.contexts.device
    names = [
        [*config.class_token_ids[name], config.prompt_end_token_id] for name in config.class_names_with_no_object()
    ]
    lengths = torch.tensor([len(name) for name in names], device=device)
    ids = torch.full((len(names), int(lengths.max())), config.prompt_end_token_id, device=device)
    for row, name in zip(ids, names, strict=True):
        row[: len(name)] = torch.tensor(name, device=device)
    embed = clip.embeddings.token_embedding
    start = embed(torch.tensor(config.prompt_start_token_id, device=device))
    shape = (len(model.contexts), len(names))
    prompts = torch.cat(
        (
            start.expand(*shape, 1, -1),
            model.contexts[:, None].expand(*shape, -1, -1),
            embed(ids).expand(*shape, -1, -1),
        ),
        dim=2,
    ).flatten(0, 1)
    states = clip.embeddings(inputs_embeds=prompts)
    states = clip.encoder(inputs_embeds=states, attention_mask=None, is_causal=True).last_hidden_state
    ends = (lengths + config.prompt_length).repeat(shape[0])
    ended = clip.final_layer_norm(states)[torch.arange(len(ends), device=device), ends]
    return model.text_encoder.text_projection(ended).unflatten(0, shape)


def our_postprocessing(settings: Settings) -> Callable[[], Any]:
    """Label map of one image by our image processor."""
    outputs, size = MTAClipForSemanticSegmentationOutput(**_random_outputs(settings)), _target_size(settings)
    processor = MTAClipImageProcessor(do_resize=False)
    return lambda: processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]


def peer_postprocessing(settings: Settings) -> Callable[[], Any]:
    """Label map of the same image by the peer's image processor."""
    outputs, size = Mask2FormerForUniversalSegmentationOutput(**_random_outputs(settings)), _target_size(settings)
    processor = Mask2FormerImageProcessor()
    return lambda: processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]


def exact_postprocessing(settings: Settings) -> Callable[[], Any]:
    """Label map of the same image by the formula, written down plainly."""
    outputs, size = _random_outputs(settings), _target_size(settings)
    classes, masks = outputs["class_queries_logits"], outputs["masks_queries_logits"]

    def postprocess() -> Tensor:
        upsampled = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        probabilities = classes.softmax(dim=-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", probabilities, upsampled.sigmoid())[0].argmax(dim=0)

    return postprocess


def _target_size(settings: Settings) -> tuple[int, int]:
    return SMALL_POSTPROCESSED_SIZE if settings.small else POSTPROCESSED_SIZE


def _random_outputs(settings: Settings) -> dict[str, Tensor]:
    """What the model returns for one image: smooth masks, and confident classes."""
    settings.prepare()
    height, width = (length // MASK_STRIDE for length in _target_size(settings))
    coarse = torch.randn(1, settings.queries, height // 8, width // 8, device=settings.device) * 8
    masks = F.interpolate(coarse, size=(height, width), mode="bicubic")
    classes = torch.randn(1, settings.queries, settings.classes + 1, device=settings.device) * 3
    return {"class_queries_logits": classes, "masks_queries_logits": masks}


__all__ = [
    "exact_postprocessing",
    "our_config",
    "our_inference",
    "our_model",
    "our_postprocessing",
    "our_text_encoding",
    "our_training",
    "padded_text_embeddings",
    "peer_config",
    "peer_inference",
    "peer_model",
    "peer_postprocessing",
    "peer_text_encoding",
    "peer_training",
    "random_images",
    "random_labels",
]
