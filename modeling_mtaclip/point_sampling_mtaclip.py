# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Bilinear sampling of channels-last maps at points that all channels share."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_rows(features: Tensor, size: tuple[int, int], points: Tensor) -> Tensor:
    """Samples a map whose pixels are rows, as `grid_sample(align_corners=False)` with zeros outside does.

    Each point is a weighted bag of its four pixels, so that only whole rows are read, and added to going backward.

    Args:
        features (`Tensor` of shape `(H * W, C)`): pixels in reading order.
        size (`tuple[int, int]`): height and width of the map.
        points (`Tensor` of shape `(P, 2)`): (x, y), 0 and 1 are the map's edges; no gradient flows to them.

    Returns:
        `Tensor` of shape `(P, C)`, of the dtype of `features`.
    """
    rows, shares = bilinear_corners(size, points)
    if features.shape[1] == 0:  # which embedding_bag refuses
        return features[rows[:, 0]]
    return F.embedding_bag(rows, features, per_sample_weights=shares.to(features.dtype), mode="sum")


def bilinear_corners(size: tuple[int, int], points: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels around each point, and their shares.

    Args:
        size (`tuple[int, int]`): height and width of the map.
        points (`Tensor` of shape `(P, 2)`): (x, y), 0 and 1 are the map's edges.

    Returns:
        `tuple[Tensor, Tensor]`: positions in reading order `(P, 4)`, int64, and shares `(P, 4)`, which are 0 for
        pixels outside the map (their positions are those of pixels inside).
    """
    height, width = size
    position = points * points.new_tensor((width, height)) - 0.5
    low = position.floor()
    fraction = position - low
    x, y = (low[:, axis, None].long() + torch.tensor([0, 1], device=points.device) for axis in (0, 1))
    share_x, share_y = (torch.cat((1 - fraction[:, axis, None], fraction[:, axis, None]), dim=1) for axis in (0, 1))
    share_x = share_x * ((x >= 0) & (x < width))
    share_y = share_y * ((y >= 0) & (y < height))
    rows = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None]
    return rows.flatten(1), (share_y[:, :, None] * share_x[:, None]).flatten(1)


__all__ = ["bilinear_corners", "sample_rows"]
