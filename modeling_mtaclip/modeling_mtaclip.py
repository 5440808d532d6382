# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""MTA-CLIP for semantic segmentation: mask-text decoder, heads, and the two model classes.

The way of the data: image → backbone → pixel decoder → mask features and multi-scale features; class names → prompts →
frozen CLIP text encoder → text embeddings; mask queries and text queries together → mask-text decoder → heads.
"Sec." refers to the paper (arXiv 2407.21654).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .backbone_mtaclip import MTAClipFeaturePyramid, build_backbone, enlarge_images
from .classes_mtaclip import move_classes
from .configuration_mtaclip import NUM_FEATURE_MAPS, MTAClipConfig, tokenize_names
from .deformable_attention_mtaclip import constant
from .loss_mtaclip import MTAClipCriterion
from .pixel_decoder_mtaclip import (
    NUM_LEVELS,
    MTAClipDeformableAttention,
    MTAClipPixelDecoder,
    sine_position_embedding,
    to_sequence,
)
from .text_model_mtaclip import MASKED, NO_TRAINING, MTAClipStoredTexts, MTAClipTextModel


logger = logging.get_logger(__name__)

# Which class of a saved folder's code each Auto class loads.
AUTO_MAP = {
    "AutoConfig": "configuration_mtaclip.MTAClipConfig",
    "AutoModel": "modeling_mtaclip.MTAClipModel",
    "AutoModelForSemanticSegmentation": "modeling_mtaclip.MTAClipForSemanticSegmentation",
}
NO_TEXT_ENCODER = (
    "This model has no text encoder to read other names with: it was made with `text_branch=False`, or saved for "
    "inference. Use the model that was trained with `text_branch=True`, as training saved it."
)


@dataclass
class MTAClipModelOutput(ModelOutput):
    """
    What [`MTAClipModel`] returns.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_queries + text_queries, hidden_size)`):
            Final states of the mask queries, followed by those of the text queries (context by context), after the
            decoder's LayerNorm.
        mask_features (`torch.FloatTensor` of shape `(batch_size, mask_feature_size, height / 4, width / 4)`):
            Features whose products with mask embeddings are mask logits; channels-last in memory.
        multi_scale_features (`tuple[torch.FloatTensor]` of shapes `(batch_size, hidden_size, height / s, width / s)`):
            What the decoder attends to, for the strides `s` 32, 16, 8.
        text_embeddings (`torch.FloatTensor` of shape `(batch_size, num_prompt_contexts, num_labels + 1, projection_dim)`, *optional*):
            CLIP embeddings of the class names and "no object" in every prompt context, the same for each image.
        normalized_states (`tuple[torch.FloatTensor]`, *optional*):
            States like `last_hidden_state`, before each decoder layer and after the last.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            States before the LayerNorm: the input of the decoder and the output of each layer.
        attentions, cross_attentions (`tuple[torch.FloatTensor]`, *optional*):
            Weights of each decoder layer's self-attention, and of its masked attention over pixels.
    """  # noqa: E501

    last_hidden_state: Tensor | None = None
    mask_features: Tensor | None = None
    multi_scale_features: tuple[Tensor, ...] | None = None
    text_embeddings: Tensor | None = None
    normalized_states: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class MTAClipForSemanticSegmentationOutput(ModelOutput):
    """
    What [`MTAClipForSemanticSegmentation`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Weighted sum of all losses, when `labels` are given.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels, height / 4, width / 4)`, *optional*):
            Score of each class at each pixel: sum over the queries of class probability times mask probability. For the
            exact scores at a larger size use `MTAClipImageProcessor.post_process_semantic_segmentation`.
        class_queries_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, num_labels + 1)`):
            Class logits of each query; the last one is "no object". With `class_mask_share`, the `num_labels` classes'
            own queries follow.
        masks_queries_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, height / 4, width / 4)`, *optional*):
            Mask logits of each query, followed by the class masks with `class_mask_share`.
        mask_text_similarity (`torch.FloatTensor` of shape `(batch_size, num_prompt_contexts, num_queries, num_labels + 1)`, *optional*):
            Cosine of each mask query with each class text, in every prompt context.
        text_embeddings (`torch.FloatTensor` of shape `(batch_size, num_prompt_contexts, num_labels + 1, projection_dim)`, *optional*):
            CLIP embeddings of the class names and "no object", the same for each image.
        auxiliary_predictions (`tuple[MTAClipForSemanticSegmentationOutput]`, *optional*):
            With `output_auxiliary_predictions=True`, class logits, mask logits and mask-text similarity before each
            decoder layer.
        loss_components (`dict[str, torch.FloatTensor]`, *optional*):
            The unweighted losses: `cross_entropy`, `mask`, `dice`, `contrastive` of the last layer, and those of
            auxiliary prediction `i` with the suffix `_i`.
        hidden_states, attentions, cross_attentions (`tuple[torch.FloatTensor]`, *optional*):
            As in [`MTAClipModelOutput`].
    """  # noqa: E501

    loss: Tensor | None = None
    logits: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    mask_text_similarity: Tensor | None = None
    text_embeddings: Tensor | None = None
    auxiliary_predictions: tuple["MTAClipForSemanticSegmentationOutput", ...] | None = None
    loss_components: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


