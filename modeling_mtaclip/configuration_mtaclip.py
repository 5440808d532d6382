# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of MTA-CLIP: every hyper-parameter, its source, and the class names with their token ids.

"Sec." and "Eq." refer to the paper, "MTA-CLIP: Language-Guided Semantic Segmentation with Mask-Text Alignment"
(ECCV 2024, arXiv 2407.21654).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoTokenizer, CLIPTextConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .backbone_mtaclip import FEATURE_STRIDES, copy_backbone_config, register_backbones


# Wherever this config can be loaded, the backbones that it may name must be known.
register_backbones()

# In the order of the numbers that the authors' code gives them.
CONTRASTIVE_NEGATIVES = ("all_positive", "separate", "mix")
CHOICES = {
    "contrastive_negatives": CONTRASTIVE_NEGATIVES,
    "mask_loss_normalizer": ("num_masks", "class_weights"),
    "ignored_pixels": ("exclude", "background"),
    "point_sampling": ("random", "auto"),
}
NUM_FEATURE_MAPS = len(FEATURE_STRIDES)
# Label of pixels without class.
IGNORE_INDEX = 255


@strict
class MTAClipConfig(PreTrainedConfig):
    r"""
    Configuration of [`MTAClipModel`] and [`MTAClipForSemanticSegmentation`].

    A model needs the token ids of its class names: [`MTAClipConfig.from_labels`] makes them with a CLIP tokenizer, and
    keeps them here, so that neither loading nor inference needs a tokenizer.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone that `AutoBackbone` builds (timm's through `TimmBackboneConfig`), set up to return four
            feature maps, either at strides 4, 8, 16 and 32, or all at the same stride (vision transformers), for which
            a feature pyramid is added. Channels and strides are read from it. Defaults to a ResNet-50, unless
            `feature_channels` is given.
        feature_channels (`list[int]`, *optional*):
            Channels of the four feature maps of a model without a backbone, which is called with `feature_maps` only.
        text_config (`CLIPTextConfig` or `dict`, *optional*):
            The CLIP text encoder. Defaults to the one of CLIP ViT-B (width 512, 12 layers).
        text_branch (`bool`, defaults to `True`):
            `False` leaves out prompts, text encoder, text queries and the contrastive loss: plain Mask2Former.
        stored_text_embeddings (`bool`, defaults to `False`):
            `True` means that the text embeddings are stored in place of prompts and text encoder, as
            [`MTAClipForSemanticSegmentation.save_for_inference`] does; such a model can't be trained.
        class_token_ids (`dict[str, list[int]]`, *optional*):
            Token ids of every class name and of `no_object_name`, without start, end and padding tokens.
        no_object_name (`str`, defaults to `"none"`): The name that stands for "no object" (Sec. 3.2).
        prompt_start_token_id (`int`, defaults to 49406):
            Id of CLIP's start-of-text token. (`text_config.bos_token_id` is wrong in many published checkpoints.)
        prompt_end_token_id (`int`, defaults to 49407):
            Id of CLIP's end-of-text token, at which the text embedding is read.
        num_prompt_contexts (`int`, defaults to 3): Number of learnable prompt contexts, `C` (Sec. 3.3).
        prompt_length (`int`, defaults to 8): Number of learnable vectors in each context, `L`.
        text_gamma_init (`float`, defaults to 1e-4):
            Initial value of the vector that scales the decoder's contribution to the text embeddings.
        num_queries (`int`, defaults to 100): Number of mask queries, `Q`.
        hidden_size (`int`, defaults to 256):
            Width of pixel decoder and mask-text decoder, a multiple of `encoder_norm_groups`.
        mask_feature_size (`int`, defaults to 256): Channels of the mask features at stride 4.
        encoder_layers (`int`, defaults to 6): Deformable attention layers of the pixel decoder.
        encoder_attention_heads (`int`, defaults to 8): Attention heads of the pixel decoder.
        encoder_feedforward_dim (`int`, defaults to 1024): Width of the pixel decoder's feed-forward networks.
        encoder_num_points (`int`, defaults to 4): Points that a head samples on each level.
        encoder_norm_groups (`int`, defaults to 32): Groups of the pixel decoder's GroupNorm layers.
        decoder_layers (`int`, defaults to 9): Layers of the mask-text decoder.
        decoder_attention_heads (`int`, defaults to 8): Attention heads of the mask-text decoder.
        decoder_feedforward_dim (`int`, defaults to 2048): Width of the mask-text decoder's feed-forward networks.
        class_weight (`float`, defaults to 2.0): Weight of the classification loss.
        mask_weight (`float`, defaults to 5.0): Weight of the masks' sigmoid cross-entropy.
        dice_weight (`float`, defaults to 5.0): Weight of the masks' dice loss.
        contrastive_weight (`float`, defaults to 1.0): Weight of the mask-to-text contrastive loss.
        class_mask_weight (`float`, defaults to 0.0):
            Weight of the losses of class masks: masks that the text queries predict for their own classes, without
            matching, as in textual object queries (arXiv 2407.09033). With 0 there are none, as in the authors' code.
        class_mask_share (`float`, defaults to 0.0):
            How much class masks add to the scores of a prediction, in [0, 1]: at 1, each counts like a mask query that
            is certain of its class.
        no_object_weight (`float`, defaults to 0.1):
            Weight of "no object" queries in the classification and contrastive losses.
        match_class_weight (`float`, defaults to 2.0): Weight of the class cost in Hungarian matching.
        match_mask_weight (`float`, defaults to 5.0): Weight of the mask cross-entropy cost in Hungarian matching.
        match_dice_weight (`float`, defaults to 5.0): Weight of the dice cost in Hungarian matching.
        contrastive_negatives (`str`, defaults to `"mix"`):
            Negatives of the contrastive loss (Sec. 3.4): `"mix"` (MixNeg), `"separate"` (SeparateNeg) or
            `"all_positive"`.
        contrastive_temperature (`float`, defaults to 1.0):
            Temperature of the contrastive loss; the authors' code uses 1.
        train_num_points (`int`, defaults to 12544):
            Points on which masks are matched and compared, per mask (112 × 112).
        oversample_ratio (`float`, defaults to 3.0):
            Candidate points per point of the mask losses, among which the most uncertain are chosen.
        importance_sample_ratio (`float`, defaults to 0.75):
            Share of the points that is chosen by uncertainty; the rest is uniform.
        point_sampling (`str`, defaults to `"random"`):
            Where masks are matched and compared: at `"random"` points, as in the authors' code, or (`"auto"`) at every
            pixel of the mask features, once, where these are at most `train_num_points`, and at random points else.
        semantic_loss_ignore_index (`int`, defaults to 255): Label of pixels that no loss counts.
        supervise_initial_prediction (`bool`, defaults to `True`):
            Whether the predictions before the first decoder layer have a loss, as in Mask2Former. The authors' code
            leaves them out.
        mask_loss_normalizer (`str`, defaults to `"num_masks"`):
            What mask and dice losses are divided by: the number of matched masks, or, as in the authors' code, the sum
            of all queries' class weights (`"class_weights"`).
        ignored_pixels (`str`, defaults to `"exclude"`):
            Whether ignored pixels are left out of the mask losses, or count as `"background"` of every mask, as in the
            authors' code.
        init_std (`float`, defaults to 0.02): Standard deviation of the initial prompt contexts.

    Raises:
        ValueError: a value out of range, class names without token ids, or `num_labels` against the names.

    Example:

    ```python
    >>> from transformers import AutoTokenizer
    >>> from modeling_mtaclip import MTAClipConfig, MTAClipForSemanticSegmentation

    >>> tokenizer = AutoTokenizer.from_pretrained("openai/clip-vit-base-patch16")
    >>> config = MTAClipConfig.from_labels(["road", "building", "sky"], tokenizer)
    >>> model = MTAClipForSemanticSegmentation(config)
    ```
    """

    model_type = "mtaclip"
    sub_configs_defaults = {  # noqa: RUF012 (transformers reads the class attribute)
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="resnet",
            init_kwargs={"out_features": ["stage1", "stage2", "stage3", "stage4"]},
            optional=True,
        ),
        "text_config": SubConfigSpec(config_class=CLIPTextConfig, optional=True),
    }
    attribute_map = {"num_hidden_layers": "decoder_layers", "num_attention_heads": "decoder_attention_heads"}  # noqa: RUF012
    keys_to_ignore_at_inference = [  # noqa: RUF012 (Trainer adds a list to it)
        "class_queries_logits",
        "masks_queries_logits",
        "mask_text_similarity",
        "text_embeddings",
        "auxiliary_predictions",
        "loss_components",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    feature_channels: list[int] | tuple[int, ...] | None = None
    text_config: dict | PreTrainedConfig | None = None
    text_branch: bool = True
    stored_text_embeddings: bool = False
    class_token_ids: dict[str, list[int]] | None = None
    no_object_name: str = "none"
    prompt_start_token_id: int = 49406
    prompt_end_token_id: int = 49407
    num_prompt_contexts: int = 3
    prompt_length: int = 8
    text_gamma_init: float | int = 1e-4
    num_queries: int = 100
    hidden_size: int = 256
    mask_feature_size: int = 256
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_feedforward_dim: int = 1024
    encoder_num_points: int = 4
    encoder_norm_groups: int = 32
    decoder_layers: int = 9
    decoder_attention_heads: int = 8
    decoder_feedforward_dim: int = 2048
    class_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    contrastive_weight: float | int = 1.0
    class_mask_weight: float | int = 0.0
    class_mask_share: float | int = 0.0
    no_object_weight: float | int = 0.1
    match_class_weight: float | int = 2.0
    match_mask_weight: float | int = 5.0
    match_dice_weight: float | int = 5.0
    contrastive_negatives: str = "mix"
    contrastive_temperature: float | int = 1.0
    train_num_points: int = 12544
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75
    point_sampling: str = "random"
    semantic_loss_ignore_index: int = IGNORE_INDEX
    supervise_initial_prediction: bool = True
    mask_loss_normalizer: str = "num_masks"
    ignored_pixels: str = "exclude"
    init_std: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None and self.feature_channels is None:
            self.backbone_config = {"model_type": "resnet"} | self.sub_configs_defaults["backbone_config"].init_kwargs
        if self.text_config is None and self.text_branch:
            self.text_config = {}
        if self.id2label is not None:
            self._check_labels(kwargs.get("num_labels"))
        super().__post_init__(**kwargs)
        if self.backbone_config is not None:
            # A model completes its configuration while it is built; the one that the caller passed stays as it was.
            self.backbone_config = copy_backbone_config(self.backbone_config)
        # The validators run again after this method, but wrapped into an error that is no ValueError.
        self.check()

    def check(self) -> None:
        """Checks all fields.

        Raises:
            ValueError: a value out of range, or that doesn't fit another.
        """
        self.validate_architecture()
        self.validate_losses()
        self.validate_class_names()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label":
            self._refuse_another_order(value)
        super().__setattr__(name, value)
        if name == "id2label" and value is not None:
            # A name may stand for several classes, as "screen" does in ADE20K; it leads back to the first.
            label2id = {label: int(index) for index, label in sorted(value.items(), key=lambda item: -int(item[0]))}
            super().__setattr__("label2id", dict(sorted(label2id.items(), key=lambda item: item[1])))

    def _refuse_another_order(self, id2label: Mapping[int, str] | None) -> None:
        """Weights don't move with names: who names classes while loading a model would get others' scores."""
        before, after = (
            {int(key): name for key, name in (names or {}).items()} for names in (self.id2label, id2label)
        )
        if before != after and sorted(map(str, before.values())) == sorted(map(str, after.values())):
            raise ValueError(
                f"`id2label` has the classes of this configuration in another order, {after}, but the weights of a "
                f"model keep theirs, {before}. Load it as it is, and use `model.with_classes(names)`."
            )

    def _check_labels(self, num_labels: int | None) -> None:
        ids = sorted(map(int, self.id2label))
        if ids != list(range(len(ids))):
            raise ValueError(f"`id2label` must name the classes 0 … {len(ids) - 1} without gaps, got the ids {ids}.")
        if num_labels is not None and num_labels != len(self.id2label):
            raise ValueError(
                f"`num_labels` is {num_labels}, but `id2label` names {len(self.id2label)} classes. Leave `num_labels` "
                "out: it follows from the names."
            )

    @classmethod
    def from_labels(cls, labels: Sequence[str] | Mapping[int, str], tokenizer: Any, **kwargs: Any) -> "MTAClipConfig":
        """Configures a model for the given classes: tokenizes their names once and keeps the token ids.

        Underscores in names are read as spaces.

        Args:
            labels (`Sequence[str]` or `Mapping[int, str]`): class names in the order of the label ids, or by label id.
            tokenizer (`PreTrainedTokenizerBase` or `str`): CLIP's, or the name or folder of a checkpoint that has it.
            kwargs: any field of this class.

        Raises:
            ValueError: no names, or a name without tokens, too long for the text encoder, or outside its vocabulary.
        """
        if isinstance(labels, str) or not labels:
            raise ValueError(f"`labels` must name at least one class, as a list or by label id, got {labels!r}.")
        id2label = dict(labels) if isinstance(labels, Mapping) else dict(enumerate(labels))
        if isinstance(tokenizer, str):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        no_object_name = kwargs.setdefault("no_object_name", "none")
        kwargs.setdefault("prompt_start_token_id", tokenizer.bos_token_id)
        kwargs.setdefault("prompt_end_token_id", tokenizer.eos_token_id)
        kwargs["class_token_ids"] = tokenize_names([*id2label.values(), no_object_name], tokenizer)
        return cls(id2label=id2label, **kwargs)

    def class_names_with_no_object(self) -> list[str]:
        """The `K + 1` names that the text encoder reads: the classes in the order of their ids, then "no object"."""
        return [*(self.id2label[index] for index in range(self.num_labels)), self.no_object_name]

    def validate_architecture(self) -> None:
        """Sizes that depend on each other; run when a config is made and when it is saved."""
        sizes = ("num_queries", "num_prompt_contexts", "prompt_length", "hidden_size", "mask_feature_size")
        encoder = ("encoder_attention_heads", "encoder_feedforward_dim", "encoder_num_points", "encoder_norm_groups")
        decoder = ("decoder_layers", "decoder_attention_heads", "decoder_feedforward_dim")
        self._require("be positive", lambda value: value > 0, *sizes, *encoder, *decoder)
        self._require("not be negative", lambda value: value >= 0, "encoder_layers")
        for name in ("encoder_attention_heads", "encoder_norm_groups", "decoder_attention_heads"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(
                    f"`hidden_size` ({self.hidden_size}) must be a multiple of `{name}` ({getattr(self, name)})."
                )
        if self.feature_channels is not None and len(self.feature_channels) != NUM_FEATURE_MAPS:
            raise ValueError(
                f"`feature_channels` must list the channels of {NUM_FEATURE_MAPS} feature maps (strides 4, 8, 16, "
                f"32), got {list(self.feature_channels)}."
            )
        if self.feature_channels is not None and self.backbone_config is not None:
            raise ValueError(
                "`feature_channels` describes a model without backbone, but `backbone_config` is given too: the "
                "backbone's channels are read from it, so leave `feature_channels` out."
            )

    def validate_losses(self) -> None:
        """Ranges of everything that training reads; run when a config is made and when it is saved."""
        for name, choices in CHOICES.items():
            self._require(f"be one of {list(choices)}", choices.__contains__, name)
        weights = ("class", "mask", "dice", "contrastive", "class_mask", "match_class", "match_mask", "match_dice")
        self._require("not be negative", lambda value: value >= 0, *(f"{name}_weight" for name in weights))
        positive = ("train_num_points", "contrastive_temperature", "no_object_weight")
        self._require("be positive", lambda value: value > 0, *positive)
        shares = ("class_mask_share", "importance_sample_ratio")
        self._require("be between 0 and 1", lambda value: 0 <= value <= 1, *shares)
        self._require("be at least 1", lambda value: value >= 1, "oversample_ratio")
        if (self.class_mask_weight or self.class_mask_share) and not self.text_branch:
            raise ValueError(
                "`class_mask_weight` and `class_mask_share` are for masks of text queries, which a model without text "
                "branch doesn't have. Leave them out, or set `text_branch=True`."
            )
        ignored = self.semantic_loss_ignore_index
        if 0 <= ignored < self.num_labels:
            raise ValueError(
                f"`semantic_loss_ignore_index` ({ignored}) is also the id of the class {self.id2label[ignored]!r}. "
                f"Choose a value outside 0 … {self.num_labels - 1}."
            )

    def _require(self, rule: str, is_right: Callable[[Any], bool], *names: str) -> None:
        for name in names:
            if not is_right(getattr(self, name)):
                raise ValueError(f"`{name}` must {rule}, got {getattr(self, name)!r}.")

    def validate_class_names(self) -> None:
        """Every class name has token ids that the text encoder can read; run when a config is made and saved."""
        if not self.text_branch or self.class_token_ids is None:
            return
        names = self.class_names_with_no_object()
        if self.stored_text_embeddings and set(names) != set(self.class_token_ids):
            raise ValueError(
                f"The model was saved for inference and has the texts of {sorted(self.class_token_ids)} only, but the "
                f"classes are {names}. Give other classes to the model that it was saved from."
            )
        missing = [name for name in names if name not in self.class_token_ids]
        if missing:
            raise ValueError(
                f"No token ids for the class names {missing}: `class_token_ids` has {sorted(self.class_token_ids)}. "
                "Load a trained model with its own classes, and give it others with `model.with_classes(names)`; "
                "configure a new one with `MTAClipConfig.from_labels(names, tokenizer, ...)`."
            )
        for name in names:
            self.check_token_ids(name, self.class_token_ids[name])
        for field in ("prompt_start_token_id", "prompt_end_token_id"):
            if not 0 <= getattr(self, field) < self.text_config.vocab_size:
                raise ValueError(
                    f"`{field}` is {getattr(self, field)}, but the text encoder's vocabulary has "
                    f"{self.text_config.vocab_size} entries. Take it from the text encoder's tokenizer."
                )

    def check_token_ids(self, name: str, token_ids: Sequence[int]) -> None:
        """Refuses a name that the text encoder can't read: no tokens, too many, or ids outside the vocabulary."""
        longest_name = self.text_config.max_position_embeddings - self.prompt_length - 2
        if not token_ids:
            raise ValueError(f"The name {name!r} has no tokens. Choose one with letters in it.")
        if len(token_ids) > longest_name:
            raise ValueError(
                f"The name {name!r} has {len(token_ids)} tokens, but at most {longest_name} fit: the text "
                f"encoder has {self.text_config.max_position_embeddings} positions, of which {self.prompt_length} "
                "hold the prompt context and 2 the start and end tokens. Shorten the name."
            )
        if max(token_ids) >= self.text_config.vocab_size or min(token_ids) < 0:
            raise ValueError(
                f"The name {name!r} has the token ids {list(token_ids)}, but the text encoder's vocabulary has "
                f"{self.text_config.vocab_size} entries. Use the tokenizer that belongs to the text encoder."
            )


def tokenize_names(names: Sequence[str], tokenizer: Any) -> dict[str, list[int]]:
    """Token ids of each name by CLIP's tokenizer, without start and end tokens; underscores are read as spaces."""
    return {
        name: list(tokenizer(str(name).replace("_", " "), add_special_tokens=False)["input_ids"]) for name in names
    }


__all__ = ["MTAClipConfig", "tokenize_names"]
