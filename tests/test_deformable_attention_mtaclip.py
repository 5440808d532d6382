# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
import inspect
import math
from functools import partial

import pytest
import torch
from transformers.models.deformable_detr import modeling_deformable_detr as deformable_detr
from transformers.models.mask2former import modeling_mask2former as mask2former

from modeling_mtaclip.deformable_attention_mtaclip import (
    GridSampledAttention,
    MultiScaleDeformableAttention,
    attend_by_bags,
)


NEEDS_MKL = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch was built without MKL")
ATTENTION = MultiScaleDeformableAttention()
SHAPES = [[(3, 4), (5, 2)], [(6, 9), (1, 1), (2, 3)], [(4, 4)]]


def attention(value, spatial_shapes, locations, weights, by=ATTENTION):
    """At locations as Mask2Former has them: 0 and 1 are a level's edges."""
    sizes = torch.tensor([(width, height) for height, width in spatial_shapes])
    return by(value, spatial_shapes, locations * sizes[:, None] - 0.5, weights)


ON_ACCELERATORS = partial(attention, by=ATTENTION.attend_on_accelerators)


def attention_inputs(spatial_shapes, dtype=torch.float32, batch_size=2, queries=7, heads=2, head_dim=5, points=3):
    length = sum(height * width for height, width in spatial_shapes)
    samples = (batch_size, queries, heads, len(spatial_shapes), points)
    value = torch.randn(batch_size, length, heads, head_dim, dtype=dtype)
    # A third of the points lies outside.
    locations = torch.rand(*samples, 2, dtype=torch.promote_types(dtype, torch.float32)) * 1.5 - 0.25
    weights = torch.rand(samples, dtype=dtype)
    return [value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()]


def with_gradients(attend, spatial_shapes, value, locations, weights):
    result = attend(value, spatial_shapes, locations, weights)
    direction = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    return result, *torch.autograd.grad(result, (value, locations, weights), direction)


@pytest.mark.parametrize("mkl", [False, pytest.param(True, marks=NEEDS_MKL)])
@pytest.mark.parametrize("spatial_shapes", SHAPES)
def test_equal_to_mask2former(spatial_shapes, mkl, monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    inputs = attention_inputs(spatial_shapes, head_dim=32)
    ours = with_gradients(attention, spatial_shapes, *inputs)
    theirs = with_gradients(mask2former.multi_scale_deformable_attention, spatial_shapes, *inputs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spatial_shapes", SHAPES)
def test_both_forms_agree(spatial_shapes):
    inputs = attention_inputs(spatial_shapes, torch.float64)
    bags = with_gradients(attention, spatial_shapes, *inputs)
    grids = with_gradients(ON_ACCELERATORS, spatial_shapes, *inputs)
    for bag, grid in zip(bags, grids, strict=True):
        torch.testing.assert_close(bag, grid)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attend", [attention, ON_ACCELERATORS])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_half_precision(attend, dtype, batch_size):
    """Positions are as exact as in float32: halves of values that a half holds exactly give the same result."""
    shapes = [(30, 40), (15, 20)]
    value, locations, weights = (part.detach() for part in attention_inputs(shapes, batch_size=batch_size))
    halves = [value.to(dtype), locations, weights.to(dtype)]
    exact = [half.float().requires_grad_() for half in halves]
    halves = with_gradients(attend, shapes, *(half.requires_grad_() for half in halves))
    assert [half.dtype for half in halves] == [dtype, dtype, torch.float32, dtype]
    for half, full in zip(halves, with_gradients(attention, shapes, *exact), strict=True):
        torch.testing.assert_close(half.float(), full, rtol=0.01, atol=0.01 * full.abs().max().item())


@pytest.mark.parametrize("attend", [attention, ON_ACCELERATORS])
def test_autocast(attend):
    inputs = attention_inputs(SHAPES[0])
    expected = with_gradients(attention, SHAPES[0], *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = with_gradients(attend, SHAPES[0], *inputs)
    torch.testing.assert_close(actual, expected)


def test_points_far_outside_and_undefined():
    value, locations, weights = attention_inputs(SHAPES[0], queries=5)
    with torch.no_grad():
        locations[:, 0] = 1e9
        locations[:, 1] = -1e9
        locations[:, 2] = math.inf
        locations[:, 3] = math.nan
    result, *gradients = with_gradients(attention, SHAPES[0], value, locations, weights)
    assert not result[:, :3].any()
    assert result[:, 3].isnan().all()
    assert result[:, 4].isfinite().all()
    assert not gradients[1][:, :3].any()
    assert not gradients[2][:, :3].any()


def test_points_on_edges():
    value, locations, weights = attention_inputs([(2, 2)], torch.float64, batch_size=1, queries=4, heads=1, points=1)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        locations.copy_(corners.view(locations.shape))
    # At a corner of the level a quarter of the sample is the pixel there, and the rest is outside.
    expected = value[0, :, 0] * weights[0, :, 0, 0] / 4
    torch.testing.assert_close(attention(value, [(2, 2)], locations, weights)[0], expected)


def test_non_contiguous_inputs():
    value, locations, weights = attention_inputs(SHAPES[0])
    expected = with_gradients(attention, SHAPES[0], value, locations, weights)
    strided = [
        torch.stack((part, part), dim=-1)[..., 0].detach().requires_grad_() for part in (value, locations, weights)
    ]
    torch.testing.assert_close(with_gradients(attention, SHAPES[0], *strided), expected)


def test_no_queries():
    value, locations, weights = attention_inputs(SHAPES[0], queries=0)
    result, *gradients = with_gradients(attention, SHAPES[0], value, locations, weights)
    assert result.shape == (2, 0, 10)
    assert not gradients[0].any()


def test_compiled_and_exported_graphs_keep_the_operator():
    torch.compiler.reset()
    inputs = attention_inputs(SHAPES[0])
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        with_gradients(compiled, SHAPES[0], *inputs), with_gradients(attention, SHAPES[0], *inputs)
    )
    value, locations, weights = (part.detach() for part in inputs)
    program = torch.export.export(ATTENTION, (value, SHAPES[0], locations, weights))
    assert torch.ops.mtaclip.deformable_attention.default in {node.target for node in program.graph.nodes}


def test_the_operators_are_what_they_declare():
    inputs = attention_inputs(SHAPES[0])
    torch.library.opcheck(attend_by_bags, (*inputs, [length for shape in SHAPES[0] for length in shape]))


def test_the_kernel_of_the_hub_takes_the_place_of_grid_sample():
    """It is called with what Deformable DETR's module is called with."""
    theirs = deformable_detr.MultiScaleDeformableAttention
    assert inspect.signature(GridSampledAttention.forward).parameters.keys() == (
        inspect.signature(theirs.forward).parameters.keys()
    )
    assert getattr(GridSampledAttention, "kernel_layer_name", None) == getattr(theirs, "kernel_layer_name", None)
    ours = MultiScaleDeformableAttention()
    ours.on_accelerators = theirs()
    inputs = attention_inputs(SHAPES[1])
    torch.testing.assert_close(
        attention(*inputs[:1], SHAPES[1], *inputs[1:], by=ours.attend_on_accelerators),
        attention(*inputs[:1], SHAPES[1], *inputs[1:]),
    )
