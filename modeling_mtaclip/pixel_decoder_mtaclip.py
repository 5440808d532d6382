# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The pixel decoder of MTA-CLIP: multi-scale deformable attention over three levels and a feature pyramid on top.

It is the one of Mask2Former (arXiv 2112.01527, Sec. 3.2.1), whose attention comes from Deformable DETR (arXiv
2010.04159). Everything here stays channels-last: a feature map and a sequence of its pixels are the same memory.
"""

import math

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_mtaclip import MTAClipConfig
from .deformable_attention_mtaclip import MultiScaleDeformableAttention, SpatialShapes, constant, level_sizes


NUM_LEVELS = 3
POSITION_TEMPERATURE = 10_000


def sine_position_embedding(
    height: int, width: int, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Sine-cosine embedding of pixel positions, rows first, normalized to 2π (DETR, arXiv 2005.12872, appendix A.4).

    Of shape `(1, height * width, hidden_size)`: the first half of the channels (a multiple of 4) encodes y, the second
    x. The computation is in float32, whatever `dtype`.
    """
    half = hidden_size // 2
    channels = torch.arange(half, device=device) // 2
    frequencies = POSITION_TEMPERATURE ** (-2 * channels.float() / half)

    def encode(length: int) -> Tensor:
        positions = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        positions = positions / (length + 1e-6) * (2 * math.pi)
        angles = positions[:, None] * frequencies
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat((rows, columns), dim=-1).reshape(1, height * width, hidden_size).to(dtype)


