# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""MTA-CLIP for semantic segmentation: prompts and text, mask-text decoder, heads, and the two model classes.

The way of the data: image → backbone → pixel decoder → mask features and multi-scale features; class names → prompts →
frozen CLIP text encoder → text embeddings; mask queries and text queries together → mask-text decoder → heads.
"Sec." refers to the paper (arXiv 2407.21654).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, CLIPTextModelWithProjection, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs, maybe_install_capturing_hooks

from .backbone_mtaclip import MTAClipFeaturePyramid, build_backbone, enlarge_images
from .classes_mtaclip import move_classes, tokenize_new_names
from .configuration_mtaclip import NUM_FEATURE_MAPS, MTAClipConfig, tokenize_names
from .loss_mtaclip import MTAClipCriterion
from .pixel_decoder_mtaclip import (
    NUM_LEVELS,
    MTAClipDeformableAttention,
    MTAClipPixelDecoder,
    sine_position_embedding,
    to_sequence,
)


logger = logging.get_logger(__name__)

# Added to the attention logits of pairs that must not attend: exp() of it is 0, and every dtype can hold it.
MASKED = torch.finfo(torch.float16).min
# Options of `from_pretrained` by which every file of a checkpoint is found.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
# Which class of a saved folder's code each Auto class loads.
AUTO_MAP = {
    "AutoConfig": "configuration_mtaclip.MTAClipConfig",
    "AutoModel": "modeling_mtaclip.MTAClipModel",
    "AutoModelForSemanticSegmentation": "modeling_mtaclip.MTAClipForSemanticSegmentation",
}
# Options of `save_pretrained` by which every part of a checkpoint is pushed.
PUSH_OPTIONS = ("commit_message", "private", "push_to_hub", "repo_id", "token")
# Arguments or settings of the config by which a model is asked to record its layers.
RECORDINGS = ("output_hidden_states", "output_attentions", "output_cross_attentions")
NO_TRAINING = (
    "This model was saved for inference: its text embeddings are constants, prompts and text encoder are left out, so "
    "that it can't be trained. Train the model that it was saved from; for inference call `model.eval()`."
)
# Divides cosines with phrases before a softmax over phrases. With the class names as phrases, the labels of a trained
# model are then about as right as those of its class head.
PHRASE_TEMPERATURE = 0.03
# Class names are encoded in groups of about this many tokens: attention inside a group grows with its square.
TOKENS_PER_GROUP = 128


@dataclass
class MTAClipPrediction(ModelOutput):
    """
    The prediction before a decoder layer.

    Args:
        class_queries_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, num_labels + 1)`):
            Class logits; the last one is "no object".
        mask_embeddings (`torch.FloatTensor` of shape `(batch_size, num_queries, mask_feature_size)`):
            Their products with `mask_features` are the mask logits.
        mask_text_similarity (`torch.FloatTensor` of shape `(batch_size, num_prompt_contexts, num_queries, num_labels + 1)`, *optional*):
            Cosine of each mask query with each class text.
        masks_queries_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, height / 4, width / 4)`, *optional*):
            Mask logits; only with `output_auxiliary_predictions=True`.
    """  # noqa: E501

    class_queries_logits: Tensor | None = None
    mask_embeddings: Tensor | None = None
    mask_text_similarity: Tensor | None = None
    masks_queries_logits: Tensor | None = None


