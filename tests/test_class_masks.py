# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Masks that the text queries predict for their own classes, and their share in predictions."""

import torch
from PIL import Image
from torch.nn import functional as F

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.inference import Segmenter
from modeling_mtaclip.training.evaluated_images import align_masks, winning_contexts
from tests.tiny import tiny_model


def class_masks(model, pixel_values):
    """Class masks `(K, h, w)` of one image, by the plain formula: the mean of the contexts' queries, embedded."""
    config = model.config
    outputs = model.model(pixel_values)
    text_queries = outputs.last_hidden_state[0, config.num_queries :].view(config.num_prompt_contexts, -1, 32)
    embeddings = torch.stack([model.model.decoder.mask_embedder(text_queries[:, k].mean(0)) for k in range(3)])
    return torch.einsum("kd,dhw->khw", embeddings, outputs.mask_features[0])


@torch.no_grad()
def test_predictions_add_the_class_masks():
    model = tiny_model(class_mask_share=0.4)
    pixel_values = torch.randn(1, 3, 64, 96)
    outputs = model(pixel_values)
    masks = class_masks(model, pixel_values)
    torch.testing.assert_close(outputs.masks_queries_logits[0, -3:], masks, rtol=1e-4, atol=1e-5)
    model.config.class_mask_share = 0.0
    without = model(pixel_values)
    assert without.masks_queries_logits.shape[1] == model.config.num_queries
    torch.testing.assert_close(outputs.logits[0], without.logits[0] + 0.4 * masks.sigmoid(), rtol=1e-4, atol=1e-5)
    size = [(64, 96)]
    post_process = MTAClipImageProcessor(do_resize=False).post_process_semantic_segmentation
    scores = F.interpolate(masks[None], size=size[0], mode="bilinear")[0].sigmoid()
    upsampled = F.interpolate(without.masks_queries_logits, size=size[0], mode="bilinear").sigmoid()[0]
    probabilities = without.class_queries_logits[0].softmax(-1)[:, :-1]
    expected = (torch.einsum("qk,qhw->khw", probabilities, upsampled) + 0.4 * scores).argmax(0)
    assert (post_process(outputs, target_sizes=size)[0] == expected).double().mean() > 0.999


def test_training_reaches_the_class_queries_only_where_asked_for():
    pixel_values, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    names = {}
    for weight in (0.0, 1.0):
        model = tiny_model(class_mask_weight=weight).train()
        outputs = model(pixel_values=pixel_values, labels=labels)
        outputs.loss.backward()
        names[weight] = set(outputs.loss_components)
        assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    added = names[1.0] - names[0.0]
    assert {"class_mask", "class_dice"} <= added
    assert all(name.startswith(("class_mask", "class_dice")) for name in added)


@torch.no_grad()
def test_whatever_reads_predictions_takes_class_masks(tmp_path):
    model, processor = tiny_model(class_mask_share=1.0), MTAClipImageProcessor(do_resize=False)
    image = Image.fromarray(torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8).numpy())
    outputs = model(**processor(image, return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 96)])[0]
    assert (Segmenter(model, processor)([image])[0] == expected).double().mean() > 0.999
    wins = winning_contexts(outputs.class_queries_logits, outputs.mask_text_similarity)
    alignment = align_masks(model, processor, image)
    assert wins[:, :-1].sum() == len(alignment.classes) <= model.config.num_queries
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(type(model).from_pretrained(tmp_path)(**processor(image, return_tensors="pt")), outputs)
