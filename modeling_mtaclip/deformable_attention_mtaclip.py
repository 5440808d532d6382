# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3), in plain PyTorch.

There are two forms with the same results. On CPUs, each query and head is a weighted bag of pixels, four for each
point: the bags are a sparse matrix, whose product with the values reads whole rows, and whose transpose spreads
gradients over them. Elsewhere, and where a graph is compiled or exported, `grid_sample` is the form that fits.
"""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from scipy.sparse import csc_matrix
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


# Pixels of zeros before each row and above each level. Points further out than that are moved to there.
MARGIN = 2


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_positions: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sums of values sampled at points of several levels, bilinearly, with zeros outside.

    Args:
        value (`Tensor` of shape `(B, S, heads, d)`): pixels of all levels, level after level.
        spatial_shapes (`Sequence[tuple[int, int]]`): height and width of each level.
        sampling_positions (`Tensor` of shape `(B, N, heads, levels, points, 2)`): (x, y) in pixels of each level, from
            the centre of its first pixel.
        attention_weights (`Tensor` of shape `(B, N, heads, levels, points)`): weight of each point.

    Returns:
        `Tensor` of shape `(B, N, heads * d)`, of the dtype of `value`.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if value.device.type != "cpu" or traced:
        return _attend_by_grid_sample(value, spatial_shapes, sampling_positions, attention_weights)
    shapes = tuple((int(height), int(width)) for height, width in spatial_shapes)
    return _BagAttention.apply(value, sampling_positions, attention_weights, shapes)


def _attend_by_grid_sample(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_positions: Tensor, attention_weights: Tensor
) -> Tensor:
    batch_size, _, num_heads, head_dim = value.shape
    sampled = []
    for level, maps in enumerate(value.split([height * width for height, width in spatial_shapes], dim=1)):
        height, width = spatial_shapes[level]
        maps = maps.permute(0, 2, 3, 1).reshape(batch_size * num_heads, head_dim, height, width)
        # `grid_sample` has a level's edges at -1 and 1.
        x, y = sampling_positions[:, :, :, level].unbind(-1)
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
        grid = grid.to(value.dtype).transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.flatten(3).transpose(1, 2).flatten(0, 1)[:, None].to(value.dtype)
    attended = (torch.cat(sampled, dim=-1) * weights).sum(dim=-1)
    return attended.view(batch_size, num_heads * head_dim, -1).transpose(1, 2)


class _Table:
    """An image's values as the rows of a table, in which each level has margins of zeros.

    The margins take in whatever lies outside, so that points there need neither masks nor gradients of their own. A
    row's left margin is also the right margin of the row before.

    Points are columns of length `heads * levels * points`, so that whatever depends on the level is one vector.
    """

    def __init__(self, spatial_shapes: tuple[tuple[int, int], ...], num_heads: int, num_points: int) -> None:
        self.spatial_shapes = spatial_shapes
        self.num_heads = num_heads
        self.num_points = num_points
        self.widths = [width + MARGIN for _, width in spatial_shapes]
        sizes = [(height + 2 * MARGIN) * width for (height, _), width in zip(spatial_shapes, self.widths, strict=True)]
        self.starts = [sum(sizes[:level]) for level in range(len(sizes))]
        self.end = sum(sizes)
        # One row more than needed, so that wherever a point's top left pixel is, all four are in the table.
        self.num_pixels = self.end + max(self.widths) + MARGIN

    def per_point(self, levels: Sequence[float], dtype: torch.dtype) -> Tensor:
        """One number per level as one number per point, `(heads * levels * points,)`."""
        return torch.tensor(levels, dtype=dtype).repeat_interleave(self.num_points).repeat(self.num_heads)

    def fill(self, value: Tensor) -> Tensor:
        """Values `(B, S, heads, d)` as tables `(B, rows, d)`, at least in float32."""
        batch_size, _, num_heads, head_dim = value.shape
        dtype = torch.promote_types(value.dtype, torch.float32)
        tables = value.new_zeros((batch_size, self.num_pixels * num_heads, head_dim), dtype=dtype)
        sizes = [height * width for height, width in self.spatial_shapes]
        for inside, pixels in zip(self._insides(tables), value.split(sizes, dim=1), strict=True):
            inside.copy_(pixels.view(inside.shape))
        return tables

    def pixels(self, tables: Tensor, dtype: torch.dtype) -> Tensor:
        """The values `(B, S, heads, d)` in tables."""
        insides = [inside.to(dtype).flatten(1, 2) for inside in self._insides(tables)]
        return torch.cat(insides, dim=1).unflatten(2, (self.num_heads, -1))

    def _insides(self, tables: Tensor) -> list[Tensor]:
        pixels = tables.view(tables.shape[0], self.num_pixels, -1)
        insides = []
        for (height, _), width, start in zip(self.spatial_shapes, self.widths, self.starts, strict=True):
            rows = pixels[:, start : start + (height + MARGIN) * width].unflatten(1, (-1, width))
            insides.append(rows[:, MARGIN:, MARGIN:])
        return insides

    def locate(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Row of each point's top left pixel, int32, and how far right of it and below it the point lies.

        All are `(B, N, heads * levels * points)`.
        """
        corners, fractions = [], []
        for axis in (0, 1):
            lengths = self.per_point([shape[1 - axis] for shape in self.spatial_shapes], dtype)
            position = positions[..., axis].flatten(2).to(dtype) + MARGIN
            position.clamp_(min=lengths.new_zeros(()), max=lengths + MARGIN)
            corner = position.floor()
            fractions.append(position.sub_(corner))
            corners.append(corner.int())
        columns, rows = corners
        head = torch.arange(self.num_heads, dtype=torch.int32)
        head = head.repeat_interleave(len(self.starts) * self.num_points)
        first = self.per_point(self.starts, torch.int32) * self.num_heads + head
        indices = rows.mul_(self.per_point(self.widths, torch.int32)).add_(columns).mul_(self.num_heads).add_(first)
        # Positions that are not a number must not lead out of the table.
        return indices.clamp_(0, self.end * self.num_heads), *fractions

    def bags(self, indices: Tensor, right: Tensor, down: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and shares of an image's bags, both `(N * heads, 4 * levels * points)`."""
        widths = torch.tensor(self.widths, dtype=torch.int32).repeat_interleave(self.num_points)
        steps = torch.stack((torch.zeros_like(widths), torch.ones_like(widths), widths, widths + 1)) * self.num_heads
        points = widths.numel()
        indices = indices.view(-1, 1, points) + steps
        on_right = weights * right
        on_left = weights - on_right
        bottom_right, bottom_left = on_right * down, on_left * down
        shares = (on_left.sub_(bottom_left), on_right.sub_(bottom_right), bottom_left, bottom_right)
        return indices.flatten(1), torch.cat([share.view(-1, points) for share in shares], dim=1)


class _BagAttention(torch.autograd.Function):
    """Deformable attention as the product of a sparse matrix with the values."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, positions: Tensor, weights: Tensor, spatial_shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        table = _Table(spatial_shapes, value.shape[2], positions.shape[4])
        tables = table.fill(value)
        located = table.locate(positions, tables.dtype)
        attended = [
            F.embedding_bag(indices, rows, per_sample_weights=shares, mode="sum")
            for rows, (indices, shares) in zip(tables, _all_bags(table, located, weights), strict=True)
        ]
        ctx.save_for_backward(tables, weights, *located)
        ctx.table = table
        ctx.dtypes = (value.dtype, positions.dtype)
        return torch.stack(attended).view(*positions.shape[:2], value.shape[2:].numel()).to(value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tables, weights, *located = ctx.saved_tensors
        gradients = gradient.to(tables.dtype).unflatten(2, (weights.shape[2], -1)).flatten(1, 2).contiguous()
        bags = list(_all_bags(ctx.table, located, weights))
        value_gradient, position_gradient, weight_gradient = None, None, None
        if ctx.needs_input_grad[0]:
            value_gradient = ctx.table.pixels(_spread(gradients, bags, tables), ctx.dtypes[0])
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            products = torch.stack([_products(*image) for image in zip(gradients, bags, tables, strict=True)], dim=1)
            position_gradient, weight_gradient = _point_gradients(products, located, weights)
            position_gradient = position_gradient.to(ctx.dtypes[1])
        return value_gradient, position_gradient, weight_gradient, None


def _all_bags(table: _Table, located: Sequence[Tensor], weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and shares of each image's bags."""
    weights = weights.flatten(2).to(located[1].dtype)
    return map(table.bags, *located, weights)


def _spread(gradients: Tensor, bags: list[tuple[Tensor, Tensor]], tables: Tensor) -> Tensor:
    """Adds each bag's gradient to its rows of the table: the products with the transposed sparse matrices."""

    def spread_image(gradient: Tensor, bag: tuple[Tensor, Tensor]) -> Tensor:
        indices, shares = bag
        arrays = (shares.flatten().numpy(), indices.flatten().numpy(), _bag_ends(indices).numpy())
        matrix = csc_matrix(arrays, shape=(tables.shape[1], len(indices)))
        return torch.from_numpy(matrix @ gradient.numpy())

    # SciPy works in one thread, and lets others work beside it.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return torch.stack(list(pool.map(spread_image, gradients, bags)))


def _bag_ends(indices: Tensor) -> Tensor:
    return torch.arange(0, indices.numel() + 1, indices.shape[1], dtype=torch.int32)


def _products(gradient: Tensor, bag: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
    """Dot products of each bag's gradient with its rows, `(4, N * heads, levels * points)`; overwrites the shares."""
    indices, shares = bag
    if torch.backends.mkl.is_available():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
            matrix = torch.sparse_csr_tensor(
                _bag_ends(indices),
                indices.flatten(),
                shares.flatten(),
                size=(len(indices), len(rows)),
                check_invariants=False,
            )
        torch.sparse.sampled_addmm(matrix, gradient, rows.T, beta=0, out=matrix)
        products = matrix.values()
    else:
        with torch.enable_grad():
            # They are the gradients of the bags' shares.
            shares = shares.detach().requires_grad_()
            attended = F.embedding_bag(indices, rows, per_sample_weights=shares, mode="sum")
        (products,) = torch.autograd.grad(attended, shares, gradient)
    return products.view(len(indices), 4, indices.shape[1] // 4).transpose(0, 1)


def _point_gradients(products: Tensor, located: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of positions and weights, from the products of gradients with the pixels around each point."""
    _, right, down = located
    top_left, top_right, bottom_left, bottom_right = products.view(4, *right.shape)
    across_top, across_bottom = top_right.sub_(top_left), bottom_right.sub_(bottom_left)
    top = top_left.addcmul_(right, across_top)
    bottom = bottom_left.addcmul_(right, across_bottom)
    downward = bottom.sub_(top)
    across = across_top.addcmul_(down, across_bottom.sub_(across_top))
    weight_gradient = top.addcmul_(down, downward).view(weights.shape)
    position_gradient = right.new_empty((*weights.shape, 2))
    for axis, slope in enumerate((across, downward)):
        torch.mul(slope.view(weights.shape), weights, out=position_gradient[..., axis])
    return position_gradient, weight_gradient.to(weights.dtype)


__all__ = ["multi_scale_deformable_attention"]
