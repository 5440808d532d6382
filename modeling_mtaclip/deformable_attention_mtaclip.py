# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3), in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sums of values sampled at points of several levels, bilinearly, with zeros outside.

    Args:
        value (`Tensor` of shape `(B, S, heads, d)`): pixels of all levels, level after level.
        spatial_shapes (`Sequence[tuple[int, int]]`): height and width of each level.
        sampling_locations (`Tensor` of shape `(B, N, heads, levels, points, 2)`): (x, y), 0 and 1 are its edges.
        attention_weights (`Tensor` of shape `(B, N, heads, levels, points)`): weight of each point.

    Returns:
        `Tensor` of shape `(B, N, heads * d)`.
    """
    batch_size, _, num_heads, head_dim = value.shape
    grids = (2 * sampling_locations - 1).to(value.dtype)
    sampled = []
    for level, maps in enumerate(value.split([height * width for height, width in spatial_shapes], dim=1)):
        maps = maps.permute(0, 2, 3, 1).reshape(batch_size * num_heads, head_dim, *spatial_shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.flatten(3).transpose(1, 2).flatten(0, 1)[:, None]
    attended = (torch.cat(sampled, dim=-1) * weights).sum(dim=-1)
    return attended.view(batch_size, num_heads * head_dim, -1).transpose(1, 2)


__all__ = ["multi_scale_deformable_attention"]
