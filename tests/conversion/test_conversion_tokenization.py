# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer and text encoder that a run makes without any download, and those it reads from CLIP folders."""

import json

import pytest
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from modeling_mtaclip.conversion import load_tokenizer, make_tokenizer, small_text_config


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_each_known_word_is_one_token_and_any_other_text_survives():
    tokenizer = make_tokenizer(["traffic_light", "Straße", "none"])
    assert [len(ids(tokenizer, text)) for text in ("traffic light", "Straße", "none", "light traffic")] == [2, 1, 1, 2]
    for text in ("traffic light", "zebra crossing", "道路", "straße 7 & äöü"):
        assert tokenizer.decode(ids(tokenizer, text)).replace(" ", "") == text.replace(" ", "")


def test_ids_end_with_the_special_tokens_like_clip():
    tokenizer = make_tokenizer(["road"])
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert tokenizer("road")["input_ids"] == [tokenizer.bos_token_id, *ids(tokenizer, "road"), tokenizer.eos_token_id]


def test_saved_tokenizer_loads_from_its_folder_alone_and_beside_a_model(tmp_path):
    tokenizer = make_tokenizer(["traffic light"])
    tokenizer.save_pretrained(tmp_path)
    for _ in range(2):
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert type(loaded).__name__ == "CLIPTokenizer"
        assert ids(loaded, "a traffic light!") == ids(tokenizer, "a traffic light!")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "mtaclip"}))


def test_small_text_encoder_fits_its_tokenizer():
    tokenizer = make_tokenizer(["road"])
    config = small_text_config(tokenizer, hidden_size=64, num_layers=1)
    assert config.vocab_size == len(tokenizer)
    assert CLIPTextModelWithProjection(config).text_projection.weight.shape == (64, 64)


def test_folders_without_a_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No tokenizer could be loaded from"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match="has no vocabulary for plain English words"):
        load_tokenizer(str(tmp_path))
