# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3), in plain PyTorch.

There are two forms with the same results. On CPUs, each query and head is a weighted bag of pixels, four for each
point: the bags are a sparse matrix, whose product with the values reads whole rows, and whose transpose spreads
gradients over them. Elsewhere, and where a graph is compiled or exported, `grid_sample` is the faster form.
"""

from collections.abc import Sequence
from typing import Any

import torch
from scipy.sparse import csc_matrix
from torch import Tensor
from torch.autograd.function import once_differentiable
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
        `Tensor` of shape `(B, N, heads * d)`, of the dtype of `value`.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if value.device.type != "cpu" or traced:
        return _attend_by_grid_sample(value, spatial_shapes, sampling_locations, attention_weights)
    attended = _BagAttention.apply(
        value.to(torch.promote_types(value.dtype, torch.float32)),
        sampling_locations,
        attention_weights,
        tuple((int(height), int(width)) for height, width in spatial_shapes),
    )
    return attended.to(value.dtype)


def _attend_by_grid_sample(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    batch_size, _, num_heads, head_dim = value.shape
    grids = (2 * sampling_locations - 1).to(value.dtype)
    sampled = []
    for level, maps in enumerate(value.split([height * width for height, width in spatial_shapes], dim=1)):
        maps = maps.permute(0, 2, 3, 1).reshape(batch_size * num_heads, head_dim, *spatial_shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.flatten(3).transpose(1, 2).flatten(0, 1)[:, None].to(value.dtype)
    attended = (torch.cat(sampled, dim=-1) * weights).sum(dim=-1)
    return attended.view(batch_size, num_heads * head_dim, -1).transpose(1, 2)


class _Corners:
    """The pixels around all points along one axis: positions, shares, and how shares change with the location.

    Points are columns of length `heads * levels * points`, so that whatever depends on the level is one vector.
    """

    def __init__(self, locations: Tensor, lengths: Tensor) -> None:
        position = locations * lengths - 0.5
        low = position.floor()
        fraction = position.sub_(low)
        last = lengths - 1
        # 1 where the pixel is inside; the share of a pixel outside is 0, and its position that of one inside.
        self.inside = [((low >= 0) & (low <= last)).to(low.dtype), ((low >= -1) & (low < last)).to(low.dtype)]
        self.shares = [(1 - fraction) * self.inside[0], fraction * self.inside[1]]
        low = low.clamp_(min=-1).minimum(last)
        self.positions = [low.clamp(min=0).int(), (low + 1).minimum(last).int()]


class _BagAttention(torch.autograd.Function):
    """Deformable attention as the product of a sparse matrix with the values."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, spatial_shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        columns, rows = _corners(locations, spatial_shapes, value.dtype)
        indices = _pixel_indices(columns, rows, value.shape, locations.shape, spatial_shapes)
        shares = _as_bags(
            [column * row for row in rows.shares for column in columns.shares],
            weights.to(value.dtype),
            locations.shape,
        )
        ctx.save_for_backward(value, locations, weights, indices, shares)
        ctx.spatial_shapes = spatial_shapes
        table = value.reshape(-1, value.shape[-1])
        attended = F.embedding_bag(indices, table, per_sample_weights=shares, mode="sum")
        return attended.view(*locations.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights, indices, shares = ctx.saved_tensors
        gradient = gradient.reshape(-1, value.shape[-1])
        value_gradient = _spread(gradient, indices, shares, value.shape) if ctx.needs_input_grad[0] else None
        location_gradient, weight_gradient = None, None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            location_gradient, weight_gradient = _point_gradients(
                gradient, value, locations, weights, indices, ctx.spatial_shapes
            )
        return value_gradient, location_gradient, weight_gradient, None


def _corners(locations: Tensor, spatial_shapes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> list[_Corners]:
    """Corners along x and along y, each `(B, N, heads * levels * points)`."""
    heads, _, points = locations.shape[2:5]
    corners = []
    for axis in (0, 1):
        lengths = torch.tensor([shape[1 - axis] for shape in spatial_shapes], dtype=dtype)
        lengths = lengths.repeat_interleave(points).repeat(heads)
        corners.append(_Corners(locations[..., axis].flatten(2).to(dtype), lengths))
    return corners


def _pixel_indices(
    columns: _Corners,
    rows: _Corners,
    value_shape: torch.Size,
    locations_shape: torch.Size,
    spatial_shapes: tuple[tuple[int, int], ...],
) -> Tensor:
    """Rows of the `(B * S * heads, d)` table of values in each bag, `(B * N * heads, 4 * levels * points)`, int32."""
    batch_size, length, heads, _ = value_shape
    points = locations_shape[4]
    starts = torch.tensor([0] + [height * width for height, width in spatial_shapes[:-1]]).cumsum(0)
    widths = torch.tensor([width for _, width in spatial_shapes])
    starts, widths = (level.repeat_interleave(points).repeat(heads) for level in (starts, widths))
    head = torch.arange(heads).repeat_interleave(len(spatial_shapes) * points)
    first = (starts * heads + head) + torch.arange(batch_size)[:, None] * (length * heads)
    first, stride = first[:, None].int(), (widths * heads).int()
    across = [position * heads for position in columns.positions]
    down = [position * stride + first for position in rows.positions]
    return _as_bags([column + row for row in down for column in across], None, locations_shape)


def _as_bags(corners: list[Tensor], weights: Tensor | None, shape: torch.Size) -> Tensor:
    """Four tensors `(B, N, heads * levels * points)`, times weights, as `(B * N * heads, 4 * levels * points)`."""
    heads = [corner.unflatten(-1, (shape[2], -1)) for corner in corners]
    if weights is not None:
        heads = [corner.mul_(weights.flatten(3)) for corner in heads]
    return torch.cat(heads, dim=-1).flatten(0, 2)


def _spread(gradient: Tensor, indices: Tensor, shares: Tensor, value_shape: torch.Size) -> Tensor:
    """Adds each bag's gradient to its rows of the table: the product with the transposed sparse matrix."""
    bags, size = indices.shape
    ends = torch.arange(0, bags * size + 1, size, dtype=torch.int32)
    arrays = (shares.flatten().numpy(), indices.flatten().numpy(), ends.numpy())
    matrix = csc_matrix(arrays, shape=(value_shape[:3].numel(), bags))
    return torch.from_numpy(matrix @ gradient.contiguous().numpy()).view(value_shape)


def _point_gradients(
    gradient: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    indices: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
) -> tuple[Tensor, Tensor]:
    """Gradients of locations and attention weights."""
    with torch.enable_grad():
        # The gradient of a bag's weights are the products of its gradient with its rows.
        ones = torch.ones(indices.shape, dtype=value.dtype, requires_grad=True)
        bags = F.embedding_bag(indices, value.reshape(-1, value.shape[-1]), per_sample_weights=ones, mode="sum")
    (products,) = torch.autograd.grad(bags, ones, gradient)
    products = products.view(*locations.shape[:3], 4, -1).unbind(3)
    top_left, top_right, bottom_left, bottom_right = (part.flatten(2) for part in products)

    columns, rows = _corners(locations, spatial_shapes, value.dtype)
    (left, right), (top, bottom) = columns.shares, rows.shares
    at_left = top * top_left + bottom * bottom_left
    at_right = top * top_right + bottom * bottom_right
    at_top = left * top_left + right * top_right
    at_bottom = left * bottom_left + right * bottom_right
    weight_gradient = (left * at_left + right * at_right).view(weights.shape).to(weights.dtype)

    slopes = [
        columns.inside[1] * at_right - columns.inside[0] * at_left,
        rows.inside[1] * at_bottom - rows.inside[0] * at_top,
    ]
    sizes = value.new_tensor([(width, height) for height, width in spatial_shapes])[:, None]
    slopes = torch.stack([slope.view(weights.shape) for slope in slopes], dim=-1)
    location_gradient = slopes * weights.to(value.dtype)[..., None] * sizes
    return location_gradient.to(locations.dtype), weight_gradient


__all__ = ["multi_scale_deformable_attention"]
