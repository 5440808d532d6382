# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional as F

from modeling_mtaclip.point_sampling_mtaclip import sample_rows


def grid_sampled(features, size, points):
    maps = features.T.unflatten(1, size)[None]
    grid = (2 * points - 1)[None, None].to(features.dtype)
    return F.grid_sample(maps, grid, align_corners=False)[0, :, 0].T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "channels"), [((7, 5), 3), ((1, 9), 1), ((6, 1), 16), ((4, 4), 0)])
def test_equal_to_grid_sample(dtype, size, channels):
    features = torch.randn(size[0] * size[1], channels, dtype=dtype, requires_grad=True)
    # Beyond the edges too, and exactly on them.
    points = torch.cat((torch.rand(50, 2) * 1.4 - 0.2, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])))
    direction = torch.randn(len(points), channels, dtype=dtype)
    results, gradients = [], []
    for sample in (sample_rows, grid_sampled):
        results.append(sample(features, size, points))
        gradients.append(torch.autograd.grad((results[-1] * direction).sum(), features)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
