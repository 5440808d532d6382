# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Backbones: CLIP's two image encoders, and what turns any backbone into four feature maps at strides 4, 8, 16 and 32.

`AutoBackbone` of transformers knows neither CLIP's ResNet nor CLIP's vision transformer; here they are, registered. Of
every backbone, ours or not, channels and strides are read from one run without data. Backbones with one stride (vision
transformers) get a feature pyramid.
"""

import math
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoBackbone, AutoConfig, CLIPVisionConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPPreTrainedModel, CLIPVisionEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs


FEATURE_STRIDES = (4, 8, 16, 32)
# Images without data show what a backbone returns. They are not square, so that backbones of one size are noticed.
# Those that take odd sides take all; the others are tried with multiples of usual strides and patches. The odd sides
# are long, so that strides are found by rounding.
ODD_IMAGE_SIZE, EVEN_IMAGE_SIZE = (2243, 3367), (448, 672)
# After which of twelve transformer layers the authors read feature maps (in their code, counted from 0: 3, 5, 7, 11).
VIT_LAYERS = (4, 6, 8, 12)


def spread_stages(stage_names: list[str]) -> list[str]:
    """Four stages of a backbone to read feature maps from, of all in its config.

    These are the last four; of many stages, which are the layers of a vision transformer, the 4th, 6th, 8th and 12th
    of twelve, or those at the same share of the depth.
    """
    stages = [name for name in stage_names if name != "stem"]
    if len(stages) > len(FEATURE_STRIDES):
        spread = [stages[math.floor(layer * len(stages) / max(VIT_LAYERS) + 0.5) - 1] for layer in VIT_LAYERS]
        if len(set(spread)) == len(FEATURE_STRIDES):
            return spread
    return stages[-len(FEATURE_STRIDES) :]


@strict
class CLIPResNetBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`CLIPResNetBackbone`]; the defaults are CLIP RN50's.

    Args:
        num_channels (`int`, defaults to 3): Channels of the images.
        width (`int`, defaults to 64): Channels behind the stem; stage `i` returns `width * 2 ** (i + 1)`.
        layers (`list[int]`, defaults to `(3, 4, 6, 3)`): Blocks of the four stages; `(3, 4, 23, 3)` for RN101.
        out_features (`list[str]`, *optional*):
            Stages whose feature maps are returned, among `stem`, `stage1` … `stage4`; by default `stage1` … `stage4`.
    """

    model_type = "clip_resnet"

    num_channels: int = 3
    width: int = 64
    layers: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        _set_stages(self, len(self.layers), kwargs)
        super().__post_init__(**kwargs)


@strict
class CLIPViTBackboneConfig(BackboneConfigMixin, CLIPVisionConfig):
    r"""
    Configuration of [`CLIPViTBackbone`]: the fields of `CLIPVisionConfig`, and:

    Args:
        out_features (`list[str]`, *optional*):
            Layers whose states are returned, `stem` (before the first) or `stage1` … By default the 4th, 6th, 8th and
            12th of twelve, or those at the same share of the depth.
    """

    model_type = "clip_vit"

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        _set_stages(self, self.num_hidden_layers, kwargs)
        super().__post_init__(**kwargs)


def _set_stages(config: PreTrainedConfig, depth: int, kwargs: dict[str, Any]) -> None:
    config.stage_names = ["stem", *(f"stage{index + 1}" for index in range(depth))]
    out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
    if out_features is None and out_indices is None:
        out_features = spread_stages(config.stage_names)
    config.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)


class CLIPResNetBlock(nn.Module):
    """Bottleneck of CLIP's ResNet, which halves the resolution by average pooling instead of strided convolutions."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` -> `(B, 4 * width, H / stride, W / stride)`."""
        residual = self.bn1(self.conv1(maps)).relu_()
        residual = self.bn2(self.conv2(residual)).relu_()
        residual = self.bn3(self.conv3(self.pool(residual)))
        if self.downsample is not None:
            maps = self.downsample(self.pool(maps))
        return (residual + maps).relu_()