class MTAClipAttention(nn.Module):
    """Multi-head attention (arXiv 1706.03762) through transformers' attention interface."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.head_dim = size // config.decoder_attention_heads
        self.is_causal = False
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from `(B, N, D)` queries to `(B, S, D)` keys and values; the mask `(B, 1, N, S)` is additive."""
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attended, weights = attend(
            self,
            self._split_heads(self.q_proj(queries)),
            self._split_heads(self.k_proj(keys)),
            self._split_heads(self.v_proj(values)),
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=0.0,
            **kwargs,
        )
        return self.out_proj(attended.flatten(2)), weights

    def _split_heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MTAClipDecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention and a feed-forward network, each followed by a LayerNorm (Sec. 3.2)."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        self.cross_attn = MTAClipAttention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.self_attn = MTAClipAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.fc1 = nn.Linear(config.hidden_size, config.decoder_feedforward_dim)
        self.fc2 = nn.Linear(config.decoder_feedforward_dim, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        query_positions: Tensor,
        pixel_keys: Tensor,
        pixel_states: Tensor,
        attention_mask: Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """New states of the `(B, N, D)` mask and text queries, which attend to the `(B, S, D)` pixels of one scale.

        Also the weights of self-attention and cross-attention, where the attention implementation gives them.
        `query_positions` are `(N, D)`; the `attention_mask` `(B, 1, N, S)` is added to the attention logits.
        """
        attended, cross_weights = self.cross_attn(
            hidden_states + query_positions, pixel_keys, pixel_states, attention_mask, **kwargs
        )
        hidden_states = self.cross_attn_layer_norm(hidden_states + attended)
        positioned = hidden_states + query_positions
        attended, self_weights = self.self_attn(positioned, positioned, hidden_states, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        feed_forward = self.fc2(nn.functional.relu(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + feed_forward), self_weights, cross_weights


class MTAClipMaskTextDecoder(nn.Module):
    """Decoder in which mask queries and text queries attend to the image and to each other (Sec. 3.2)."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_queries = config.num_queries
        self.mask_queries = nn.Parameter(torch.empty(config.num_queries, size))
        self.mask_query_positions = nn.Parameter(torch.empty(config.num_queries, size))
        if config.text_branch:
            self.text_projection = nn.Linear(config.text_config.projection_dim, size)
            self.query_layer_norm = nn.LayerNorm(size)
            text_shape = (config.num_prompt_contexts, config.num_labels + 1)
            self.text_query_positions = nn.Parameter(torch.empty(*text_shape, size))
        self.level_embed = nn.Parameter(torch.empty(NUM_LEVELS, size))
        self.layers = nn.ModuleList(MTAClipDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(size)
        hidden = (nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU())
        self.mask_embedder = nn.Sequential(*hidden, nn.Linear(size, config.mask_feature_size))

    def forward(
        self,
        mask_features: Tensor,
        multi_scale_features: list[Tensor],
        text_embeddings: Tensor | None,
        output_attentions: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Decodes mask features `(B, mask_feature_size, h, w)` and multi-scale features `(B, D, h_l, w_l)` with text
        embeddings `(C, K + 1, E)`, which are absent without text branch.

        Returns the states `(B, N, D)` before each layer and after the last, after the LayerNorm and before it; then
        each layer's weights of self-attention and of cross-attention, if asked for.
        """
        queries, positions = self._queries(text_embeddings)
        hidden_states = queries.expand(mask_features.shape[0], -1, -1)
        sizes = [maps.shape[-2:] for maps in multi_scale_features]
        levels = zip(multi_scale_features, self.level_embed, strict=True)
        values = [to_sequence(maps) + level for maps, level in levels]
        keys = [
            value + constant(sine_position_embedding, *size, value.shape[-1], value.dtype, value.device)
            for value, size in zip(values, sizes, strict=True)
        ]
        features = [_resize_features(mask_features, size) for size in sizes]
        all_states, normalized = [hidden_states], [self.layer_norm(hidden_states)]
        attentions, cross_attentions = [], []
        for index, layer in enumerate(self.layers):
            level = index % NUM_LEVELS
            attention_mask = self._attention_mask(normalized[-1], features[level])
            pixels = (keys[level], values[level], attention_mask)
            hidden_states, self_weights, cross_weights = layer(
                hidden_states, positions, *pixels, output_attentions=output_attentions, **kwargs
            )
            all_states.append(hidden_states)
            normalized.append(self.layer_norm(hidden_states))
            if output_attentions and self_weights is not None:
                attentions.append(self_weights)
                cross_attentions.append(cross_weights)
        return tuple(normalized), tuple(all_states), tuple(attentions), tuple(cross_attentions)

    def _queries(self, text_embeddings: Tensor | None) -> tuple[Tensor, Tensor]:
        if text_embeddings is None:
            return self.mask_queries, self.mask_query_positions
        text_queries = self.text_projection(text_embeddings).flatten(0, 1)
        queries = self.query_layer_norm(torch.cat((self.mask_queries.to(text_queries.dtype), text_queries)))
        positions = torch.cat((self.mask_query_positions, self.text_query_positions.flatten(0, 1)))
        return queries, positions.to(queries.dtype)

    @torch.no_grad()
    def _attention_mask(self, states: Tensor, features: Tensor) -> Tensor:
        """Keeps each query to the pixels of its own mask, or to none in particular when the mask is empty."""
        outside = self.mask_embedder(states) @ features < 0
        outside &= ~outside.all(dim=-1, keepdim=True)
        return outside[:, None].to(states.dtype) * MASKED


@torch.no_grad()
def _resize_features(mask_features: Tensor, size: torch.Size) -> Tensor:
    """Mask features at the size of one scale, `(B, D, h * w)`. Resizing is linear over pixels and mask logits are
    linear over channels, so that products with resized features are the resized mask logits."""
    return nn.functional.interpolate(mask_features, size=size, mode="bilinear", align_corners=False).flatten(2)


class MTAClipPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization shared by the models."""

    config: MTAClipConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["MTAClipDecoderLayer", "MTAClipPixelDecoderLayer", "MTAClipTextModel"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__(config)
        # Its fields may have changed since it was made, as by `from_pretrained(folder, id2label=...)`.
        config.check()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a model as `PreTrainedModel.from_pretrained` does, with the text encoder frozen.

        It keeps the classes that it was trained with; [`MTAClipForSemanticSegmentation.with_classes`] gives others.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        # Loading replaces all parameters by trainable ones.
        model.base_model.freeze()
        return loaded

    def train(self, mode: bool = True) -> "MTAClipPreTrainedModel":
        """Sets training or evaluation mode.

        Raises:
            ValueError: training mode of a model that was saved for inference.
        """
        if mode and self.config.stored_text_embeddings:
            raise ValueError(NO_TRAINING)
        return super().train(mode)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs: Any) -> None:
        """Sets the attention implementation; a convolutional backbone, which has none, is left as it is."""
        backbone = self.base_model.backbone
        if attn_implementation == "sdpa" and backbone is not None and not backbone._supports_sdpa:
            attn_implementation = {"": "sdpa", "text_config": "sdpa"}
        super().set_attn_implementation(attn_implementation, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves the model as `PreTrainedModel.save_pretrained` does, loadable by all Auto classes with remote code."""
        if self._auto_class is not None:
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: `_init_weights` overwrites no loaded weights.

        transformers assumes so of code outside its tree, and then skips modules without missing parameters of their
        own, also CLIP's layers, whose rules fill the parameters of their parts: what a checkpoint lacks of a text
        encoder would stay unset memory. There is no public way to say so.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)):
            super()._init_weights(module)
        elif isinstance(module, MTAClipDeformableAttention):
            init.zeros_(module.sampling_offsets.weight)
            init.copy_(module.sampling_offsets.bias, module.initial_offsets())
            init.zeros_(module.attention_weights.weight)
            init.zeros_(module.attention_weights.bias)
        elif isinstance(module, (MTAClipPixelDecoder, MTAClipMaskTextDecoder)):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter)
        elif isinstance(module, MTAClipTextModel):
            init.normal_(module.contexts, std=self.config.init_std)
            for name, value in module.packed_names().items():
                init.copy_(getattr(module, name), value)
        elif isinstance(module, MTAClipStoredTexts):
            # They come with the weights; nothing else would be right.
            init.constant_(module.text_embeddings, float("nan"))
        elif isinstance(module, MTAClipTextHead):
            init.constant_(module.gamma, self.config.text_gamma_init)


