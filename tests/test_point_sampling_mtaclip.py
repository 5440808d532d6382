# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional as F

from modeling_mtaclip.point_sampling_mtaclip import sample_pixels, seeded_points


def grid_sampled(features, size, points):
    maps = features.transpose(1, 2).unflatten(2, size)
    grid = (2 * points - 1)[:, None].to(features.dtype)
    return F.grid_sample(maps, grid, align_corners=False)[:, :, 0].transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "channels"), [((7, 5), 3), ((1, 9), 1), ((6, 1), 16)])
def test_equal_to_grid_sample(dtype, size, channels):
    features = torch.randn(2, size[0] * size[1], channels, dtype=dtype, requires_grad=True)
    # Beyond the edges too, and exactly on them.
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).expand(2, -1, -1)
    points = torch.cat((torch.rand(2, 50, 2) * 1.4 - 0.2, corners), dim=1)
    direction = torch.randn(2, points.shape[1], channels, dtype=dtype)
    results, gradients = [], []
    for sample in (sample_pixels, grid_sampled):
        results.append(sample(features, size, points))
        gradients.append(torch.autograd.grad((results[-1] * direction).sum(), features)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_seeded_points_are_uniform_and_independent():
    points = seeded_points(torch.tensor([0, 1, -5, 2**40 + 1]), 20000)
    assert points.shape == (4, 20000, 2)
    assert points.amin() >= 0
    assert points.amax() < 1
    cells = (points * 4).long()
    counts = torch.stack([torch.bincount(4 * image[:, 1] + image[:, 0], minlength=16) for image in cells])
    assert (counts - 20000 / 16).abs().amax() < 5 * (20000 / 16) ** 0.5
    correlations = torch.corrcoef(points.transpose(1, 2).flatten(0, 1))
    assert (correlations - torch.eye(8)).abs().amax() < 0.04