def to_sequence(feature_map: Tensor) -> Tensor:
    """`(B, C, H, W)` -> `(B, H * W, C)`; no copy when the map is channels-last in memory."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def to_feature_map(sequence: Tensor, height: int, width: int) -> Tensor:
    """`(B, H * W, C)` -> `(B, C, H, W)`, channels-last in memory; no copy."""
    return sequence.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class MTAClipDeformableAttention(nn.Module):
    """Self-attention in which each pixel looks at a few learned points on every level (Deformable DETR, Eq. 3)."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        self.num_heads = config.encoder_attention_heads
        self.num_points = config.encoder_num_points
        samples = self.num_heads * NUM_LEVELS * self.num_points
        self.sampling_offsets = nn.Linear(config.hidden_size, samples * 2)
        self.attention_weights = nn.Linear(config.hidden_size, samples)
        self.value_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.output_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention = MultiScaleDeformableAttention()

    def initial_offsets(self) -> Tensor:
        """Bias of `sampling_offsets` at the start: head `h` looks in direction `h`, point `p` at `p + 1` pixels."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[:, None]
        return offsets.expand(self.num_heads, NUM_LEVELS, self.num_points, 2).flatten()

    def forward(
        self, hidden_states: Tensor, position_embeddings: Tensor, centers: Tensor, spatial_shapes: SpatialShapes
    ) -> Tensor:
        """Attends from the `(B, S, D)` pixels of all levels, with `(1, S, D)` position embeddings, to themselves.

        `centers` `(S, levels, 2)` say where each pixel lies on each level, (x, y) in pixels of that level, from the
        center of its first pixel; `spatial_shapes` are height and width of each level.
        """
        batch_size, length, _ = hidden_states.shape
        queries = hidden_states + position_embeddings
        samples = (batch_size, length, self.num_heads, NUM_LEVELS, self.num_points)
        weights = _softmax_of_few(self.attention_weights(queries).view(*samples[:3], -1))
        weights = weights.to(hidden_states.dtype).view(samples)
        offsets = self.sampling_offsets(queries).view(*samples[:3], -1)
        # One long vector for each pixel, because short ones are slow to add.
        positions = offsets + centers.repeat_interleave(self.num_points, dim=1).flatten(1)[:, None]
        values = self.value_proj(hidden_states).view(batch_size, length, self.num_heads, -1)
        return self.output_proj(self.attention(values, spatial_shapes, positions.view(*samples, 2), weights))


class MTAClipPixelDecoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention and a feed-forward network, each with a residual and then a LayerNorm."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        self.self_attn = MTAClipDeformableAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.fc1 = nn.Linear(config.hidden_size, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self, hidden_states: Tensor, position_embeddings: Tensor, centers: Tensor, spatial_shapes: SpatialShapes
    ) -> Tensor:
        attended = self.self_attn(hidden_states, position_embeddings, centers, spatial_shapes)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        feed_forward = self.fc2(nn.functional.relu(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + feed_forward)


class MTAClipPixelDecoder(nn.Module):
    """Turns the backbone's four feature maps into mask features (stride 4) and multi-scale features (32, 16, 8)."""

    def __init__(self, config: MTAClipConfig, feature_channels: list[int]) -> None:
        super().__init__()
        size = config.hidden_size
        # From stride 32 to stride 8, the order in which the levels are concatenated.
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, size, kernel_size=1), nn.GroupNorm(config.encoder_norm_groups, size))
            for channels in reversed(feature_channels[1:])
        )
        self.level_embed = nn.Parameter(torch.empty(NUM_LEVELS, size))
        self.layers = nn.ModuleList(MTAClipPixelDecoderLayer(config) for _ in range(config.encoder_layers))
        self.lateral_projection = nn.Sequential(
            nn.Conv2d(feature_channels[0], size, kernel_size=1, bias=False),
            nn.GroupNorm(config.encoder_norm_groups, size),
        )
        self.output_projection = nn.Sequential(
            nn.Conv2d(size, size, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(config.encoder_norm_groups, size),
            nn.ReLU(),
        )
        self.mask_projection = nn.Conv2d(size, config.mask_feature_size, kernel_size=1)

    def forward(self, feature_maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """From maps at strides 4, 8, 16, 32 to mask features `(B, mask_feature_size, H / 4, W / 4)` and multi-scale
        features, three maps `(B, D, h, w)` at strides 32, 16, 8, all channels-last in memory."""
        feature_maps = [maps.contiguous(memory_format=torch.channels_last) for maps in feature_maps]
        projections = zip(self.input_projections, reversed(feature_maps[1:]), strict=True)
        levels = [projection(maps) for projection, maps in projections]
        spatial_shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        hidden_states = torch.cat([to_sequence(level) for level in levels], dim=1)
        size, dtype, device = hidden_states.shape[-1], hidden_states.dtype, hidden_states.device
        positions = [
            constant(sine_position_embedding, *shape, size, dtype, device) + level
            for shape, level in zip(spatial_shapes, self.level_embed, strict=True)
        ]
        position_embeddings = torch.cat(positions, dim=1)
        centers = constant(_pixel_centers, spatial_shapes, torch.promote_types(dtype, torch.float32), device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings, centers, spatial_shapes)

        sequences = hidden_states.split([height * width for height, width in spatial_shapes], dim=1)
        multi_scale_features = [
            to_feature_map(sequence, *shape) for sequence, shape in zip(sequences, spatial_shapes, strict=True)
        ]
        lateral = self.lateral_projection(feature_maps[0])
        upsampled = nn.functional.interpolate(
            multi_scale_features[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
        )
        mask_features = self.mask_projection(self.output_projection(lateral + upsampled))
        return mask_features, multi_scale_features


def _pixel_centers(spatial_shapes: SpatialShapes, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where the pixels of all levels lie on each level, `(S, levels, 2)`: (x, y) in pixels of that level."""
    points = []
    for height, width in spatial_shapes:
        y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        points.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(points)[:, None] * level_sizes(spatial_shapes, device).flip(1) - 0.5


def _softmax_of_few(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 at least; `torch.softmax` takes four times longer for a dozen."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shares = (logits - logits.detach().amax(dim=-1, keepdim=True)).exp()
    return shares / shares.sum(dim=-1, keepdim=True)


__all__ = ["MTAClipPixelDecoder", "sine_position_embedding", "to_feature_map", "to_sequence"]
