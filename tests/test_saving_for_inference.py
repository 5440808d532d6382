# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that carry text embeddings in place of prompts and text encoder."""

import pytest
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoTokenizer

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.conversion import make_tokenizer
from modeling_mtaclip.training.run import load_model
from tests.tiny import CLASS_NAMES, assert_near, assert_same_weights, tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    tiny_model().save_pretrained(folder)
    MTAClipImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    make_tokenizer(CLASS_NAMES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deployed(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed")
    model = MTAClipForSemanticSegmentation.from_pretrained(trained).train()
    model.save_for_inference(folder)
    assert not model.for_inference().training
    # It stays as it was.
    assert model.training
    assert not model.config.stored_text_embeddings
    assert_same_weights(model, MTAClipForSemanticSegmentation.from_pretrained(trained))
    return folder


@torch.no_grad()
def assert_same_predictions(actual_model, expected_model):
    pixel_values = torch.randn(2, 3, 64, 96)
    assert_near(actual_model(pixel_values), expected_model(pixel_values))


def test_predictions_processor_and_tokenizer_are_the_same(trained, deployed):
    for kind in (AutoModelForSemanticSegmentation, AutoModel):
        assert_same_predictions(*(kind.from_pretrained(folder) for folder in (deployed, trained)))
    processors, tokenizers = (
        [kind.from_pretrained(folder) for folder in (deployed, trained)]
        for kind in (AutoImageProcessor, AutoTokenizer)
    )
    assert processors[0].to_dict() == processors[1].to_dict()
    assert tokenizers[0](CLASS_NAMES) == tokenizers[1](CLASS_NAMES)


def test_prompts_and_text_encoder_are_left_out(trained, deployed):
    tensors = []
    for folder in (trained, deployed):
        with safe_open(folder / "model.safetensors", "pt") as file:
            tensors.append(set(file.keys()))
    text_model = {f"model.text_model.{name}" for name in tiny_model().model.text_model.state_dict()}
    assert tensors[1] == tensors[0] - text_model | {"model.text_model.text_embeddings"}


@pytest.mark.parametrize("way", ["save_for_inference", "save_pretrained"])
def test_a_deployed_model_can_be_saved_again(deployed, tmp_path, way):
    model = MTAClipForSemanticSegmentation.from_pretrained(deployed)
    getattr(model, way)(tmp_path)
    assert_same_predictions(MTAClipForSemanticSegmentation.from_pretrained(tmp_path), model)


def test_without_text_branch(tmp_path):
    model = tiny_model(text_branch=False, text_config=None)
    model.save_for_inference(tmp_path)
    assert_same_predictions(MTAClipForSemanticSegmentation.from_pretrained(tmp_path), model)


def test_training_and_pushing_are_refused(deployed):
    model = MTAClipForSemanticSegmentation.from_pretrained(deployed)
    message = "saved for inference.*can't be trained. Train the model that it was saved from"
    with pytest.raises(ValueError, match=message):
        model.train()
    assert not any(module.training for module in model.modules())
    with pytest.raises(ValueError, match=message):
        load_model(str(deployed), CLASS_NAMES, adapt=True)
    unloaded = MTAClipForSemanticSegmentation(model.config)
    with pytest.raises(ValueError, match=message):
        unloaded(torch.zeros(1, 3, 64, 64))
    with torch.no_grad():
        assert unloaded.eval()(torch.zeros(1, 3, 64, 64)).logits.isnan().all()
    assert not load_model(str(deployed), CLASS_NAMES, adapt=False).model.training
    with pytest.raises(ValueError, match="upload that as a whole"):
        model.save_for_inference(deployed, push_to_hub=True)


@pytest.mark.parametrize("names", [["house", "road"], ["road", "barn"]])
def test_other_classes_are_refused(deployed, names):
    with pytest.raises(ValueError, match="was saved for inference"):
        MTAClipForSemanticSegmentation.from_pretrained(
            deployed, id2label=dict(enumerate(names)), ignore_mismatched_sizes=True
        )
    with pytest.raises(ValueError, match="no text encoder to read other names with"):
        MTAClipForSemanticSegmentation.from_pretrained(deployed).with_classes(names)
