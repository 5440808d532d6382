# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Trained models with other classes."""

import logging
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from modeling_mtaclip.conversion import make_tokenizer
from tests.tiny import CLASS_NAMES, assert_near, text_fields, tiny_model


OLD, NEW = ["road", "tree", "sky"], ["sky", "boat", "road", "water"]
TOKENIZER = make_tokenizer([*OLD, *NEW, "none"])


@pytest.fixture
def folder(tmp_path):
    tiny_model(**text_fields(OLD, TOKENIZER)).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def test_weights_move_with_the_names(folder, caplog, monkeypatch):
    source = AutoModelForSemanticSegmentation.from_pretrained(folder)
    source.class_predictor.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = source.with_classes(NEW)
    assert "new: boat, water; not used: tree" in caplog.text
    assert list(model.config.id2label.values()) == NEW
    assert model.config.label2id == {name: index for index, name in enumerate(NEW)}
    assert model.class_predictor.weight.shape[0] == 5
    moved = [("class_predictor.weight", 0), ("class_predictor.bias", 0), ("model.decoder.text_query_positions", 1)]
    for name, dim in moved:
        here, there = (each.state_dict()[name].movedim(dim, 0) for each in (model, source))
        assert torch.equal(here[[0, 2, 4]], there[[2, 0, 3]])  # sky, road and "no object"
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert name in dict(moved) or torch.equal(model.state_dict()[name], tensor), name
    for name, weight in model.named_parameters():
        assert weight.requires_grad == source.get_parameter(name).requires_grad, name
    with torch.no_grad():
        texts, source_texts = model.encode_class_names(), source.encode_class_names()
    assert_near(texts[:, [0, 2, 4]], source_texts[:, [2, 0, 3]])


def test_the_copy_is_where_the_model_is(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.bfloat16).train()
    copied = model.with_classes(NEW)
    assert copied.training
    assert {weight.dtype for weight in copied.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in copied.model.text_model.text_encoder.modules())


@pytest.mark.parametrize("order", [[2, 0], [2, 0, 1]])
def test_known_names_need_no_tokenizer(order):
    source, images = tiny_model(), torch.randn(1, 3, 64, 64)
    names = [CLASS_NAMES[index] for index in order]
    model = source.with_classes(names)
    assert model.config.class_token_ids.keys() == {*names, "none"}
    assert torch.equal(model.class_predictor.weight, source.class_predictor.weight[[*order, 3]])
    if len(order) == 3:
        with torch.no_grad():
            assert_near(model(images).class_queries_logits[..., :3], source(images).class_queries_logits[..., order])


def test_without_text_branch_classes_need_no_tokens():
    model = tiny_model(text_branch=False, text_config=None, class_token_ids=None)
    changed = model.with_classes(["boat", "road"])
    assert torch.equal(changed.class_predictor.weight[1:], model.class_predictor.weight[[0, 3]])


@pytest.mark.parametrize("way", ["arguments", "config"])
@pytest.mark.parametrize(
    ("names", "message"), [(NEW, r"No token ids for .*\['boat', 'water'\]"), (OLD[::-1], "in another order, ")]
)
def test_other_names_while_loading_are_refused_with_the_way_to_go(folder, way, names, message):
    """The two ways in which scripts name their classes, as transformers' examples do."""
    options = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}

    with pytest.raises(ValueError, match=rf"{message}.*`model.with_classes\(names\)`"):  # noqa: PT012
        config = {"config": AutoConfig.from_pretrained(folder, **options)} if way == "config" else options
        AutoModelForSemanticSegmentation.from_pretrained(folder, ignore_mismatched_sizes=True, **config)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NEW, "There is no tokenizer for new names in"),
        ([], "at least one class name, got []"),
        ("road", "at least one class name, got 'road'"),
        ([f"class {index}" for index in range(256)], "`semantic_loss_ignore_index` (255) is also the id"),
    ],
)
def test_errors(folder, names, message):
    tokenizer = TOKENIZER if len(names) == 256 else None
    for path in folder.glob("tokenizer*"):
        path.unlink()
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.with_classes(names, tokenizer)
