# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Random points of images, and bilinear sampling of maps at points that all channels share."""

import torch
from torch import Tensor
from torch.nn import functional as F


def seeded_points(seeds: Tensor, num_points: int) -> Tensor:
    """Random points of images, each a function of the image's seed alone, on any device.

    Args:
        seeds (`Tensor` of shape `(B,)`): int64.
        num_points (`int`): number of points of each image, `P`.

    Returns:
        `Tensor` of shape `(B, P, 2)`: float32, uniform in [0, 1).
    """
    counters = torch.arange(2 * num_points, device=seeds.device)
    bits = _scramble(_scramble(seeds ^ (seeds >> 32))[:, None] + counters)
    # 24 bits are what a float32 holds.
    return ((bits >> 8).float() / 2**24).unflatten(1, (num_points, 2))


def pixel_centers(size: tuple[int, int], device: torch.device) -> Tensor:
    """The centers of a map's pixels in reading order, `(H * W, 2)`: (x, y), 0 and 1 are the map's edges."""
    y, x = ((torch.arange(length, device=device) + 0.5) / length for length in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def _scramble(numbers: Tensor) -> Tensor:
    """A well mixed 32-bit hash (`lowbias32`, https://github.com/skeeto/hash-prospector) of int64 numbers."""
    bits = numbers & 0xFFFFFFFF
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    bits = (bits ^ (bits >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return bits ^ (bits >> 16)


def sample_pixels(features: Tensor, size: tuple[int, int], points: Tensor) -> Tensor:
    """Samples maps whose pixels are rows, as `grid_sample(align_corners=False)` with zeros outside does.

    Each point is a weighted bag of its four pixels, so that only whole rows are read, and added to going backward.

    Args:
        features (`Tensor` of shape `(B, H * W, C)`): pixels in reading order.
        size (`tuple[int, int]`): height and width of the maps.
        points (`Tensor` of shape `(B, P, 2)`): (x, y), 0 and 1 are the map's edges; no gradient flows to them.

    Returns:
        `Tensor` of shape `(B, P, C)`, of the dtype of `features`.
    """
    pixels, shares = bilinear_corners(size, points)
    images = torch.arange(len(features), device=features.device)[:, None, None]
    sampled = F.embedding_bag(
        (pixels + images * features.shape[1]).flatten(0, 1),
        features.flatten(0, 1),
        per_sample_weights=shares.to(features.dtype).flatten(0, 1),
        mode="sum",
    )
    return sampled.unflatten(0, points.shape[:2])


def bilinear_corners(size: tuple[int, int], points: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels around each point, and their shares.

    Args:
        size (`tuple[int, int]`): height and width of the map.
        points (`Tensor` of shape `(..., P, 2)`): (x, y), 0 and 1 are the map's edges.

    Returns:
        `tuple[Tensor, Tensor]`: positions in reading order `(..., P, 4)`, int64, and shares `(..., P, 4)`, which are 0
        for pixels outside the map (their positions are those of pixels inside).
    """
    height, width = size
    columns, column_shares = _neighbors(points[..., 0], width)
    rows, row_shares = _neighbors(points[..., 1], height)
    positions = rows[..., :, None] * width + columns[..., None, :]
    return positions.flatten(-2), (row_shares[..., :, None] * column_shares[..., None, :]).flatten(-2)


def _neighbors(coordinates: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels on an axis around each coordinate, and their shares, both `(..., P, 2)`."""
    position = coordinates * length - 0.5
    first = position.floor()
    pixels = torch.stack((first, first + 1), dim=-1)
    inside = pixels.clamp(0, length - 1)
    # A pixel's share falls from 1 at its center to 0 at its neighbors' centers.
    shares = (1 - (position[..., None] - pixels).abs()) * (inside == pixels)
    return inside.long(), shares


__all__ = ["bilinear_corners", "pixel_centers", "sample_pixels", "seeded_points"]
