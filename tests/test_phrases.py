# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Phrases in place of classes."""

from functools import partial
from itertools import permutations

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.conversion import make_tokenizer
from modeling_mtaclip.inference import InferenceOptions, segment_phrases
from tests.tiny import text_fields, tiny_model


NAMES = ["road", "house", "swimming pool"]
PROCESSOR = MTAClipImageProcessor(do_resize=False)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([*NAMES, "none", "street"])


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = tiny_model(**text_fields(NAMES, tokenizer))
    torch.nn.init.normal_(model.model.text_model.contexts)
    return model


def test_class_names_have_their_own_embeddings(model, tokenizer, tmp_path):
    with torch.no_grad():
        expected = model.encode_class_names()
    names = ["none", "swimming_pool", "road"]
    tokenizer.save_pretrained(tmp_path)
    for source in (tokenizer, str(tmp_path)):
        torch.testing.assert_close(model.encode_phrases(names, source), expected[:, [3, 2, 0]])


def test_scores_follow_from_the_cosines(model, tokenizer):
    pixel_values = torch.randn(2, 3, 64, 96)
    embeddings = model.encode_phrases(["street", "house", "pool", "road"], tokenizer)
    actual = model.segment_phrases(embeddings, pixel_values, temperature=0.5)
    with torch.no_grad():
        outputs, base = model(pixel_values), model.model(pixel_values)
        queries = model.text_head.mask_projection(base.last_hidden_state[:, :7])
    cosines = F.cosine_similarity(queries[:, None, :, None], embeddings[None, :, None], dim=-1)
    torch.testing.assert_close(actual.mask_text_similarity, cosines)
    objectness = 1 - outputs.class_queries_logits.softmax(-1)[..., -1]
    probabilities = (cosines.max(dim=1).values / 0.5).softmax(-1)
    scores = torch.einsum("bq,bqp,bqhw->bphw", objectness, probabilities, outputs.masks_queries_logits.sigmoid())
    torch.testing.assert_close(actual.logits, scores)
    torch.testing.assert_close(actual.masks_queries_logits, outputs.masks_queries_logits)


@pytest.mark.parametrize("options", [None, InferenceOptions(mode="slide", window=(64, 64), stride=(32, 32))])
def test_best_phrase_at_each_pixel_of_an_image(model, tokenizer, options):
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    phrases = ["street", "house"]
    answer = segment_phrases(image, phrases, model, PROCESSOR, tokenizer, options)
    assert answer.phrases == phrases
    assert answer.scores.shape == (2, 70, 90)
    assert torch.equal(answer.labels, answer.scores.argmax(0))
    if options is None:
        ask = partial(model.segment_phrases, model.encode_phrases(phrases, tokenizer))
        outputs = ask(**PROCESSOR(image, return_tensors="pt"))
        (expected,) = PROCESSOR.post_process_semantic_segmentation(outputs, [(70, 90)], True)
        torch.testing.assert_close(answer.scores, expected.segmentation_scores)


def test_errors(model, tokenizer):
    with pytest.raises(ValueError, match="list of at least one phrase, got 'road'"):
        model.encode_phrases("road", tokenizer)
    with pytest.raises(ValueError, match=r"at least one phrase, got \[\]"):
        model.encode_phrases([], tokenizer)
    with pytest.raises(ValueError, match="has 30 tokens, but at most 14 fit"):
        model.encode_phrases(["road " * 30], tokenizer)
    with pytest.raises(ValueError, match="'' has no tokens"):
        model.encode_phrases([""], tokenizer)
    words = ["".join(letters) for letters in permutations("abcd")]
    with pytest.raises(ValueError, match="tokenizer that belongs to the text encoder"):
        model.encode_phrases(words, make_tokenizer(words))
    with pytest.raises(ValueError, match="no text encoder to read other names with"):
        model.for_inference().encode_phrases(["road"], tokenizer)
    with pytest.raises(ValueError, match="`temperature` must be positive, got 0"):
        model.segment_phrases(torch.zeros(3, 1, 24), torch.zeros(1, 3, 64, 64), temperature=0)
