# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Asking in words: which of some phrases is each pixel of an image closest to?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import ImageInput

from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from .options import InferenceOptions
from .segmenter import Segmenter


@dataclass
class PhraseMap:
    """The answer of [`segment_phrases`].

    Attributes:
        phrases (`list[str]`): what was asked for.
        labels (`Tensor` of shape `(height, width)`): index of the best phrase at each pixel, int64.
        scores (`Tensor` of shape `(phrases, height, width)`): of each phrase at each pixel, float32: the sum over the
            masks of the phrase's probability times the mask's.
    """

    phrases: list[str]
    labels: Tensor
    scores: Tensor


def segment_phrases(
    image: ImageInput,
    phrases: Sequence[str],
    model: MTAClipForSemanticSegmentation,
    image_processor: MTAClipImageProcessor,
    tokenizer: Any,
    options: InferenceOptions | None = None,
) -> PhraseMap:
    """Scores phrases against the masks that a model predicts, at each pixel of an image.

    What this can and can't do is said at [`MTAClipForSemanticSegmentation.segment_phrases`]: it finds other words for
    what was trained, as far as the text encoder knows them, but it does not find objects that were never trained.

    Args:
        image (`ImageInput`): one image of any size.
        phrases (`Sequence[str]`): they compete with each other, and each pixel gets one.
        model ([`MTAClipForSemanticSegmentation`]): with its text encoder.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        tokenizer (`PreTrainedTokenizerBase` or `str`): the text encoder's, or a folder that has it.
        options ([`InferenceOptions`], *optional*): whole images without augmentation by default.

    Raises:
        ValueError: no phrases, phrases that the text encoder can't read, or a model without text encoder.
    """
    with torch.no_grad():
        texts = model.encode_phrases(phrases, tokenizer), model.encode_class_names()
    forward = partial(model.segment_phrases, texts[0], text_embeddings=texts[1])
    scores = Segmenter(model, image_processor, options, forward=forward).scores(image)
    return PhraseMap(list(phrases), scores.argmax(dim=0), scores)


__all__ = ["PhraseMap", "segment_phrases"]