class MTAClipModel(MTAClipPreTrainedModel):
    """Backbone, pixel decoder, text branch and mask-text decoder, without heads.

    Args:
        config ([`MTAClipConfig`]): the architecture and the class names.

    Raises:
        ValueError: class names without token ids, or a backbone that can't be used.
    """

    _keys_to_ignore_on_load_unexpected = (r"^class_predictor\.", r"^text_head\.")

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__(config)
        self.backbone, self.feature_pyramid = None, None
        self.gradient_checkpointing = False
        self.feature_channels = config.feature_channels
        if config.backbone_config is not None:
            if config.backbone_config._attn_implementation == "sdpa":
                # Asked for by name, it is an error for a convolutional backbone; `None` takes it where it exists. The
                # config is the one place for it: transformers writes there too which attention it chose.
                config.backbone_config._attn_implementation = None
            self.backbone, self.map_shapes = build_backbone(config.backbone_config)
            self.feature_channels = self.map_shapes.channels
            if self.map_shapes.single_stride is not None:
                self.feature_pyramid = MTAClipFeaturePyramid(self.feature_channels, self.map_shapes.single_stride)
        self.pixel_decoder = MTAClipPixelDecoder(config, list(self.feature_channels))
        if config.text_branch:
            texts = MTAClipStoredTexts if config.stored_text_embeddings else MTAClipTextModel
            self.text_model = texts(config)
        self.decoder = MTAClipMaskTextDecoder(config)
        self.post_init()
        self.freeze()

    def freeze(self) -> None:
        """Takes the text encoder out of training, and the backbone's parameters on which no feature map depends."""
        if isinstance(getattr(self, "text_model", None), MTAClipTextModel):
            self.text_model.freeze()
        for name in self.map_shapes.unused_parameters if self.backbone is not None else ():
            self.backbone.get_parameter(name).requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        feature_maps: list[Tensor] | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        text_embeddings: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MTAClipModelOutput:
        """Encodes images and class names.

        Args:
            pixel_values, feature_maps, text_embeddings: as in [`MTAClipForSemanticSegmentation.forward`].
            output_hidden_states (`bool`, `int` or `list[int]`, *optional*):
                Whether to return the hidden states, or which of them; by default as the config says.
            output_attentions (`bool`, *optional*):
                Whether to return attention weights, as `attn_implementation="eager"` has them; likewise.

        Raises:
            ValueError: both or neither of `pixel_values` and `feature_maps`, or values of a wrong shape or type.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        mask_features, multi_scale_features = self.pixel_decoder(self._feature_maps(pixel_values, feature_maps))
        text_embeddings = self._text_embeddings(text_embeddings)
        normalized, hidden_states, attentions, cross_attentions = self.decoder(
            mask_features, multi_scale_features, text_embeddings, output_attentions=output_attentions, **kwargs
        )
        if text_embeddings is not None:
            text_embeddings = text_embeddings.expand(mask_features.shape[0], -1, -1, -1)
        return MTAClipModelOutput(
            last_hidden_state=normalized[-1],
            mask_features=mask_features,
            multi_scale_features=tuple(multi_scale_features),
            text_embeddings=text_embeddings,
            normalized_states=normalized,
            hidden_states=_chosen_states(hidden_states, output_hidden_states),
            attentions=attentions if output_attentions else None,
            cross_attentions=cross_attentions if output_attentions else None,
        )

    def _text_embeddings(self, given: Tensor | None) -> Tensor | None:
        config = self.config
        if given is None:
            return self.text_model() if config.text_branch else None
        if not config.text_branch:
            raise ValueError("This model has no text branch (`text_branch` is False): leave out `text_embeddings`.")
        expected = (config.num_prompt_contexts, config.num_labels + 1, config.text_config.projection_dim)
        if tuple(given.shape) != expected:
            raise ValueError(
                f"`text_embeddings` must have the shape {expected}, as `encode_class_names()` returns them, got "
                f"{tuple(given.shape)}."
            )
        return given

    def _feature_maps(self, pixel_values: Tensor | None, feature_maps: list[Tensor] | None) -> list[Tensor]:
        if (pixel_values is None) == (feature_maps is None):
            given = "neither" if pixel_values is None else "both"
            raise ValueError(
                f"Pass exactly one of `pixel_values` and `feature_maps`; got {given}. `pixel_values` are images, "
                "`feature_maps` the backbone's four stored maps."
            )
        if pixel_values is not None:
            if self.backbone is None:
                raise ValueError(
                    "This model has no backbone (`backbone_config` is None), so that it can't take `pixel_values`. "
                    f"Pass `feature_maps` with {list(self.config.feature_channels)} channels."
                )
            _check_images(pixel_values, self.backbone.config.num_channels)
            pixel_values = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
            return self._backbone_maps(pixel_values)
        expected = list(self.feature_channels)
        got = [tuple(maps.shape) for maps in feature_maps]
        if [shape[1] for shape in got] != expected:
            raise ValueError(
                f"`feature_maps` must be {NUM_FEATURE_MAPS} maps with {expected} channels, from stride 4 to "
                f"stride 32; got the shapes {got}."
            )
        return list(feature_maps)

    def _backbone_maps(self, pixel_values: Tensor) -> list[Tensor]:
        images = enlarge_images(pixel_values, self.map_shapes.image_divisor)
        maps = list(self._run_backbone(images))
        if self.map_shapes.channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        return maps if self.feature_pyramid is None else self.feature_pyramid(maps, pixel_values.shape[-2:])

    def _run_backbone(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps; with gradient checkpointing, the whole backbone is computed again in the backward pass.

        Images need no gradient; torch's reentrant form, whatever the user chose, gives parameters none then.
        """
        if not (self.gradient_checkpointing and self.training):
            return self.backbone(images).feature_maps
        return self._gradient_checkpointing_func(
            lambda images: tuple(self.backbone(images).feature_maps),
            images,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _unchanged_statistics(self.backbone)),
        )


