# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' own test suites on our classes.

They come with transformers' source distribution of the installed version, from `pip download --no-deps --no-binary
transformers transformers==VERSION`. Unpack it and name the folder in the environment variable `TRANSFORMERS_SOURCE`.
"""

import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import pipeline
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.models.clip.modeling_clip import CLIPAttention

from modeling_mtaclip import (
    MTAClipForSemanticSegmentation,
    MTAClipImageProcessor,
    MTAClipImageProcessorPil,
    MTAClipModel,
)
from modeling_mtaclip.data.scenes import make_scene
from modeling_mtaclip.modeling_mtaclip import MTAClipAttention, MTAClipForSemanticSegmentationOutput
from tests.tiny import CLASS_NAMES, tiny_config, tiny_model
from tests.transformers_suites import SOURCE, load_pipeline_suite, load_suite


if SOURCE is None:
    pytest.skip(
        "TRANSFORMERS_SOURCE does not name the unpacked source distribution of transformers", allow_module_level=True
    )


class SegmentationPipelineTests:
    """The pipeline made of our model and image processor, and what it answers."""

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **kwargs):
        segment = pipeline("image-segmentation", model=model, image_processor=image_processor, dtype=dtype)
        return segment, [make_scene(index)[0] for index in range(3)]

    def run_pipeline_test(self, segment, examples):
        for image, regions in zip(examples, segment(examples, batch_size=2), strict=True):
            pixels = sum(np.asarray(region["mask"]).astype(bool).astype(int) for region in regions)
            assert {region["label"] for region in regions} <= set(CLASS_NAMES)
            # Each pixel has one class.
            assert np.array_equal(pixels, np.ones(image.size[::-1]))


WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None

import numpy as np
from transformers import AutoImageProcessor
import modeling_mtaclip

folder = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
image = np.load(f"{folder}/image.npy")
np.save(f"{folder}/pixel_values.npy", processor(image, return_tensors="np").pixel_values)
"""

modeling = load_suite("test_modeling_common")
image_processing = load_suite("test_image_processing_common")
pipelines = load_pipeline_suite(tiny_model(), MTAClipImageProcessor, SegmentationPipelineTests)


class MTAClipModelTester:
    """What the suites ask of a model: a tiny config, inputs for it, and its sizes."""

    is_training = True
    batch_size = 2
    image_size = (64, 96)
    seq_length = 19  # Queries of the decoder: seven for masks, and four names in three contexts.
    hidden_size = 32
    num_attention_heads = 4
    num_hidden_layers = 2

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tiny_config(decoder_layers=self.num_hidden_layers)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": modeling.floats_tensor([self.batch_size, 3, *self.image_size])}


class MTAClipModelTest(modeling.ModelTesterMixin, pipelines.PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (MTAClipModel, MTAClipForSemanticSegmentation)
    pipeline_model_mapping = {"image-segmentation": MTAClipForSemanticSegmentation}  # noqa: RUF012
    is_encoder_decoder = False
    _is_composite = True
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = MTAClipModelTester(self)
        # By these names the suites know which models have no loss.
        names = mock.patch.dict(MODEL_MAPPING_NAMES, {"mtaclip": "MTAClipModel"})
        names.start()
        self.addCleanup(names.stop)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(inputs_dict)
        if return_labels and model_class is MTAClipForSemanticSegmentation:
            size = (self.model_tester.batch_size, *self.model_tester.image_size)
            inputs["labels"] = torch.zeros(size, dtype=torch.long)
            # The points of the losses are random: two calls with the same seeds see the same ones.
            inputs["point_seeds"] = torch.arange(self.model_tester.batch_size)
        return inputs

    def test_sdpa_can_dispatch_composite_models(self):
        """As the suite's own, which looks for a vision tower and a language model by their names."""
        with tempfile.TemporaryDirectory() as folder:
            MTAClipModel(self.model_tester.get_config()).save_pretrained(folder)
            for asked in ("sdpa", "eager", {"": "sdpa", "text_config": "eager"}):
                own, text = asked.values() if isinstance(asked, dict) else (asked, asked)
                model = MTAClipModel.from_pretrained(folder, attn_implementation=asked)
                used = {
                    type(module): module.config._attn_implementation
                    for module in model.modules()
                    if isinstance(module, MTAClipAttention | CLIPAttention)
                }
                assert used == {MTAClipAttention: own, CLIPAttention: text}


MASKS_ARE_THRESHOLDS = "The masks of masked attention are thresholds, which rounding to half precision flips."
NO_TOKENS = "The input is an image; the vocabulary is that of the frozen text encoder."
NO_PROMPTS = "Pipelines for mask generation need a model that points and boxes can prompt."
# Reasons that are true of our model, where the suites have none or that of other models.
SKIPPED = {
    "test_enable_input_require_grads_with_gradient_checkpointing": "Frozen token embeddings have no gradient.",
    "test_model_get_set_embeddings": NO_TOKENS,
    "test_resize_position_vector_embeddings": "Learned positions belong to queries and prompts.",
    "test_pipeline_mask_generation": NO_PROMPTS,
    "test_pipeline_mask_generation_fp16": NO_PROMPTS,
    "test_resize_embeddings_untied": NO_TOKENS,
    "test_resize_embeddings_untied_no_reinit_on_post_init": NO_TOKENS,
    "test_resize_tokens_embeddings": NO_TOKENS,
    "test_sdpa_can_dispatch_non_composite_models": "The model is composite: the test of composite models is run.",
}
SKIPPED |= {
    name: MASKS_ARE_THRESHOLDS
    for name in dir(MTAClipModelTest)
    if name.startswith("test_eager_matches_sdpa_inference") and ("fp16" in name or "bf16" in name)
}
for name, reason in SKIPPED.items():
    setattr(MTAClipModelTest, name, unittest.skip(reason)(getattr(MTAClipModelTest, name)))


class MTAClipImageProcessingTester(image_processing.ImageProcessingTester):
    """What the suites ask of an image processor: options for it, inputs, and what size the result has."""

    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 20, "width": 28})
        kwargs.setdefault("size_divisor", 4)
        kwargs.setdefault("num_labels", 5)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"torchvision": MTAClipImageProcessor, "pil": MTAClipImageProcessorPil}

    def prepare_post_process_semantic_segmentation_inputs(self):
        height, width = self.size["height"], self.size["width"]
        outputs = MTAClipForSemanticSegmentationOutput(
            class_queries_logits=torch.randn(self.batch_size, 3, self.num_labels + 1),
            masks_queries_logits=torch.randn(self.batch_size, 3, height // 4, width // 4),
        )
        return {"outputs": outputs}, {"num_labels": self.num_labels, "height": height, "width": width}


class MTAClipImageProcessingTest(
    image_processing.ImageProcessingTestMixin,
    image_processing.PostProcessSemanticSegmentationTestMixin,
    unittest.TestCase,
):
    image_processor_tester_class = MTAClipImageProcessingTester

    def test_override_instance_attributes_does_not_affect_other_instances(self):
        """As the suite's own, which skips image processors whose `image_mean` is a tuple."""
        for image_processing_class in self.image_processing_classes.values():
            first, second = image_processing_class(), image_processing_class()
            expected = second.to_dict()
            first.size["shortest_edge"] = 1
            first.image_mean = (0, 0, 0)
            assert second.to_dict() == expected

    def test_pil_can_run_without_torchvision(self):
        """As the suite's own, in a process that imports our package."""
        processor = MTAClipImageProcessorPil(**self.image_processor_tester.prepare_image_processor_dict())
        image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            np.save(f"{folder}/image.npy", image)
            subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION, folder], check=True)
            found = np.load(f"{folder}/pixel_values.npy")
        np.testing.assert_array_equal(found, processor(image, return_tensors="np").pixel_values)

    def test_image_processor_preprocess_arguments(self):
        """As the suite's own, for the check that transformers' backends make."""
        for image_processing_class in self.image_processing_classes.values():
            with pytest.raises(TypeError, match="extra_argument"):
                image_processing_class()(self.image_processor_tester.prepare_image_inputs(), extra_argument=True)
