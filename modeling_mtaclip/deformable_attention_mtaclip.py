# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3).

There are two forms with the same results. On CPUs, each query and head is a weighted bag of pixels, four for each
point: the bags are a sparse matrix, whose product with the values reads whole rows, and whose transpose spreads
gradients over them. This form is one operator, which compiled and exported graphs keep. On accelerators it is
`grid_sample`, or the kernel of the Hub by which transformers replaces it in a model loaded with `use_kernels=True`.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from scipy.sparse import csc_matrix
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations import use_kernel_forward_from_hub


# Pixels of zeros before each row and above each level. Points further out than that are moved to there.
MARGIN = 2

SpatialShapes = Sequence[tuple[int, int]]


def constant(function: Callable[..., Any], *arguments: Hashable) -> Any:
    """What a function makes of sizes and a device, the last argument, kept for the next call.

    Where a graph is traced, it is part of the graph, and where tensors are fake, it is made each time.
    """
    fake = type(torch.empty(0, device=arguments[-1])) is not Tensor
    return function(*arguments) if fake or torch.compiler.is_compiling() else _kept_constant(function, *arguments)


@lru_cache(maxsize=64)
def _kept_constant(function: Callable[..., Any], *arguments: Hashable) -> Any:
    # A tensor made in inference mode could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return function(*arguments)


