# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
from transformers import AutoConfig, CLIPTextConfig, ResNetConfig, TimmBackboneConfig

from modeling_mtaclip import MTAClipConfig
from tests.tiny import CLASS_TOKEN_IDS, tiny_config


class WordTokenizer:
    """Gives every word an id of its own, as CLIP's tokenizer gives every frequent word one."""

    bos_token_id, eos_token_id = 100, 101

    def __init__(self):
        self.words = {}

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [self.words.setdefault(word, len(self.words)) for word in text.split()]}


def test_defaults_are_the_papers():
    config = MTAClipConfig()
    assert (config.num_queries, config.num_prompt_contexts, config.prompt_length) == (100, 3, 8)
    assert (config.encoder_layers, config.decoder_layers, config.hidden_size) == (6, 9, 256)
    assert (config.class_weight, config.mask_weight, config.dice_weight, config.contrastive_weight) == (2, 5, 5, 1)
    assert isinstance(config.backbone_config, ResNetConfig)
    assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert isinstance(config.text_config, CLIPTextConfig)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"text_branch": False, "text_config": None, "class_token_ids": None},
        {"backbone_config": None, "feature_channels": [4, 8, 16, 32]},
        {"backbone_config": TimmBackboneConfig(backbone="resnet18", out_indices=[1, 2, 3, 4])},
    ],
)
def test_round_trip(tmp_path, overrides):
    config = tiny_config(**overrides)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MTAClipConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.id2label == {0: "road", 1: "house", 2: "swimming pool"}


def test_from_labels():
    config = MTAClipConfig.from_labels(["traffic_light", "sky"], WordTokenizer(), no_object_name="no thing")
    assert config.id2label == {0: "traffic_light", 1: "sky"}
    assert config.label2id == {"traffic_light": 0, "sky": 1}
    assert config.class_token_ids == {"traffic_light": [0, 1], "sky": [2], "no thing": [3, 4]}
    assert (config.prompt_start_token_id, config.prompt_end_token_id) == (100, 101)
    assert config.class_names_with_no_object() == ["traffic_light", "sky", "no thing"]


def test_a_name_may_stand_for_several_classes():
    config = tiny_config(id2label={0: "road", 1: "house", 2: "road"})
    assert config.num_labels == 3
    assert config.label2id == {"road": 0, "house": 1}
    assert config.class_names_with_no_object() == ["road", "house", "road", "none"]
    config.id2label = {0: "house", 1: "road"}
    assert config.label2id == {"house": 0, "road": 1}
    assert config.num_labels == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_labels": 5}, "`num_labels` is 5, but `id2label` names 3"),
        ({"id2label": {0: "road", 2: "house"}}, "without gaps"),
        ({"id2label": {0: "boat"}}, r"No token ids for the class names \['boat'\]"),
        ({"class_token_ids": CLASS_TOKEN_IDS | {"road": [1] * 15}}, "'road' has 15 tokens, but at most 14 fit"),
        ({"class_token_ids": CLASS_TOKEN_IDS | {"road": [10]}}, "vocabulary has 10 entries"),
        ({"class_token_ids": CLASS_TOKEN_IDS | {"road": []}}, "'road' has no tokens"),
        ({"prompt_end_token_id": 49407}, "`prompt_end_token_id` is 49407, but the text encoder's vocabulary has 10"),
        ({"contrastive_negatives": "all"}, "`contrastive_negatives` must be one of"),
        ({"mask_loss_normalizer": "masks"}, "`mask_loss_normalizer` must be one of"),
        ({"ignored_pixels": "keep"}, "`ignored_pixels` must be one of"),
        ({"contrastive_temperature": 0}, "`contrastive_temperature` must be positive, got 0"),
        ({"num_queries": 0}, "`num_queries` must be positive, got 0"),
        ({"hidden_size": 40}, r"`hidden_size` \(40\) must be a multiple of `encoder_norm_groups` \(32\)"),
        ({"decoder_attention_heads": 5}, "must be a multiple of `decoder_attention_heads`"),
        ({"importance_sample_ratio": 1.5}, "between 0 and 1, got 1.5"),
        ({"class_mask_share": 1.5}, "between 0 and 1, got 1.5"),
        ({"class_mask_weight": 1.0, "text_branch": False}, "without text branch"),
        ({"oversample_ratio": 0.5}, "at least 1, got 0.5"),
        ({"mask_weight": -1}, "`mask_weight` must not be negative"),
        ({"semantic_loss_ignore_index": 1}, "also the id of the class 'house'"),
        ({"feature_channels": [1, 2, 3, 4]}, "model without backbone"),
        ({"backbone_config": None, "feature_channels": [1, 2]}, "channels of 4 feature maps"),
    ],
)
def test_errors(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


def test_errors_of_types():
    with pytest.raises(Exception, match="num_queries"):
        tiny_config(num_queries="many")
    for labels in ([], "road"):
        with pytest.raises(ValueError, match="`labels` must name at least one class"):
            MTAClipConfig.from_labels(labels, WordTokenizer())
