# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The model under `torch.compile`: same numbers, a decoder in one graph, and no graph for each image size."""

import pytest
import torch

from tests.tiny import assert_near, tiny_model


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def decoder_inputs(height, width):
    sizes = [(height // stride, width // stride) for stride in (8, 4, 2)]
    return {
        "mask_features": torch.randn(2, 16, height, width),
        "multi_scale_features": [torch.randn(2, 32, *size) for size in sizes],
        "text_embeddings": torch.randn(3, 4, 24),
    }


@pytest.mark.slow
def test_decoder_is_one_graph_for_all_sizes():
    decoder = tiny_model().model.decoder
    compiled = torch.compile(decoder, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in ((24, 32), (40, 48)):
            compiled(**decoder_inputs(*size))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for size in ((32, 24), (64, 64), (16, 80)):
                inputs = decoder_inputs(*size)
                assert_near(compiled(**inputs), decoder(**inputs))


@pytest.mark.slow
def test_training():
    torch.manual_seed(0)
    model = tiny_model().train()
    batch = {
        "pixel_values": torch.randn(2, 3, 64, 96),
        "labels": torch.randint(0, 3, (2, 64, 96)),
        "point_seeds": torch.arange(2),
    }
    # BatchNorm's statistics depend on how often the backbone ran.
    model.model.backbone.eval()
    # New models sample at whole pixels, where the slope of interpolation jumps and rounding chooses the side.
    for layer in model.model.pixel_decoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.bias)
    results = []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        loss = forward(**batch).loss
        loss.backward()
        results.append([loss, *(weight.grad.clone() for weight in model.parameters() if weight.requires_grad)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)