@dataclass
class MTAClipTextModelOutput(ModelOutput):
    """
    What [`MTAClipTextModel`] returns.

    Args:
        text_embeddings (`torch.FloatTensor` of shape `(num_prompt_contexts, num_labels + 1, projection_dim)`):
            CLIP embeddings of the class names and "no object" in every prompt context.
    """

    text_embeddings: Tensor | None = None


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
        text_embeddings (`torch.FloatTensor` of shape `(num_prompt_contexts, num_labels + 1, projection_dim)`, *optional*):
            CLIP embeddings of the class names and "no object" in every prompt context.
        normalized_states (`tuple[torch.FloatTensor]`, *optional*):
            States like `last_hidden_state` before each decoder layer and after the last, in training or with
            `output_auxiliary_predictions=True`; else only the last.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            States before the LayerNorm: the input of the decoder and the output of each layer.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Self-attention weights of each decoder layer.
        cross_attentions (`tuple[torch.FloatTensor]`, *optional*):
            Weights of the masked attention of each decoder layer, over the pixels that it attends to.
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
            Class logits of each query; the last one is "no object".
        masks_queries_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, height / 4, width / 4)`, *optional*):
            Mask logits of each query.
        mask_text_similarity (`torch.FloatTensor` of shape `(batch_size, num_prompt_contexts, num_queries, num_labels + 1)`, *optional*):
            Cosine of each mask query with each class text, in every prompt context.
        text_embeddings (`torch.FloatTensor` of shape `(num_prompt_contexts, num_labels + 1, projection_dim)`, *optional*):
            CLIP embeddings of the class names and "no object".
        auxiliary_predictions (`tuple[MTAClipPrediction]`, *optional*):
            The predictions before each decoder layer, in training or with `output_auxiliary_predictions=True`.
        loss_components (`dict[str, torch.FloatTensor]`, *optional*):
            The unweighted losses: `cross_entropy`, `mask`, `dice`, `contrastive` of the last layer, and those of
            auxiliary prediction `i` with the suffix `_i`.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Decoder states, as in [`MTAClipModelOutput`].
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Self-attention weights of each decoder layer.
        cross_attentions (`tuple[torch.FloatTensor]`, *optional*):
            Masked attention weights of each decoder layer.
    """  # noqa: E501

    loss: Tensor | None = None
    logits: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    mask_text_similarity: Tensor | None = None
    text_embeddings: Tensor | None = None
    auxiliary_predictions: tuple[MTAClipPrediction, ...] | None = None
    loss_components: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        # Pipelines add this key and then split everything image by image; the texts are those of all images.
        if key == "target_size" and self.text_embeddings is not None:
            self.text_embeddings = self.text_embeddings.expand(len(self.class_queries_logits), -1, -1, -1)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """Attention written out: `(B, heads, N, d)` queries, keys and values, additive mask; returns the weights too."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MTAClipAttention(nn.Module):
    """Multi-head attention (arXiv 1706.03762) through transformers' attention interface."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.decoder_attention_heads
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from `(B, N, D)` queries to `(B, S, D)` keys and values; the mask `(B, 1, N, S)` is additive."""
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
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
    ) -> Tensor:
        """Decodes.

        Args:
            hidden_states (`Tensor` of shape `(B, N, D)`): mask queries, then text queries.
            query_positions (`Tensor` of shape `(N, D)`): their learned position embeddings.
            pixel_keys (`Tensor` of shape `(B, S, D)`): pixels with their position embeddings.
            pixel_states (`Tensor` of shape `(B, S, D)`): pixels.
            attention_mask (`Tensor` of shape `(B, 1, N, S)`): added to the attention logits.
        """
        attended, _ = self.cross_attn(
            hidden_states + query_positions, pixel_keys, pixel_states, attention_mask, **kwargs
        )
        hidden_states = self.cross_attn_layer_norm(hidden_states + attended)
        positioned = hidden_states + query_positions
        attended, _ = self.self_attn(positioned, positioned, hidden_states, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        feed_forward = self.fc2(nn.functional.relu(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + feed_forward)


class MTAClipMaskEmbedder(nn.Sequential):
    """Three-layer network from a query to its mask embedding."""

    def __init__(self, config: MTAClipConfig) -> None:
        size = config.hidden_size
        super().__init__(
            nn.Linear(size, size),
            nn.ReLU(),
            nn.Linear(size, size),
            nn.ReLU(),
            nn.Linear(size, config.mask_feature_size),
        )


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
            self.text_query_positions = nn.Parameter(
                torch.empty(config.num_prompt_contexts, config.num_labels + 1, size)
            )
        self.level_embed = nn.Parameter(torch.empty(NUM_LEVELS, size))
        self.layers = nn.ModuleList(MTAClipDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(size)
        self.mask_embedder = MTAClipMaskEmbedder(config)

    def forward(
        self,
        mask_features: Tensor,
        multi_scale_features: list[Tensor],
        text_embeddings: Tensor | None,
        output_all_states: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> list[Tensor]:
        """Decodes.

        Args:
            mask_features (`Tensor` of shape `(B, mask_feature_size, h, w)`): at stride 4.
            multi_scale_features (`list[Tensor]` of shapes `(B, D, h_l, w_l)`): strides 32, 16, 8.
            text_embeddings (`Tensor` of shape `(C, K + 1, E)`, *optional*): absent without text branch.
            output_all_states (`bool`): whether to return the states before each layer too.

        Returns:
            `list[Tensor]` of shapes `(B, N, D)`: normalised states before each layer and after the last, or only
            the latter.
        """
        queries, positions = self._queries(text_embeddings)
        hidden_states = queries.expand(mask_features.shape[0], -1, -1)
        sizes = [maps.shape[-2:] for maps in multi_scale_features]
        values = [
            to_sequence(maps) + level for maps, level in zip(multi_scale_features, self.level_embed, strict=True)
        ]
        keys = [
            value + sine_position_embedding(*size, value.shape[-1], value.dtype, value.device)
            for value, size in zip(values, sizes, strict=True)
        ]
        features = [_resize_features(mask_features, size) for size in sizes]
        states = [self.layer_norm(hidden_states)]
        for index, layer in enumerate(self.layers):
            level = index % NUM_LEVELS
            attention_mask = self._attention_mask(states[-1], features[level])
            hidden_states = layer(hidden_states, positions, keys[level], values[level], attention_mask, **kwargs)
            states.append(self.layer_norm(hidden_states))
        return states if output_all_states else states[-1:]

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
    """Mask features at the size of the features of one scale, `(B, D, h * w)`.

    Resizing is linear over pixels and mask logits are linear over channels, so that products with resized features are
    the resized mask logits.
    """
    return nn.functional.interpolate(mask_features, size=size, mode="bilinear", align_corners=False).flatten(2)


class MTAClipPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the models."""

    config: MTAClipConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["MTAClipDecoderLayer", "MTAClipPixelDecoderLayer", "MTAClipTextModel"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MTAClipDecoderLayer,
        "attentions": OutputRecorder(MTAClipAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(MTAClipAttention, index=1, layer_name="cross_attn"),
    }

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any
    ) -> "MTAClipPreTrainedModel":
        """Loads a model as `PreTrainedModel.from_pretrained` does, with the text encoder frozen.

        Other classes come with `id2label` and `label2id`, or with a `config` that has them: new names are read by the
        tokenizer that lies in the folder. With `ignore_mismatched_sizes=True`, weights of classes move with the names,
        those of names that were not there start anew, and what starts anew is logged. Without it, there must be as
        many names as there were, and each takes the place of the one before.

        Raises:
            ValueError: another number of classes without `ignore_mismatched_sizes=True`, or new names without
                tokenizer.
        """
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        if "id2label" in kwargs:
            id2label = kwargs.pop("id2label")
            # They follow from `id2label`.
            kwargs.pop("label2id", None)
            kwargs.pop("num_labels", None)
            kwargs.setdefault("config", MTAClipConfig.from_pretrained(pretrained_model_name_or_path, **hub_options))
            kwargs["config"] = deepcopy(kwargs["config"])
            kwargs["config"].id2label = {int(index): name for index, name in id2label.items()}
        config = kwargs.get("config")
        if pretrained_model_name_or_path is None or not hasattr(config, "class_names_with_no_object"):
            return cls._load(pretrained_model_name_or_path, *args, **kwargs)
        stored = type(config).from_pretrained(pretrained_model_name_or_path, **hub_options)
        if stored.class_names_with_no_object() == config.class_names_with_no_object():
            return cls._load(pretrained_model_name_or_path, *args, **kwargs)
        config = kwargs["config"] = deepcopy(config)
        tokenize_new_names(
            config, str(pretrained_model_name_or_path), trust_remote_code=_is_remote_code(cls), **hub_options
        )
        if not kwargs.get("ignore_mismatched_sizes"):
            _check_number_of_classes(config, stored)
            return cls._load(pretrained_model_name_or_path, *args, **kwargs)
        return cls._load_for_other_classes(pretrained_model_name_or_path, stored, *args, **kwargs)

    @classmethod
    def _load(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading replaces all parameters by trainable ones.
        for module in model.modules():
            if isinstance(module, MTAClipTextModel):
                module.freeze_text_encoder()
            elif isinstance(module, MTAClipModel):
                module.freeze_unused_parameters()
        return loaded

    @classmethod
    def _load_for_other_classes(
        cls, folder: str | Path, stored: MTAClipConfig, *args: Any, config: MTAClipConfig, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint with its own classes and moves their weights to those of the config."""
        if stored.stored_text_embeddings:
            raise ValueError(
                f"The model in {str(folder)!r} was saved for inference, without a text encoder to read other class "
                "names with. Load the model that it was saved from."
            )
        if kwargs.get("device_map") is not None:
            raise ValueError(
                "`device_map` can't be combined with other classes: load the model without it, save it, and load that "
                "with `device_map`."
            )
        before = deepcopy(config)
        before.id2label, before.class_token_ids = dict(stored.id2label), stored.class_token_ids
        loaded = cls._load(folder, *args, config=before, **kwargs)
        source = loaded[0] if isinstance(loaded, tuple) else loaded
        model = cls(config).to(source.dtype).train(source.training)
        tensors = source.state_dict()
        names, source_names = (list(each.id2label.values()) for each in (config, stored))
        prefix = "" if hasattr(source, "class_predictor") else "model."
        moved = {prefix + name: tensor for name, tensor in tensors.items()}
        initial = {prefix + name: tensor for name, tensor in model.state_dict().items()}
        for name, note in move_classes(moved, initial, names, source_names).items():
            logger.warning("%s: %s", name, note)
        model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in moved.items()})
        model.name_or_path = source.name_or_path
        return (model, *loaded[1:]) if isinstance(loaded, tuple) else model

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
        backbones = [module.backbone for module in self.modules() if isinstance(module, MTAClipModel)]
        if attn_implementation == "sdpa" and any(backbone and not backbone._supports_sdpa for backbone in backbones):
            attn_implementation = {"": "sdpa", "text_config": "sdpa"}
        super().set_attn_implementation(attn_implementation, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves the model as `PreTrainedModel.save_pretrained` does, loadable by all Auto classes with remote code."""
        if self._auto_class is not None:
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Weights are made by transformers' own functions, which leave loaded ones alone; see `_init_weights`.

        With `True`, transformers would leave out the rules by which CLIP's layers are initialised.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)
        elif isinstance(module, MTAClipDeformableAttention):
            init.zeros_(module.sampling_offsets.weight)
            init.copy_(module.sampling_offsets.bias, module.initial_offsets())
            init.zeros_(module.attention_weights.weight)
            init.zeros_(module.attention_weights.bias)
        elif isinstance(module, MTAClipPixelDecoder):
            init.normal_(module.level_embed)
        elif isinstance(module, MTAClipMaskTextDecoder):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter)
        elif isinstance(module, MTAClipTextModel):
            init.normal_(module.contexts, std=self.config.init_std)
            for name, value in module.packed_names().items():
                init.copy_(getattr(module, name), value)
        elif isinstance(module, MTAClipStoredTexts):
            init.zeros_(module.text_embeddings)
        elif isinstance(module, MTAClipTextHead):
            init.constant_(module.gamma, self.config.text_gamma_init)


class MTAClipTextModel(MTAClipPreTrainedModel):
    """Learnable prompt contexts and the class names, encoded by a frozen CLIP text encoder (Sec. 3.3).

    A prompt is start token, context, name, end token. The text encoder is causal, so that all names under a context
    see the same states of start token and context: names are packed behind them into one sequence, and the attention
    mask keeps each name to the context and itself. Only the tokens of the names are encoded, and no padding but the
    rest of each group.

    Args:
        config ([`MTAClipConfig`]): the text encoder, the prompts and the class names.

    Raises:
        ValueError: class names without token ids.
    """

    # The outputs of the text encoder's layers are not the outputs of ours that users ask for.
    _can_record_outputs = {}  # noqa: RUF012

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__(config)
        if config.class_token_ids is None:
            raise ValueError(
                "The config has no `class_token_ids`, so that the text encoder has no class names to read. Make it "
                "with `MTAClipConfig.from_labels(names, tokenizer, ...)`, or set `text_branch=False` for a model "
                "without text."
            )
        config.validate_class_names()
        self.contexts = nn.Parameter(
            torch.empty(config.num_prompt_contexts, config.prompt_length, config.text_config.hidden_size)
        )
        for name, value in self.packed_names().items():
            setattr(self, name, nn.Buffer(value, persistent=False))
        self.text_encoder = CLIPTextModelWithProjection._from_config(config.text_config)
        self.freeze_text_encoder()
        self._cache: tuple[Any, Tensor] | None = None
        self.post_init()

    def packed_names(self) -> dict[str, Tensor]:
        """The class names as groups of packed tokens (int64).

        Returns:
            `dict[str, Tensor]`: `token_ids`, `positions` in the prompt and `segments` (which name, -1 for padding),
            all of shape `(groups, tokens)`, and `ends` `(K + 1,)`, where in the flattened groups each name ends.
        """
        config = self.config
        return self._pack([config.class_token_ids[name] for name in config.class_names_with_no_object()])

    def _pack(self, token_ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        config = self.config
        names = [[*ids, config.prompt_end_token_id] for ids in token_ids]
        groups: list[list[int]] = [[]]
        for index, name in enumerate(names):
            if groups[-1] and sum(len(names[other]) for other in groups[-1]) + len(name) > TOKENS_PER_GROUP:
                groups.append([])
            groups[-1].append(index)
        length = max(sum(len(names[index]) for index in group) for group in groups)
        shape = (len(groups), length)
        packed = {
            "token_ids": torch.full(shape, config.prompt_end_token_id),
            "positions": torch.zeros(shape, dtype=torch.long),
            "segments": torch.full(shape, -1),
            "ends": torch.zeros(len(names), dtype=torch.long),
        }
        for row, group in enumerate(groups):
            start = 0
            for index in group:
                end = start + len(names[index])
                packed["token_ids"][row, start:end] = torch.tensor(names[index])
                packed["positions"][row, start:end] = 1 + config.prompt_length + torch.arange(end - start)
                packed["segments"][row, start:end] = index
                packed["ends"][index] = row * length + end - 1
                start = end
        return packed

    @capture_outputs
    def forward(self) -> MTAClipTextModelOutput:
        """Encodes all names in all contexts."""
        packed = {name: getattr(self, name) for name in ("token_ids", "positions", "segments", "ends")}
        return MTAClipTextModelOutput(text_embeddings=self._encode(**packed))

    @torch.no_grad()
    def encode_token_ids(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Encodes other names or phrases in all contexts.

        Args:
            token_ids (`Sequence[Sequence[int]]`): the tokens of each of `P` phrases, without start and end.

        Returns:
            `Tensor` of shape `(C, P, E)`: their CLIP embeddings.
        """
        packed = {name: value.to(self.contexts.device) for name, value in self._pack(token_ids).items()}
        return self._encode(**packed)

    def _encode(self, token_ids: Tensor, positions: Tensor, segments: Tensor, ends: Tensor) -> Tensor:
        text_model = self.text_encoder.text_model
        tokens, places = text_model.embeddings.token_embedding, text_model.embeddings.position_embedding
        num_contexts, num_groups = len(self.contexts), len(token_ids)
        start = tokens.weight[self.config.prompt_start_token_id].expand(num_contexts, 1, -1)
        prefixes = torch.cat((start, self.contexts.to(start.dtype)), dim=1)
        prefixes = prefixes + places.weight[: prefixes.shape[1]]
        names = tokens(token_ids) + places(positions)
        hidden_states = torch.cat(
            (
                prefixes[:, None].expand(-1, num_groups, -1, -1),
                names[None].expand(num_contexts, -1, -1, -1),
            ),
            dim=2,
        ).flatten(0, 1)
        attention_mask = _prompt_mask(segments, prefixes.shape[1], hidden_states.dtype).repeat(num_contexts, 1, 1, 1)
        encoded = text_model.encoder(inputs_embeds=hidden_states, attention_mask=attention_mask).last_hidden_state
        encoded = encoded[:, prefixes.shape[1] :].unflatten(0, (num_contexts, num_groups)).flatten(1, 2)
        return self.text_encoder.text_projection(text_model.final_layer_norm(encoded[:, ends]))

    def freeze_text_encoder(self) -> None:
        """Takes the text encoder out of training; only the prompt contexts learn on the text side (Sec. 3.3)."""
        self.text_encoder.requires_grad_(False)
        self.text_encoder.eval()

    def train(self, mode: bool = True) -> "MTAClipTextModel":
        """Sets training or evaluation mode; the frozen text encoder stays in evaluation mode."""
        super().train(mode)
        self._cache = None
        self.text_encoder.eval()
        return self

    def get_text_embeddings(self) -> Tensor:
        """CLIP embeddings of the class names and "no object", `(C, K + 1, E)`.

        Without gradients they are computed once and kept until a weight of prompts or text encoder changes.
        """
        if self.training or torch.is_grad_enabled():
            return self(return_dict=True).text_embeddings
        return self._kept_text_embeddings()

    # What is kept depends on versions of weights, which a compiled graph can't ask for.
    @torch.compiler.disable
    def _kept_text_embeddings(self) -> Tensor:
        key = self._cache_key()
        if self._cache is None or self._cache[0] != key:
            # Not an inference tensor: it may be used outside `torch.inference_mode` later.
            with torch.inference_mode(False), torch.no_grad():
                self._cache = (key, self(return_dict=True).text_embeddings)
        return self._cache[1]

    def _cache_key(self) -> tuple:
        weights = [self.contexts, *self.text_encoder.parameters()]
        versions = tuple(-1 if weight.is_inference() else weight._version for weight in weights)
        autocast = torch.is_autocast_enabled(weights[0].device.type)
        return tuple(weight.data_ptr() for weight in weights), versions, weights[0].device, weights[0].dtype, autocast


class MTAClipStoredTexts(nn.Module):
    """The text embeddings of a model that was saved for inference, in place of prompts and text encoder.

    Args:
        config ([`MTAClipConfig`]): the number of prompt contexts and classes, and the size of the embeddings.
    """

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        shape = (config.num_prompt_contexts, config.num_labels + 1, config.text_config.projection_dim)
        self.text_embeddings = nn.Buffer(torch.empty(shape))

    def get_text_embeddings(self) -> Tensor:
        """CLIP embeddings of the class names and "no object", `(C, K + 1, E)`.

        Raises:
            ValueError: in training mode.
        """
        if self.training:
            raise ValueError(NO_TRAINING)
        return self.text_embeddings


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
                # Asked for by name, it is an error for a convolutional backbone; it is the default where it exists.
                config.backbone_config._attn_implementation = None
            self.backbone, shapes = build_backbone(config.backbone_config)
            self.feature_channels, self.map_shapes = shapes.channels, shapes
            if shapes.single_stride is not None:
                self.feature_pyramid = MTAClipFeaturePyramid(shapes.channels, shapes.single_stride)
        self.pixel_decoder = MTAClipPixelDecoder(config, list(self.feature_channels))
        if config.text_branch:
            texts = MTAClipStoredTexts if config.stored_text_embeddings else MTAClipTextModel
            self.text_model = texts(config)
        self.decoder = MTAClipMaskTextDecoder(config)
        self.post_init()
        self.freeze_unused_parameters()

    def freeze_unused_parameters(self) -> None:
        """Takes the backbone's parameters on which no feature map depends out of training."""
        for name in self.map_shapes.unused_parameters if self.backbone is not None else ():
            self.backbone.get_parameter(name).requires_grad_(False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        asked_for = (kwargs.get(name, getattr(self.config, name, False)) for name in RECORDINGS)
        if not getattr(self, "_output_capturing_hooks_installed", False) and any(asked_for):
            self._prepare_recording()
        return super().__call__(*args, **kwargs)

    def _prepare_recording(self) -> None:
        """Installs the hooks that record hidden states and attentions, not in the backbone, which has its own.

        Left to its first use, it would install those of the backbone a second time. Many backbones take their feature
        maps from what their hooks record, and would silently return other layers' maps from then on. A model that was
        never asked to record has no hooks, because those of transformers can't be pickled.
        """
        backbone, self.backbone = self.backbone, None
        maybe_install_capturing_hooks(self)
        self.backbone = backbone

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor | None = None,
        feature_maps: list[Tensor] | None = None,
        output_auxiliary_predictions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MTAClipModelOutput:
        r"""Encodes images and class names.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Normalised images, as [`MTAClipImageProcessor`] makes them.
            feature_maps (`list[torch.FloatTensor]` of shapes `(batch_size, channels, height / s, width / s)`, *optional*):
                Instead of images: the backbone's four maps for the strides `s` 4, 8, 16, 32.
            output_auxiliary_predictions (`bool`, *optional*):
                Whether to return the states before each decoder layer; by default in training only.

        Raises:
            ValueError: both or neither of `pixel_values` and `feature_maps`, or feature maps that don't fit.
        """  # noqa: E501
        feature_maps = self._feature_maps(pixel_values, feature_maps)
        mask_features, multi_scale_features = self.pixel_decoder(feature_maps)
        text_embeddings = self.text_model.get_text_embeddings() if self.config.text_branch else None
        output_all_states = self.training if output_auxiliary_predictions is None else output_auxiliary_predictions
        states = self.decoder(mask_features, multi_scale_features, text_embeddings, output_all_states, **kwargs)
        return MTAClipModelOutput(
            last_hidden_state=states[-1],
            mask_features=mask_features,
            multi_scale_features=tuple(multi_scale_features),
            text_embeddings=text_embeddings,
            normalized_states=tuple(states),
        )

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
            if pixel_values.ndim != 4:
                raise ValueError(
                    "`pixel_values` must have the shape (batch, channels, height, width), got "
                    f"{tuple(pixel_values.shape)}."
                )
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
    """Brings text queries and mask queries into CLIP's embedding space, and compares them (Sec. 3.4)."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        size = config.text_config.projection_dim
        self.text_shape = (config.num_prompt_contexts, config.num_labels + 1)
        self.text_projection = nn.Linear(config.hidden_size, size)
        self.text_layer_norm = nn.LayerNorm(size)
        self.gamma = nn.Parameter(torch.empty(size))
        self.mask_projection = nn.Linear(config.hidden_size, size)

    def forward(self, mask_queries: Tensor, text_queries: Tensor, text_embeddings: Tensor) -> Tensor:
        """Cosine of every mask query with every class text.

        Args:
            mask_queries (`Tensor` of shape `(..., Q, D)`): decoder states.
            text_queries (`Tensor` of shape `(..., C * (K + 1), D)`): decoder states.
            text_embeddings (`Tensor` of shape `(C, K + 1, E)`): CLIP embeddings, which the text queries refine.

        Returns:
            `Tensor` of shape `(..., C, Q, K + 1)`.
        """
        masks, texts = self.embed(mask_queries, text_queries, text_embeddings)
        return masks.unsqueeze(-3) @ texts.transpose(-1, -2)

    def embed(self, mask_queries: Tensor, text_queries: Tensor, text_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors in CLIP's space, from the arguments of `forward`.

        Returns:
            `tuple[Tensor, Tensor]`: masks `(..., Q, E)` and class texts `(..., C, K + 1, E)`.
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
        output_auxiliary_predictions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MTAClipForSemanticSegmentationOutput:
        r"""Segments images, and computes the losses when `labels` are given.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Normalised images, as [`MTAClipImageProcessor`] makes them.
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
            output_auxiliary_predictions (`bool`, *optional*):
                Whether to return the predictions before each decoder layer, with their mask logits. By default they are
                returned in training, with mask embeddings only.

        Raises:
            ValueError: both or neither of `pixel_values` and `feature_maps`; labels of a wrong shape or out of range.
        """  # noqa: E501
        if labels is not None:
            _check_labels(labels, pixel_values, feature_maps)
        with_auxiliary = self.training or labels is not None
        outputs = self.model(
            pixel_values,
            feature_maps,
            output_auxiliary_predictions=with_auxiliary or bool(output_auxiliary_predictions),
            **kwargs,
        )
        states = torch.stack(outputs.normalized_states)
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
            )

        masks, logits = None, None
        if output_logits:
            masks = _mask_logits(mask_embeddings[-1], outputs.mask_features)
            logits = _semantic_scores(class_logits[-1], masks)
        auxiliary = None
        if output_auxiliary_predictions or (self.training and output_auxiliary_predictions is None):
            auxiliary = tuple(
                MTAClipPrediction(
                    class_queries_logits=class_logits[index],
                    mask_embeddings=mask_embeddings[index],
                    mask_text_similarity=None if similarity is None else similarity[index],
                    masks_queries_logits=_mask_logits(mask_embeddings[index], outputs.mask_features)
                    if output_auxiliary_predictions
                    else None,
                )
                for index in range(len(states) - 1)
            )
        return MTAClipForSemanticSegmentationOutput(
            loss=loss,
            logits=logits,
            class_queries_logits=class_logits[-1],
            masks_queries_logits=masks,
            mask_text_similarity=None if similarity is None else similarity[-1],
            text_embeddings=outputs.text_embeddings,
            auxiliary_predictions=auxiliary,
            loss_components=components,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def encode_phrases(self, phrases: Sequence[str], tokenizer: Any) -> Tensor:
        """Encodes phrases as class names are encoded: in every learned prompt context.

        Args:
            phrases (`Sequence[str]`): `P` names or phrases; underscores are read as spaces.
            tokenizer (`PreTrainedTokenizerBase` or `str`): the one that belongs to the text encoder, or the folder or
                name of a checkpoint that has it.

        Returns:
            `Tensor` of shape `(C, P, E)`: CLIP embeddings, for [`segment_phrases`].

        Raises:
            ValueError: no phrases, phrases that the text encoder can't read, or a model without text encoder.
        """
        if not self.config.text_branch or self.config.stored_text_embeddings:
            raise ValueError(
                "This model has no text encoder to read phrases with: it was made without text branch, or saved for "
                "inference. Use the model that was trained with `text_branch=True`, as training saved it."
            )
        if isinstance(phrases, str) or not phrases:
            raise ValueError(f"`phrases` must be a list of at least one phrase, got {phrases!r}.")
        if isinstance(tokenizer, str):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        token_ids = tokenize_names(phrases, tokenizer)
        for phrase, ids in token_ids.items():
            self.config.check_token_ids(phrase, ids)
        return self.model.text_model.encode_token_ids([token_ids[phrase] for phrase in phrases])

    @torch.no_grad()
    def segment_phrases(
        self,
        phrase_embeddings: Tensor,
        pixel_values: Tensor | None = None,
        feature_maps: list[Tensor] | None = None,
        temperature: float = PHRASE_TEMPERATURE,
    ) -> MTAClipForSemanticSegmentationOutput:
        """Scores phrases in place of classes: which of them is each region closest to?

        The masks and the probability that a mask is no object stay those of the trained classes. The similarity of a
        mask with a phrase is the cosine of its query, in CLIP's space, with the phrase's embedding in the prompt
        context where it is largest; the probabilities of the phrases are the softmax of their similarities.

        Phrases compete with each other only, and every pixel gets one of them: phrases should cover what the images
        show. Synonyms of trained classes and words close to them are found as far as the text encoder knows them; a
        random text encoder knows none. Masks were trained to separate the trained classes: a region that training
        labelled as one class is not divided, and objects that it left unlabelled or counted to another class often
        have no mask. For classes that were not trained this is therefore a way of looking at what the model has
        learned, not open-vocabulary segmentation.

        Args:
            phrase_embeddings (`torch.FloatTensor` of shape `(num_prompt_contexts, num_phrases, projection_dim)`):
                From [`encode_phrases`].
            pixel_values, feature_maps: as in [`forward`].
            temperature (`float`, defaults to 0.03): smaller values make the closest phrase win more clearly.

        Returns:
            `MTAClipForSemanticSegmentationOutput`: as for images with `num_phrases` classes. `logits` `(batch_size,
            num_phrases, height / 4, width / 4)` are the phrases' scores; `class_queries_logits` the logarithms of the
            queries' probabilities; `mask_text_similarity` the cosines, without "no object". The image processor's
            `post_process_semantic_segmentation` turns them into the index of the best phrase at each pixel.

        Raises:
            ValueError: a temperature that is not positive; both or neither of `pixel_values` and `feature_maps`.
        """
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        outputs = self.model(pixel_values, feature_maps, output_auxiliary_predictions=False, return_dict=True)
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
            text_embeddings=phrase_embeddings,
        )

    @torch.no_grad()
    def for_inference(self) -> "MTAClipForSemanticSegmentation":
        """A copy that holds its text embeddings, and no prompts and text encoder; in evaluation mode.

        It gives the same predictions, bit for bit, but it can't be trained, nor be given other classes or phrases.
        """
        texts = self.model.text_model.get_text_embeddings() if self.config.text_branch else None
        copied = deepcopy(self)
        if texts is not None:
            copied.config.stored_text_embeddings = True
            copied.model.text_model = MTAClipStoredTexts(copied.config)
            copied.model.text_model.text_embeddings = texts
        return copied.eval()

    def save_for_inference(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves the model as [`for_inference`] makes it; `from_pretrained` loads it.

        What lies beside the checkpoint that this model was loaded from, its image processor and tokenizer, is saved
        too; those of a model that was not loaded are left to save.

        Args:
            save_directory (`str` or `Path`): the folder.
            kwargs: options of `save_pretrained`, such as `max_shard_size` or `push_to_hub`. Each part is a commit.

        Raises:
            ValueError: `create_pr` or `revision`, by which only the model would be pushed.
        """
        if kwargs.keys() & {"create_pr", "revision"}:
            raise ValueError(
                "`create_pr` and `revision` can't be given here: image processor and tokenizer would be pushed "
                "elsewhere. Save to a folder, and upload that, for example with `hf upload`."
            )
        push_options = {name: kwargs[name] for name in PUSH_OPTIONS if name in kwargs}
        self.for_inference().save_pretrained(save_directory, **kwargs)
        for part in _parts_beside(self):
            part.save_pretrained(str(save_directory), **push_options)

    def _heads(self, states: Tensor, text_embeddings: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """All heads on the `(L, B, N, D)` states of all layers at once."""
        mask_queries, text_queries = states.tensor_split([self.config.num_queries], dim=2)
        class_logits = self.class_predictor(mask_queries)
        mask_embeddings = self.model.decoder.mask_embedder(mask_queries)
        if text_embeddings is None:
            return class_logits, mask_embeddings, None
        return class_logits, mask_embeddings, self.text_head(mask_queries, text_queries, text_embeddings)


# Pipelines look supported models up by name in this table, which `AutoModelForSemanticSegmentation.register` leaves as
# it is: without the entry, pipeline("image-segmentation") works, but logs that it does not.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(
    MTAClipConfig.model_type, MTAClipForSemanticSegmentation.__name__
)


def _prompt_mask(segments: Tensor, prefix_length: int, dtype: torch.dtype) -> Tensor:
    """Additive `(groups, 1, S, S)`: what comes earlier, in the context or in the same name."""
    segments = nn.functional.pad(segments, (prefix_length, 0), value=-2)
    allowed = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == -2)
    return (~allowed.tril())[:, None].to(dtype) * MASKED


def _check_number_of_classes(config: MTAClipConfig, stored: MTAClipConfig) -> None:
    if config.num_labels != stored.num_labels:
        raise ValueError(
            f"The config names {config.num_labels} classes, but the checkpoint has {stored.num_labels}. Pass "
            "`ignore_mismatched_sizes=True` to keep the weights of the classes in both and start the others anew."
        )


def _is_remote_code(model_class: type) -> bool:
    """Whether the user has allowed the code that lies in a checkpoint's folder to run, of which this class is part."""
    return model_class.__module__.startswith("transformers_modules.")


def _parts_beside(model: PreTrainedModel) -> list[Any]:
    """Image processor and tokenizer of the checkpoint that a model was loaded from, as far as there are any."""
    if not model.name_or_path:
        return []
    remote = _is_remote_code(type(model))
    parts = []
    for auto_class in (AutoImageProcessor, AutoTokenizer):
        with suppress(OSError, ValueError):
            parts.append(auto_class.from_pretrained(model.name_or_path, trust_remote_code=remote))
    return parts


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
    "MTAClipPrediction",
    "MTAClipTextModel",
]
