# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from modeling_mtaclip.deformable_attention_mtaclip import multi_scale_deformable_attention


def plain_attention(value, spatial_shapes, locations, weights):
    """One sampled pixel at a time."""
    batch_size, queries, heads, _, points, _ = locations.shape
    result = []
    for b in range(batch_size):
        for n in range(queries):
            for head in range(heads):
                total, start = 0, 0
                for level, (height, width) in enumerate(spatial_shapes):
                    for point in range(points):
                        x = locations[b, n, head, level, point, 0] * width - 0.5
                        y = locations[b, n, head, level, point, 1] * height - 0.5
                        for column in (math.floor(x.item()), math.floor(x.item()) + 1):
                            for row in (math.floor(y.item()), math.floor(y.item()) + 1):
                                if 0 <= column < width and 0 <= row < height:
                                    share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                                    pixel = value[b, start + row * width + column, head]
                                    total = total + weights[b, n, head, level, point] * share * pixel
                    start += height * width
                result.append(total + torch.zeros(value.shape[-1], dtype=value.dtype))
    return torch.stack(result).view(batch_size, queries, -1)


@pytest.mark.parametrize("spatial_shapes", [[(3, 4), (5, 2)], [(1, 1)], [(2, 6), (1, 3), (4, 4)]])
def test_values_and_gradients(spatial_shapes):
    batch_size, queries, heads, head_dim, points = 2, 3, 2, 5, 2
    length = sum(height * width for height, width in spatial_shapes)
    value = torch.randn(batch_size, length, heads, head_dim, dtype=torch.float64, requires_grad=True)
    shape = (batch_size, queries, heads, len(spatial_shapes), points)
    # Beyond the edges of the levels too.
    locations = (torch.rand(*shape, 2, dtype=torch.float64) * 1.6 - 0.3).requires_grad_()
    weights = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(batch_size, queries, heads * head_dim, dtype=torch.float64)
    results, gradients = [], []
    for attend in (multi_scale_deformable_attention, plain_attention):
        results.append(attend(value, spatial_shapes, locations, weights))
        gradients.append(torch.autograd.grad((results[-1] * direction).sum(), (value, locations, weights)))
    torch.testing.assert_close(*results)
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)
