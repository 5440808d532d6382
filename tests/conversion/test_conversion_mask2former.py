# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A Mask2Former of transformers, evaluated by our code, gives Mask2Former's label maps and mean IoU."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.conversion import from_pretrained_parts
from modeling_mtaclip.inference import Segmenter
from modeling_mtaclip.metrics import MeanIoU
from tests.conversion.sources import save_mask2former_folder


NUM_CLASSES = 11


@pytest.fixture(scope="module")
def examples(shared_dir):
    folder = shared_dir / "data" / "camvid"
    paths = sorted((folder / "images" / "val").glob("*.jpg"))[::40]
    annotations = [folder / "annotations" / "val" / f"{path.stem}.png" for path in paths]
    return [
        (Image.open(image).convert("RGB"), np.array(Image.open(annotation)))
        for image, annotation in zip(paths, annotations, strict=True)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Mask2Former and ours, in double precision, so that rounding decides about no pixel."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mask2former")
    theirs = save_mask2former_folder(folder, [f"class {index}" for index in range(NUM_CLASSES)])
    transformer = theirs.model.transformer_module
    last_linear = transformer.decoder.mask_predictor.mask_embedder.get_submodule("2.0")
    with torch.no_grad():
        # Freshly made, queries hardly differ: neither in their class nor in where their masks are.
        for linear, deviation in ((theirs.class_predictor, 3), (last_linear, 10)):
            linear.weight.normal_(std=deviation)
            linear.bias.zero_()
        transformer.queries_features.weight.normal_(std=5)
    theirs.save_pretrained(folder)
    ours = from_pretrained_parts(mask2former=str(folder), text_branch=False).model
    return theirs.double().eval(), ours.double().eval()


@torch.no_grad()
def test_label_maps_and_mean_iou(models, examples):
    theirs, ours = models
    processor = MTAClipImageProcessor(size={"shortest_edge": 192})
    segmenter = Segmenter(ours, processor)
    metrics = MeanIoU(num_labels=NUM_CLASSES), MeanIoU(num_labels=NUM_CLASSES)
    assert len(examples) == 3
    for image, annotation in examples:
        inputs = processor([image], return_tensors="pt").to(torch.float64)
        assert inputs.pixel_values.shape == (1, 3, 192, 256)
        outputs = theirs(**inputs)
        # As its authors evaluate: scores at the size of the model's input, then resized to the annotation's.
        masks = F.interpolate(outputs.masks_queries_logits, (192, 256), mode="bilinear")[0]
        classes = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
        scores = torch.einsum("qk,qhw->khw", classes, masks.sigmoid())
        expected = F.interpolate(scores[None], annotation.shape, mode="bilinear")[0].argmax(0)
        (actual,) = segmenter([image])
        assert torch.equal(actual, expected)
        assert len(actual.unique()) > 1
        for metric, labels in zip(metrics, (expected, actual), strict=True):
            metric.add(prediction=labels, reference=annotation)
    figures = [metric.compute() for metric in metrics]
    assert figures[0]["mean_iou"] == figures[1]["mean_iou"] > 0
