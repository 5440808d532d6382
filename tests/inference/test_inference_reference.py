# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Equality with the authors' code from the image on: their scores of whole images and of sliding windows."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.inference import InferenceOptions, PreparedImage, Segmenter
from tests.reference import load_reference_model


@pytest.fixture(scope="module")
def folder(shared_dir):
    return shared_dir / "reference" / "mtaclip_tiny"


@pytest.fixture(scope="module")
def expected(folder):
    return load_file(folder / "io.safetensors")


@pytest.fixture(scope="module")
def original(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def model(folder):
    return load_reference_model(folder)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_scores(model, expected, original, mode, batch_size):
    window, stride = (tuple(original["sliding_window"][name]) for name in ("window", "stride"))
    options = InferenceOptions(mode, window, stride, batch_size=batch_size)
    segmenter = Segmenter(model, MTAClipImageProcessor(), options)
    authors = expected["seg_logits" if mode == "whole" else "slide.seg_logits"]
    for pixel_values, scores in zip(expected["pixel_values"], authors, strict=True):
        prepared = PreparedImage(tuple(pixel_values.shape[-2:]), [pixel_values])
        with torch.no_grad():
            ((view,),) = segmenter._views([prepared])
            torch.testing.assert_close(view.read(0, view.size[0]), scores, rtol=0, atol=1e-4)
        best = scores.topk(2, dim=0)
        clear = best.values[0] - best.values[1] > 2e-4
        assert clear.float().mean() > 0.99
        assert torch.equal(segmenter.predict([prepared])[0][clear], best.indices[0][clear])


def test_the_modes_differ(expected):
    difference = (expected["seg_logits"] - expected["slide.seg_logits"]).abs().max()
    assert difference > 1e-2