def _chosen_states(states: tuple[Tensor, ...], chosen: bool | int | list[int]) -> tuple[Tensor | None, ...] | None:
    if isinstance(chosen, bool):
        return states if chosen else None
    # As everywhere in transformers: negative indices count from the end, and those out of range choose nothing.
    chosen = [chosen] if isinstance(chosen, int) else chosen
    return tuple(state if {index, index - len(states)} & set(chosen) else None for index, state in enumerate(states))


def _check_images(pixel_values: Tensor, num_channels: int) -> None:
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"`pixel_values` must have the shape (batch, {num_channels}, height, width), for a backbone with "
            f"`num_channels={num_channels}`; got {tuple(pixel_values.shape)}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` must be normalized images of a floating-point type, got {pixel_values.dtype}. "
            "`MTAClipImageProcessor` makes them."
        )


@contextmanager
def _unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Lets batch norms leave their running statistics as they are, so that no image counts twice."""
    norms = [each for each in module.modules() if getattr(each, "num_batches_tracked", None) is not None]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, number) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(number)


class MTAClipTextHead(nn.Module):
    """Brings text queries and mask queries into CLIP's embedding space, where they are compared (Sec. 3.4)."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        size = config.text_config.projection_dim
        self.text_shape = (config.num_prompt_contexts, config.num_labels + 1)
        self.text_projection = nn.Linear(config.hidden_size, size)
        self.text_layer_norm = nn.LayerNorm(size)
        self.gamma = nn.Parameter(torch.empty(size))
        self.mask_projection = nn.Linear(config.hidden_size, size)

    def forward(self, mask_queries: Tensor, text_queries: Tensor, text_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Masks `(..., Q, E)` and class texts `(..., C, K + 1, E)`: unit vectors, whose products are cosines.

        `mask_queries` `(..., Q, D)` and `text_queries` `(..., C * (K + 1), D)` are decoder states; the latter refine
        the CLIP embeddings `(B, C, K + 1, E)`.
        """
        refinement = self.text_layer_norm(self.text_projection(text_queries)).unflatten(-2, self.text_shape)
        texts = nn.functional.normalize(text_embeddings + self.gamma * refinement, dim=-1)
        return nn.functional.normalize(self.mask_projection(mask_queries), dim=-1), texts


class MTAClipForSemanticSegmentation(MTAClipPreTrainedModel):
    """MTA-CLIP with its class, mask and mask-text heads, and all losses.

    Args:
        config ([`MTAClipConfig`]): the architecture, the class names and the losses.

    Example:

    ```python
    >>> import torch
    >>> from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
    >>> import modeling_mtaclip  # registers the model

    >>> processor = AutoImageProcessor.from_pretrained("folder")
    >>> model = AutoModelForSemanticSegmentation.from_pretrained("folder")
    >>> with torch.no_grad():
    ...     outputs = model(**processor(image, return_tensors="pt"))
    >>> labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])[0]
    ```
    """

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__(config)
        self.model = MTAClipModel(config)
        self.class_predictor = nn.Linear(config.hidden_size, config.num_labels + 1)
        if config.text_branch:
            self.text_head = MTAClipTextHead(config)
        self.criterion = MTAClipCriterion(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        feature_maps: list[Tensor] | None = None,
        labels: Tensor | None = None,
        image_classes: Tensor | None = None,
        loss_normalizers: Tensor | None = None,
        point_seeds: Tensor | None = None,
        output_logits: bool = True,
        output_auxiliary_predictions: bool = False,
        text_embeddings: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MTAClipForSemanticSegmentationOutput:
        r"""Segments images, and computes the losses when `labels` are given.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
                Normalized images, as [`MTAClipImageProcessor`] makes them.
            feature_maps (`list[torch.FloatTensor]` of shapes `(batch_size, channels, height / s, width / s)`, *optional*):
                Instead of images: the backbone's four maps for the strides `s` 4, 8, 16, 32.
            labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                Class of each pixel, `config.semantic_loss_ignore_index` where it doesn't count.
            image_classes (`torch.LongTensor` of shape `(batch_size, max_classes)`, *optional*):
                The classes in each label map, ascending, padded with -1, as `loss_mtaclip.classes_of_images` finds them.
                Given where labels lie on an accelerator, they spare the forward pass waiting for it; labels are then
                not checked.
            loss_normalizers (`torch.FloatTensor` of shape `(2,)`, *optional*):
                What the losses are divided by, as of `loss_mtaclip.loss_normalizers`: those of the whole batch, where
                this is a part of it. By default those of this batch.
            point_seeds (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Seeds of the random points on which each image's losses are computed, so that they don't depend on what
                else is in the batch. By default PyTorch's generator draws them.
            output_logits (`bool`, defaults to `True`):
                `False` leaves out `logits` and `masks_queries_logits`, which training doesn't need.
            output_auxiliary_predictions (`bool`, defaults to `False`):
                Whether to return the predictions before each decoder layer too.
            text_embeddings (`torch.FloatTensor` of shape `(num_prompt_contexts, num_labels + 1, projection_dim)`, *optional*):
                From [`encode_class_names`], where many images are segmented with the same weights; by default class
                names are encoded in each call.
            kwargs:
                `output_hidden_states` and `output_attentions`, as of [`MTAClipModel.forward`], and `return_dict`.

        Raises:
            ValueError: both or neither of `pixel_values` and `feature_maps`; labels of a wrong shape or out of range.
        """  # noqa: E501
        if labels is not None:
            _check_labels(labels, pixel_values, feature_maps)
        outputs = self.model(pixel_values, feature_maps, text_embeddings=text_embeddings, return_dict=True, **kwargs)
        # What comes before each layer is a prediction too, which has losses.
        all_layers = labels is not None or output_auxiliary_predictions
        states = torch.stack(outputs.normalized_states[0 if all_layers else -1 :])
        class_logits, mask_embeddings, similarity = self._heads(states, outputs.text_embeddings)

        loss, components = None, None
        if labels is not None:
            first = 0 if self.config.supervise_initial_prediction else 1
            loss, components = self.criterion(
                class_logits[first:],
                mask_embeddings[first:],
                outputs.mask_features,
                None if similarity is None else similarity[first:],
                labels,
                image_classes,
                loss_normalizers,
                point_seeds,
                self._class_mask_embeddings(states[first:]) if self.config.class_mask_weight else None,
            )

        masks, logits, auxiliary, final_class_logits = None, None, None, class_logits[-1]
        if output_logits:
            masks = _mask_logits(mask_embeddings[-1], outputs.mask_features)
            if self.config.class_mask_share:
                class_masks = _mask_logits(self._class_mask_embeddings(states[-1]), outputs.mask_features)
                masks = torch.cat((masks, class_masks), dim=1)
                certain = self._class_mask_logits(final_class_logits).expand(masks.shape[0], -1, -1)
                final_class_logits = torch.cat((final_class_logits, certain), dim=1)
            logits = _semantic_scores(final_class_logits, masks)
        if output_auxiliary_predictions:
            auxiliary = tuple(
                MTAClipForSemanticSegmentationOutput(
                    class_queries_logits=class_logits[index],
                    masks_queries_logits=_mask_logits(mask_embeddings[index], outputs.mask_features),
                    mask_text_similarity=None if similarity is None else similarity[index],
                )
                for index in range(len(states) - 1)
            )
        return MTAClipForSemanticSegmentationOutput(
            loss=loss,
            logits=logits,
            class_queries_logits=final_class_logits,
            masks_queries_logits=masks,
            mask_text_similarity=None if similarity is None else similarity[-1],
            text_embeddings=outputs.text_embeddings,
            auxiliary_predictions=auxiliary,
            loss_components=components,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def _heads(self, states: Tensor, text_embeddings: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """All heads on the `(L, B, N, D)` states of all layers at once."""
        mask_queries, text_queries = states.tensor_split([self.config.num_queries], dim=2)
        class_logits = self.class_predictor(mask_queries)
        mask_embeddings = self.model.decoder.mask_embedder(mask_queries)
        if text_embeddings is None:
            return class_logits, mask_embeddings, None
        masks, texts = self.text_head(mask_queries, text_queries, text_embeddings)
        return class_logits, mask_embeddings, masks.unsqueeze(-3) @ texts.transpose(-1, -2)

    def _class_mask_embeddings(self, states: Tensor) -> Tensor:
        """Mask embeddings `(..., B, K, D)` of the classes' text queries, from states `(..., B, N, D)`."""
        text_queries = states[..., self.config.num_queries :, :].unflatten(-2, self.text_head.text_shape)
        return self.model.decoder.mask_embedder(text_queries.mean(dim=-3)[..., :-1, :])

    def _class_mask_logits(self, class_queries_logits: Tensor) -> Tensor:
        """Class logits `(K, K + 1)` of queries of which each gives `class_mask_share` to its own class, the rest to
        "no object"."""
        share, tiny = self.config.class_mask_share, torch.finfo(torch.float16).tiny
        own = torch.eye(self.config.num_labels, dtype=torch.bool, device=class_queries_logits.device)
        # Without changes in place, which an exported graph can't have.
        of_classes = torch.where(own, math.log(share), math.log(tiny)).to(class_queries_logits.dtype)
        return nn.functional.pad(of_classes, (0, 1), value=math.log(max(1 - share, tiny)))

    def encode_class_names(self) -> Tensor:
        """Encodes the class names and "no object" in every learned prompt context.

        Returns:
            `Tensor` of shape `(C, K + 1, E)`: CLIP embeddings, for the argument `text_embeddings` of [`forward`], as
            long as weights and adapters stay as they are. [`for_inference`] gives a model that needs no such care.

        Raises:
            ValueError: a model without text branch.
        """
        if not self.config.text_branch:
            raise ValueError("This model has no text branch (`text_branch` is False), and no class names to encode.")
        return self.model.text_model()

    def encode_phrases(self, phrases: Sequence[str], tokenizer: Any | None = None) -> Tensor:
        """Encodes phrases as class names are encoded: in every learned prompt context.

        Args:
            phrases (`Sequence[str]`): `P` names or phrases; underscores are read as spaces.
            tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): as in [`with_classes`].

        Returns:
            `Tensor` of shape `(C, P, E)`: CLIP embeddings, for [`segment_phrases`].

        Raises:
            ValueError: no phrases, phrases that the text encoder can't read, or a model without text encoder.
        """
        if not self.config.text_branch or self.config.stored_text_embeddings:
            raise ValueError(NO_TEXT_ENCODER)
        if isinstance(phrases, str) or not phrases:
            raise ValueError(f"`phrases` must be a list of at least one phrase, got {phrases!r}.")
        token_ids = tokenize_names(phrases, self._tokenizer(tokenizer))
        for phrase, ids in token_ids.items():
            self.config.check_token_ids(phrase, ids)
        return self.model.text_model.encode_token_ids([token_ids[phrase] for phrase in phrases])

    @torch.no_grad()
    def segment_phrases(
        self,
        phrase_embeddings: Tensor,
        pixel_values: Tensor | None = None,
        feature_maps: list[Tensor] | None = None,
        temperature: float = 0.03,
        text_embeddings: Tensor | None = None,
    ) -> MTAClipForSemanticSegmentationOutput:
        """Scores phrases in place of classes: which of them is each region closest to?

        The masks and the probability that a mask is no object stay those of the trained classes. The similarity of a
        mask with a phrase is the cosine of its query, in CLIP's space, with the phrase's embedding in the prompt
        context where it is largest; the probabilities of the phrases are the softmax of their similarities.

        Phrases compete with each other only, and every pixel gets one of them: phrases should cover what the images
        show. Masks separate the trained classes only: for others this is a way of looking at what the model has
        learned, not open-vocabulary segmentation.

        Args:
            phrase_embeddings (`torch.FloatTensor` of shape `(num_prompt_contexts, num_phrases, projection_dim)`):
                From [`encode_phrases`].
            pixel_values, feature_maps, text_embeddings: as in [`forward`].
            temperature (`float`, defaults to 0.03): smaller values make the closest phrase win more clearly. With the
                class names as phrases and this default, labels are about as right as those of the class head.

        Returns:
            `MTAClipForSemanticSegmentationOutput`: as for `num_phrases` classes, for the image processor's
            `post_process_semantic_segmentation` too. `logits` `(batch_size, num_phrases, height / 4, width / 4)` are
            the phrases' scores, `class_queries_logits` log-probabilities, `mask_text_similarity` the cosines.

        Raises:
            ValueError: a temperature that is not positive; both or neither of `pixel_values` and `feature_maps`.
        """
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        outputs = self.model(pixel_values, feature_maps, text_embeddings=text_embeddings, return_dict=True)
        mask_queries = outputs.last_hidden_state[:, : self.config.num_queries]
        no_object = self.class_predictor(mask_queries).softmax(dim=-1)[..., -1:]
        masks_in_clip = nn.functional.normalize(self.text_head.mask_projection(mask_queries), dim=-1)
        phrase_directions = nn.functional.normalize(phrase_embeddings, dim=-1)
        similarity = masks_in_clip[:, None] @ phrase_directions.transpose(-1, -2)
        phrases = (similarity.amax(dim=1) / temperature).softmax(dim=-1) * (1 - no_object)
        class_logits = torch.cat((phrases, no_object), dim=-1).clamp(min=torch.finfo(phrases.dtype).tiny).log()
        masks = _mask_logits(self.model.decoder.mask_embedder(mask_queries), outputs.mask_features)
        return MTAClipForSemanticSegmentationOutput(
            logits=_semantic_scores(class_logits, masks),
            class_queries_logits=class_logits,
            masks_queries_logits=masks,
            mask_text_similarity=similarity,
            text_embeddings=phrase_embeddings.expand(masks.shape[0], -1, -1, -1),
        )

    @torch.no_grad()
    def with_classes(
        self, class_names: Sequence[str], tokenizer: Any | None = None
    ) -> "MTAClipForSemanticSegmentation":
        """A copy for other classes: what belongs to a class moves with its name, and new classes start anew.

        Names are compared as [`match_classes`] does; case and underscores don't count. Which are new is logged.

        Args:
            class_names (`Sequence[str]`): the classes, in the order of their label ids.
            tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): the one that belongs to the text encoder, or
                the folder or name of a checkpoint that has it. By default the one beside the checkpoint that this
                model was loaded from. Names that are not new need none.

        Raises:
            ValueError: no names, names that the text encoder can't read or that lack a tokenizer, or a model that was
                saved for inference.
        """
        if isinstance(class_names, str) or not class_names:
            raise ValueError(f"`class_names` must be a list of at least one class name, got {class_names!r}.")
        if self.config.stored_text_embeddings:
            raise ValueError(NO_TEXT_ENCODER)
        config = deepcopy(self.config)
        config.id2label = None  # The names may be the same in another order: here weights move with them.
        config.id2label = dict(enumerate(class_names))
        if config.text_branch:
            missing = [name for name in class_names if name not in config.class_token_ids]
            tokens = tokenize_names(missing, self._tokenizer(tokenizer)) if missing else {}
            known = config.class_token_ids | tokens
            config.class_token_ids = {name: known[name] for name in config.class_names_with_no_object()}
        copied = type(self)(config).to(self.device, self.dtype).train(self.training)
        weights = self.state_dict()
        source_names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        note = move_classes(weights, copied.state_dict(), class_names, source_names)
        copied.load_state_dict(weights)
        for name, parameter in self.named_parameters():
            copied.get_parameter(name).requires_grad_(parameter.requires_grad)
        logger.warning("The model was given other classes: %s", "; ".join(set(note.values())) or "the same")
        return copied

    def _tokenizer(self, tokenizer: Any | None) -> Any:
        """A tokenizer, by default the one beside the checkpoint that this model was loaded from."""
        if tokenizer is not None and not isinstance(tokenizer, str):
            return tokenizer
        folder = tokenizer or self.name_or_path
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=self._is_remote_code())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"There is no tokenizer for new names in {folder!r}: pass CLIP's as `tokenizer`, for example "
                '"openai/clip-vit-base-patch16".'
            ) from error

    def _is_remote_code(self) -> bool:
        """Whether the user has allowed the code in a checkpoint's folder to run, of which this class is part then."""
        return type(self).__module__.startswith("transformers_modules.")

    @torch.inference_mode(False)
    @torch.no_grad()
    def for_inference(self) -> "MTAClipForSemanticSegmentation":
        """A copy that holds its text embeddings, and no prompts and text encoder; in evaluation mode.

        It gives the same predictions, and is faster where few images are in a batch, but it can't be trained, nor be
        given other classes or phrases. Later changes of this model don't change the copy.
        """
        if not self.config.text_branch:
            return deepcopy(self).eval()
        texts = MTAClipStoredTexts(self.config)
        texts.text_embeddings = self.encode_class_names().to(self.dtype, copy=True)
        # The copy has `texts` where this model has its text model.
        copied = deepcopy(self, {id(self.model.text_model): texts})
        config = copied.config
        config.stored_text_embeddings = True
        config.class_token_ids = {name: config.class_token_ids[name] for name in config.class_names_with_no_object()}
        return copied.eval()

    def save_for_inference(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves the model as [`for_inference`] makes it; `from_pretrained` loads it.

        What lies beside the checkpoint that this model was loaded from, its image processor and tokenizer, is saved
        too; those of a model that was not loaded are left to save.

        Args:
            save_directory (`str` or `Path`): the folder.
            kwargs: options of `save_pretrained`, such as `max_shard_size`.

        Raises:
            ValueError: `push_to_hub`, which would push the model alone.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("Save to a folder, and upload that as a whole: `hf upload NAME FOLDER`.")
        self.for_inference().save_pretrained(save_directory, **kwargs)
        for auto_class in (AutoImageProcessor, AutoTokenizer) if self.name_or_path else ():
            with suppress(OSError, ValueError):
                part = auto_class.from_pretrained(self.name_or_path, trust_remote_code=self._is_remote_code())
                part.save_pretrained(save_directory)


# Pipelines look supported models up by name in this table, which `AutoModelForSemanticSegmentation.register` leaves as
# it is: without the entry, pipeline("image-segmentation") works, but logs that it does not. No public way adds one.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(
    MTAClipConfig.model_type, MTAClipForSemanticSegmentation.__name__
)