@use_kernel_forward_from_hub("MultiScaleDeformableAttention")
class GridSampledAttention(nn.Module):
    """Deformable attention by `grid_sample`, with the arguments of the Hub's kernel."""

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: SpatialShapes,
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Attends as [`MultiScaleDeformableAttention`]; in `sampling_locations`, 0 and 1 are a level's edges.

        The sizes and starts of the levels as tensors, and `im2col_step`, are for the kernel alone.
        """
        batch_size, _, num_heads, head_dim = value.shape
        # `grid_sample` has a level's edges at -1 and 1; (B * heads, N, levels, points, 2).
        grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
        sampled = []
        for level, maps in enumerate(value.split([height * width for height, width in value_spatial_shapes_list], 1)):
            # With a single image the maps would be a view, of which `grid_sample` makes NaN in half precision.
            maps = maps.permute(0, 2, 3, 1).flatten(0, 1).contiguous().unflatten(2, value_spatial_shapes_list[level])
            sampled.append(F.grid_sample(maps, grids[:, :, level], padding_mode="zeros", align_corners=False))
        weights = attention_weights.flatten(3).transpose(1, 2).flatten(0, 1)[:, None]
        attended = (torch.cat(sampled, dim=-1) * weights).sum(dim=-1)
        return attended.view(batch_size, num_heads * head_dim, -1).transpose(1, 2)


class MultiScaleDeformableAttention(nn.Module):
    """Weighted sums of values sampled at points of several levels, bilinearly, with zeros outside."""

    def __init__(self) -> None:
        super().__init__()
        self.on_accelerators = GridSampledAttention()

    def forward(
        self, value: Tensor, spatial_shapes: SpatialShapes, sampling_positions: Tensor, attention_weights: Tensor
    ) -> Tensor:
        """Attends.

        Args:
            value (`Tensor` of shape `(B, S, heads, d)`): pixels of all levels, level after level.
            spatial_shapes (`Sequence[tuple[int, int]]`): height and width of each level.
            sampling_positions (`Tensor` of shape `(B, N, heads, levels, points, 2)`): (x, y) in pixels of each level,
                from the center of its first pixel; at least in float32, whatever the dtype of `value`.
            attention_weights (`Tensor` of shape `(B, N, heads, levels, points)`): weight of each point.

        Returns:
            `Tensor` of shape `(B, N, heads * d)`, of the dtype of `value`.
        """
        if value.device.type == "cpu":
            sizes = [length for shape in spatial_shapes for length in shape]
            return attend_by_bags(value, sampling_positions, attention_weights, sizes)
        return self.attend_on_accelerators(value, spatial_shapes, sampling_positions, attention_weights)

    def attend_on_accelerators(
        self, value: Tensor, spatial_shapes: SpatialShapes, sampling_positions: Tensor, attention_weights: Tensor
    ) -> Tensor:
        """The form for accelerators, on any device; arguments and result as in [`forward`]."""
        dtype = torch.promote_types(value.dtype, sampling_positions.dtype)
        sizes, starts = constant(_sizes_and_starts, tuple(spatial_shapes), value.device)
        attended = self.on_accelerators(
            value.to(dtype),
            sizes,
            spatial_shapes,
            starts,
            (sampling_positions.to(dtype) + 0.5) / sizes.flip(1)[:, None],
            attention_weights.to(dtype),
            im2col_step=value.shape[0],
        )
        return attended.to(value.dtype)


def level_sizes(spatial_shapes: SpatialShapes, device: torch.device) -> Tensor:
    """Height and width of each level, int64 `(levels, 2)`, made on the device itself."""
    lengths = [torch.full((), length, device=device) for shape in spatial_shapes for length in shape]
    return torch.stack(lengths).unflatten(0, (-1, 2))


def _sizes_and_starts(spatial_shapes: SpatialShapes, device: torch.device) -> tuple[Tensor, Tensor]:
    sizes = level_sizes(spatial_shapes, device)
    num_pixels = sizes.prod(dim=1)
    return sizes, num_pixels.cumsum(dim=0) - num_pixels


class _Table:
    """An image's values as the rows of a table, in which each level has margins of zeros.

    The margins take in whatever lies outside, so that points there need neither masks nor gradients of their own. A
    row's left margin is also the right margin of the row before.

    Points are columns of length `heads * levels * points`, so that whatever depends on the level is one vector.
    """

    def __init__(self, lengths: Sequence[int], num_heads: int, num_points: int) -> None:
        self.spatial_shapes = list(zip(lengths[::2], lengths[1::2], strict=True))
        self.num_heads = num_heads
        self.num_points = num_points
        self.widths = [width + MARGIN for _, width in self.spatial_shapes]
        sizes = [
            (shape[0] + 2 * MARGIN) * width for shape, width in zip(self.spatial_shapes, self.widths, strict=True)
        ]
        *self.starts, self.end = accumulate(sizes, initial=0)
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


@torch.library.custom_op("mtaclip::deformable_attention", mutates_args=())
def attend_by_bags(value: Tensor, positions: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """The form for CPUs: products of sparse matrices with the values.

    Arguments and result as in [`MultiScaleDeformableAttention.forward`]; `sizes` are height and width of each level.
    """
    table = _Table(sizes, value.shape[2], positions.shape[4])
    tables = table.fill(value)
    bags = _all_bags(table, table.locate(positions, tables.dtype), weights)
    attended = [
        F.embedding_bag(indices, rows, per_sample_weights=shares, mode="sum")
        for rows, (indices, shares) in zip(tables, bags, strict=True)
    ]
    return torch.stack(attended).view(*positions.shape[:2], value.shape[2:].numel()).to(value.dtype)


@attend_by_bags.register_fake
def _(value: Tensor, positions: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    return value.new_empty((*positions.shape[:2], value.shape[2] * value.shape[3]))


@torch.library.custom_op("mtaclip::deformable_attention_backward", mutates_args=())
def _gradients_by_bags(
    gradient: Tensor, value: Tensor, positions: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    table = _Table(sizes, value.shape[2], positions.shape[4])
    tables = table.fill(value)
    located = table.locate(positions, tables.dtype)
    bags = list(_all_bags(table, located, weights))
    gradients = gradient.to(tables.dtype).unflatten(2, (weights.shape[2], -1)).flatten(1, 2).contiguous()
    value_gradient = table.pixels(_spread(gradients, bags, tables), value.dtype)
    products = torch.stack([_products(*image) for image in zip(gradients, bags, tables, strict=True)], dim=1)
    position_gradient, weight_gradient = _point_gradients(products, located, weights)
    return value_gradient, position_gradient.to(positions.dtype), weight_gradient


@_gradients_by_bags.register_fake
def _(
    gradient: Tensor, value: Tensor, positions: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in (value, positions, weights))


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients_by_bags(gradient, *ctx.saved_tensors, ctx.sizes), None


attend_by_bags.register_autograd(_differentiate, setup_context=_keep_inputs)


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
    ends, rows_of_bags = _bag_ends(indices), indices.flatten()
    if torch.backends.mkl.is_available():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
            matrix = torch.sparse_csr_tensor(
                ends, rows_of_bags, shares.flatten(), size=(len(indices), len(rows)), check_invariants=False
            )
        products = torch.sparse.sampled_addmm(matrix, gradient, rows.T, beta=0, out=matrix).values()
    else:
        # They are the gradients of the bags' shares.
        bags = torch.arange(len(indices), dtype=torch.int32).repeat_interleave(indices.shape[1])
        differentiate = torch.ops.aten._embedding_bag_per_sample_weights_backward
        products = differentiate(gradient, rows, rows_of_bags, ends[:-1], bags, mode=0)
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


__all__ = [
    "GridSampledAttention",
    "MultiScaleDeformableAttention",
    "attend_by_bags",
    "constant",
    "level_sizes",
]
