# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that carry text embeddings in place of prompts and text encoder."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoTokenizer, pipeline

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.conversion import make_tokenizer
from modeling_mtaclip.training import load_model
from tests.tiny import CLASS_NAMES, assert_near, assert_same_labels, label_map, tiny_model


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
    MTAClipForSemanticSegmentation.from_pretrained(trained).train().save_for_inference(folder)
    return folder


@torch.no_grad()
def assert_same_predictions(expected_model, actual_model):
    pixel_values = torch.randn(2, 3, 64, 96)
    assert_near(actual_model(pixel_values), expected_model(pixel_values))


def test_predictions_are_the_same(trained, deployed):
    expected = AutoModelForSemanticSegmentation.from_pretrained(trained)
    actual = AutoModelForSemanticSegmentation.from_pretrained(deployed)
    assert_same_predictions(expected, actual)
    base, pixel_values = AutoModel.from_pretrained(deployed), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_near(base(pixel_values).last_hidden_state, expected.model(pixel_values).last_hidden_state)


def test_prompts_and_text_encoder_are_left_out(trained, deployed):
    tensors = []
    for folder in (trained, deployed):
        with safe_open(folder / "model.safetensors", "pt") as file:
            tensors.append(set(file.keys()))
    assert tensors[1] - tensors[0] == {"model.text_model.text_embeddings"}
    assert tensors[0] - tensors[1] == {
        f"model.text_model.{name}" for name in tiny_model().model.text_model.state_dict()
    }


def test_saving_leaves_the_model_as_it_was(trained, tmp_path):
    model = MTAClipForSemanticSegmentation.from_pretrained(trained).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_for_inference(tmp_path)
    assert model.training
    assert not model.config.stored_text_embeddings
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_deployed_model_can_be_saved_again(deployed, tmp_path):
    model = MTAClipForSemanticSegmentation.from_pretrained(deployed)
    model.save_for_inference(tmp_path / "inference")
    model.save_pretrained(tmp_path / "plain")
    for name in ("inference", "plain"):
        assert_same_predictions(model, MTAClipForSemanticSegmentation.from_pretrained(tmp_path / name))


def test_without_text_branch(tmp_path):
    model = tiny_model(text_branch=False, text_config=None)
    model.save_for_inference(tmp_path)
    assert_same_predictions(model, MTAClipForSemanticSegmentation.from_pretrained(tmp_path))


def test_image_processor_and_tokenizer_go_along(trained, deployed):
    assert (
        AutoImageProcessor.from_pretrained(deployed).to_dict() == AutoImageProcessor.from_pretrained(trained).to_dict()
    )
    tokenizer = AutoTokenizer.from_pretrained(deployed)
    assert tokenizer(CLASS_NAMES) == AutoTokenizer.from_pretrained(trained)(CLASS_NAMES)


def test_pushing_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="upload that as a whole"):
        MTAClipForSemanticSegmentation.from_pretrained(trained).save_for_inference(tmp_path, push_to_hub=True)


def test_pipeline(trained, deployed):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 95, 3), dtype=np.uint8))
    answers = [pipeline("image-segmentation", model=str(folder))(image) for folder in (trained, deployed)]
    assert_same_labels(label_map(answers[1]), label_map(answers[0]))


def test_training_is_refused(deployed):
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


@pytest.mark.parametrize("names", [["house", "road"], ["road", "barn"]])
def test_other_classes_are_refused(deployed, names):
    with pytest.raises(ValueError, match="was saved for inference"):
        MTAClipForSemanticSegmentation.from_pretrained(
            deployed, id2label=dict(enumerate(names)), ignore_mismatched_sizes=True
        )
    with pytest.raises(ValueError, match="no text encoder to read other names with"):
        MTAClipForSemanticSegmentation.from_pretrained(deployed).with_classes(names)
