# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' own test suites on our classes.

They come with transformers' source distribution of the installed version:
`pip download --no-deps --no-binary transformers transformers==VERSION`. Unpack it and name the folder in the environment
variable `TRANSFORMERS_SOURCE`.
"""

import unittest

import pytest
import torch

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipModel
from tests.tiny import tiny_config
from tests.transformers_suites import SOURCE, load_suite


if SOURCE is None:
    pytest.skip(
        "TRANSFORMERS_SOURCE does not name the unpacked source distribution of transformers", allow_module_level=True
    )

modeling = load_suite("test_modeling_common")


class MTAClipModelTester:
    """What the suites ask of a model: a tiny config, inputs for it, and its sizes."""

    is_training = True
    batch_size = 2
    image_size = (64, 96)
    seq_length = 19  # Queries of the decoder: masks, and three contexts of four names.
    hidden_size = 32
    num_attention_heads = 4
    num_hidden_layers = 4

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tiny_config()

    def prepare_config_and_inputs_for_common(self):
        images = modeling.floats_tensor([self.batch_size, 3, *self.image_size])
        return self.get_config(), {"pixel_values": images}


class MTAClipModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MTAClipModel, MTAClipForSemanticSegmentation)
    is_encoder_decoder = False
    test_resize_embeddings = False
    test_missing_keys = False

    def setUp(self):
        self.model_tester = MTAClipModelTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(inputs_dict)
        if return_labels and model_class is MTAClipForSemanticSegmentation:
            inputs["labels"] = torch.zeros(
                self.model_tester.batch_size, *self.model_tester.image_size, dtype=torch.long
            )
        return inputs