class CLIPResNetBackbone(BackboneMixin, PreTrainedModel):
    """The ResNet of CLIP (arXiv 2103.00020, Sec. 2.4) without its attention pool, with OpenAI's parameter names."""

    config: CLIPResNetBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    _no_split_modules = ["CLIPResNetBlock"]  # noqa: RUF012

    def __init__(self, config: CLIPResNetBackboneConfig) -> None:
        super().__init__(config)
        width = config.width
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(2)
        self.num_features = [width]
        for index, num_blocks in enumerate(config.layers):
            stage_width = width * 2**index
            blocks = []
            for block in range(num_blocks):
                in_channels = stage_width * CLIPResNetBlock.expansion if block else self.num_features[-1]
                blocks.append(CLIPResNetBlock(in_channels, stage_width, stride=2 if index and not block else 1))
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
            self.num_features.append(stage_width * CLIPResNetBlock.expansion)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Feature maps `(B, C_i, H / s_i, W / s_i)` of `(B, num_channels, H, W)` images."""
        maps = self.bn1(self.conv1(pixel_values)).relu_()
        maps = self.bn2(self.conv2(maps)).relu_()
        maps = self.pool(self.bn3(self.conv3(maps)).relu_())
        stages = {"stem": maps}
        for index in range(len(self.config.layers)):
            maps = getattr(self, f"layer{index + 1}")(maps)
            stages[f"stage{index + 1}"] = maps
        return BackboneOutput(feature_maps=tuple(stages[name] for name in self.out_features))


class CLIPViTEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patches, class token and positions; the table of positions is interpolated to the size of the image."""

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """The table for an image, `(1, 1 + patches, hidden_size)`, resized bilinearly as the authors do."""
        positions = self.position_embedding.weight
        side = math.isqrt(len(positions) - 1)
        grid = positions[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
        size = (height // self.patch_size, width // self.patch_size)
        grid = nn.functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        return torch.cat((positions[None, :1], grid.flatten(2).transpose(1, 2)), dim=1)


class CLIPViTBackbone(BackboneMixin, CLIPPreTrainedModel):
    """CLIP's vision transformer without pooling and projection, with transformers' parameter names."""

    config: CLIPViTBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: CLIPViTBackboneConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.embeddings = CLIPViTEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config)
        self.post_init()

    @capture_outputs
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Feature maps `(B, hidden_size, H / patch_size, W / patch_size)` of `(B, num_channels, H, W)` images."""
        grid = tuple(side // self.config.patch_size for side in pixel_values.shape[-2:])
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding=True))
        stages = [hidden_states]
        for layer in self.encoder.layers:
            hidden_states = layer(hidden_states, None, **kwargs)
            stages.append(hidden_states)
        maps = tuple(
            # (B, 1 + H * W, C) -> (B, C, H, W), channels-last in memory
            states[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)
            for name, states in zip(self.stage_names, stages, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(feature_maps=maps)


@dataclass
class FeatureMapShapes:
    """What a backbone returns, and what it takes."""

    channels: list[int]
    strides: list[int]
    # Whether the maps are `(B, H, W, C)`, as some of timm's are.
    channels_last: bool
    # What the sides of images must be multiples of.
    image_divisor: int
    # On which no map depends, like the mask tokens that self-supervised training left behind.
    unused_parameters: list[str]

    @property
    def single_stride(self) -> int | None:
        """The stride that all four maps share, or `None`."""
        return self.strides[0] if len(set(self.strides)) == 1 else None


def copy_backbone_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy with lists in place of tuples, as JSON gives them: some backbones add lists to fields of their config."""
    copied = deepcopy(config)
    for name, value in list(vars(copied).items()):
        if isinstance(value, tuple):
            setattr(copied, name, list(value))
    return copied


# Gradients show which parameters are used, also where models are built for inference.
@torch.inference_mode(False)
@torch.enable_grad()
def build_backbone(config: PreTrainedConfig) -> tuple[nn.Module, FeatureMapShapes]:
    """Builds any backbone of `AutoBackbone` with new weights, and reads from one run without data what it returns.

    Raises:
        ValueError: a backbone that can't be used, with the reason.
    """
    backbone = _build(config).eval()
    name = getattr(config, "backbone", None) or config.model_type
    parameters = {key: _without_data(value).requires_grad_() for key, value in backbone.named_parameters()}
    size, maps = _probe(backbone, name, parameters)
    channels, shapes = list(backbone.channels), [tuple(each.shape) for each in maps]
    if len(shapes) != len(FEATURE_STRIDES):
        raise ValueError(
            f"The backbone {name!r} returns {len(shapes)} feature maps (channels {channels}), but "
            f"{len(FEATURE_STRIDES)} are needed. Set `out_features` or `out_indices` in `backbone_config`, e.g. "
            f"`out_features={spread_stages(backbone.stage_names)}`."
        )
    channels_last = [shape[1] for shape in shapes] != channels and [shape[-1] for shape in shapes] == channels
    strides = [round(size[0] / shape[1 if channels_last else 2]) for shape in shapes]
    if tuple(strides) != FEATURE_STRIDES and len(set(strides)) > 1:
        raise ValueError(
            f"The backbone {name!r} returns feature maps at the strides {strides}, but needed are either "
            f"{list(FEATURE_STRIDES)} or four times the same stride (a vision transformer). Choose other stages with "
            f"`out_features` or `out_indices` in `backbone_config`, among {list(backbone.stage_names)}."
        )
    image_divisor = 1 if size == ODD_IMAGE_SIZE and len(set(strides)) > 1 else max(strides)
    unused = _unused_parameters(parameters, maps)
    return backbone.train(), FeatureMapShapes(channels, strides, channels_last, image_divisor, unused)


def _build(config: PreTrainedConfig) -> nn.Module:
    if config.model_type != "timm_backbone":
        return AutoBackbone.from_config(config)
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"The backbone {config.backbone!r} needs timm: pip install timm") from error
    pretrained_config = timm.get_pretrained_cfg(config.backbone)
    if pretrained_config is not None and pretrained_config.fixed_input_size:
        # timm's transformers take images of any size if asked to; other models don't know the argument.
        with suppress(TypeError):
            return AutoBackbone.from_config(config, dynamic_img_size=True)
    return AutoBackbone.from_config(config)