def _mask_logits(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    return (mask_embeddings @ mask_features.flatten(2)).unflatten(-1, mask_features.shape[-2:])


def _semantic_scores(class_queries_logits: Tensor, masks_queries_logits: Tensor) -> Tensor:
    class_probabilities = class_queries_logits.softmax(dim=-1)[..., :-1]
    scores = class_probabilities.transpose(1, 2) @ masks_queries_logits.flatten(2).sigmoid()
    return scores.unflatten(-1, masks_queries_logits.shape[-2:])


def _check_labels(labels: Tensor, pixel_values: Tensor | None, feature_maps: list[Tensor] | None) -> None:
    images = pixel_values if pixel_values is not None else feature_maps[0] if feature_maps else None
    if labels.ndim != 3 or (images is not None and len(labels) != len(images)):
        raise ValueError(
            f"`labels` must have the shape (batch, height, width), one label map per image, got {tuple(labels.shape)}"
            f"{'' if images is None else f' for {len(images)} images'}."
        )
    if pixel_values is not None and labels.shape[-2:] != pixel_values.shape[-2:]:
        raise ValueError(
            f"`labels` of size {tuple(labels.shape[-2:])} don't fit `pixel_values` of size "
            f"{tuple(pixel_values.shape[-2:])}: give both to `MTAClipImageProcessor` in one call."
        )
    if labels.dtype != torch.long:
        raise ValueError(f"`labels` must be int64, got {labels.dtype}. Use `labels.long()`.")


__all__ = [
    "MTAClipForSemanticSegmentation",
    "MTAClipForSemanticSegmentationOutput",
    "MTAClipModel",
    "MTAClipModelOutput",
    "MTAClipPreTrainedModel",
]
