# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Models small enough for tests, with every part that a real one has."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, ResNetConfig

from modeling_mtaclip import MTAClipConfig, MTAClipForSemanticSegmentation
from modeling_mtaclip.configuration_mtaclip import tokenize_names


CLASS_TOKEN_IDS = {"road": [1], "house": [2, 3], "swimming pool": [4, 5, 6], "none": [7]}
CLASS_NAMES = ["road", "house", "swimming pool"]


def tiny_config(**overrides: Any) -> MTAClipConfig:
    """A config with three classes, names of one to three tokens, and two layers of each kind."""
    fields = {
        "id2label": dict(enumerate(CLASS_NAMES)),
        "class_token_ids": CLASS_TOKEN_IDS,
        "prompt_start_token_id": 8,
        "prompt_end_token_id": 9,
        "text_config": CLIPTextConfig(
            vocab_size=10,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=20,
            projection_dim=24,
            bos_token_id=8,
            eos_token_id=9,
        ),
        "backbone_config": ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 12, 16, 20],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        "hidden_size": 32,
        "mask_feature_size": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_feedforward_dim": 48,
        "decoder_layers": 4,
        "decoder_attention_heads": 4,
        "decoder_feedforward_dim": 48,
        "num_queries": 7,
        "prompt_length": 4,
        "train_num_points": 48,
    }
    return MTAClipConfig(**(fields | overrides))


def text_fields(names: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """Fields of [`tiny_config`] for other classes, whose names a tokenizer reads."""
    text_config = tiny_config().text_config
    text_config.vocab_size = len(tokenizer)
    return {
        "id2label": dict(enumerate(names)),
        "class_token_ids": tokenize_names([*names, "none"], tokenizer),
        "prompt_start_token_id": tokenizer.bos_token_id,
        "prompt_end_token_id": tokenizer.eos_token_id,
        "text_config": text_config,
    }


def tiny_model(**overrides: Any) -> MTAClipForSemanticSegmentation:
    """A model for [`tiny_config`], in evaluation mode."""
    return MTAClipForSemanticSegmentation(tiny_config(**overrides)).eval()


@torch.no_grad()
def varied_model(seed: int = 1, **overrides: Any) -> MTAClipForSemanticSegmentation:
    """A tiny model that gives the parts of an image different classes, which fresh weights don't."""
    torch.manual_seed(seed)
    model = tiny_model(**overrides)
    pixel_values = torch.randn(1, 3, 12, 20).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    model.class_predictor.weight.mul_(20)
    model.class_predictor.bias.sub_(model(pixel_values).class_queries_logits.mean(dim=(0, 1)))
    return model


def assert_near(actual: Any, expected: Any) -> None:
    """Compares what two forward passes returned: tensors, or outputs field by field.

    Never bit for bit: convolutions and matrix products choose their order of summation by the alignment of memory.
    """
    if isinstance(expected, Mapping):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_near(actual[name], value)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    else:
        assert len(actual) == len(expected)
        for value, other in zip(actual, expected, strict=True):
            assert_near(value, other)


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    """Compares two models' tensors bit for bit, those that are not saved as well, and which of them are trained."""
    tensors, expected_tensors = (
        dict(each.named_parameters()) | dict(each.named_buffers()) for each in (actual, expected)
    )
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in expected_tensors.items():
        assert torch.equal(tensors[name].cpu(), tensor), name
        assert tensors[name].requires_grad == tensor.requires_grad, name


def label_map(segments: list[dict[str, Any]]) -> np.ndarray:
    """What a pipeline answered for an image, as the class of each pixel."""
    labels = np.full(segments[0]["mask"].size[::-1], -1)
    for segment in segments:
        labels[np.array(segment["mask"]) > 0] = CLASS_NAMES.index(segment["label"])
    return labels


def assert_same_labels(actual: Any, expected: Any) -> None:
    """Compares label maps; single pixels between two classes may be rounded to either."""
    assert actual.shape == expected.shape
    assert np.mean(np.asarray(actual) == np.asarray(expected)) > 0.999