def _probe(
    backbone: nn.Module, name: str, parameters: dict[str, Tensor]
) -> tuple[tuple[int, int], tuple[Tensor, ...]]:
    """The size of image that a backbone takes, and the feature maps of such an image, all without data."""
    tensors = parameters | {key: _without_data(value) for key, value in backbone.named_buffers()}
    for size in (ODD_IMAGE_SIZE, EVEN_IMAGE_SIZE):
        try:
            with torch.device("meta"):
                images = torch.empty(1, backbone.config.num_channels, *size, dtype=backbone.dtype)
                return size, tuple(functional_call(backbone, tensors, (images,)).feature_maps)
        except Exception as error:  # every backbone has its own kinds
            reason = str(error).strip() or type(error).__name__
    raise ValueError(
        f"The backbone {name!r} can't be used: it fails on an image of {size} pixels ({reason}). A backbone must take "
        "images of any size."
    )


def _unused_parameters(parameters: dict[str, Tensor], maps: tuple[Tensor, ...]) -> list[str]:
    directions = [torch.empty_like(each) for each in maps]
    gradients = torch.autograd.grad(maps, list(parameters.values()), directions, allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def _without_data(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def enlarge_images(pixel_values: Tensor, divisor: int) -> Tensor:
    """Enlarges `(B, C, H, W)` images, if need be, so that their sides are multiples of `divisor`."""
    return _resize(pixel_values, [_divide_up(side, divisor) * divisor for side in pixel_values.shape[-2:]])


class MTAClipFeaturePyramid(nn.Module):
    """Makes four maps of one stride into maps at strides 4, 8, 16 and 32, as the authors do for CLIP's ViT.

    Each map is normalized, and then enlarged by transposed convolutions or reduced by max pooling. That changes its
    size by powers of two; where the stride is no power of two (patches of 14 pixels), the map is resampled.
    """

    def __init__(self, channels: list[int], stride: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            _pyramid_level(size, round(math.log2(stride / target)))
            for size, target in zip(channels, FEATURE_STRIDES, strict=True)
        )

    def forward(self, feature_maps: list[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """From maps `(B, C_i, h, w)` to `(B, C_i, ceil(height / s), ceil(width / s))` for the strides `s` 4, 8, 16 and
        32; height and width are those of the images before [`enlarge_images`]."""
        return [
            _resize(level(maps), [_divide_up(side, stride) for side in image_size])
            for level, maps, stride in zip(self.levels, feature_maps, FEATURE_STRIDES, strict=True)
        ]


def _pyramid_level(channels: int, doublings: int) -> nn.Sequential:
    """Doubles the sides of a map so many times, or halves them if the number is negative."""
    layers: list[nn.Module] = [nn.GroupNorm(1, channels)]
    for index in range(doublings):
        if index:
            layers += [nn.BatchNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2))
    if doublings < 0:
        layers.append(nn.MaxPool2d(2**-doublings, ceil_mode=True))
    return nn.Sequential(*layers)


def _divide_up(number: int, divisor: int) -> int:
    return (number + divisor - 1) // divisor


def _resize(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[-2:]) == size:
        return maps
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def register_backbones() -> None:
    """Makes `AutoConfig` and `AutoBackbone` know the backbones of this file."""
    backbones = {CLIPResNetBackboneConfig: CLIPResNetBackbone, CLIPViTBackboneConfig: CLIPViTBackbone}
    for config, backbone in backbones.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoBackbone.register(config, backbone, exist_ok=True)


__all__ = ["CLIPResNetBackbone", "CLIPResNetBackboneConfig", "CLIPViTBackbone", "CLIPViTBackboneConfig"]
