# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""CLIP as a source: text encoder, image encoder as a backbone, and tokenizer.

CLIP comes as a folder or Hub id of transformers, or as OpenAI's RN50.pt, RN101.pt, ViT-B-16.pt, …
(https://github.com/openai/CLIP), TorchScript archives or state dicts with the same names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from ..backbone_mtaclip import CLIPResNetBackboneConfig, CLIPViTBackboneConfig
from .checkpoints import load_checkpoint, load_config, load_pretrained
from .weights import SourceWeights


TEXT_ENCODER = "model.text_model.text_encoder."

# OpenAI's names with the prefixes of the authors' code, which has the same modules.
WITH_PREFIXES = {
    r"^visual\.": "backbone.",
    r"^(token_embedding\.|positional_embedding$|transformer\.|ln_final\.|text_projection$)": r"text_encoder.\1",
}
BLOCKS = {
    r"(resblocks\.\d+)\.attn\.": r"\1.self_attn.",
    r"(resblocks\.\d+)\.ln_(\d)\.": r"\1.layer_norm\2.",
    r"(resblocks\.\d+)\.mlp\.c_fc\.": r"\1.mlp.fc1.",
    r"(resblocks\.\d+)\.mlp\.c_proj\.": r"\1.mlp.fc2.",
}
TEXT_NAMES = BLOCKS | {
    r"^text_encoder\.transformer\.resblocks\.": f"{TEXT_ENCODER}text_model.encoder.layers.",
    r"^text_encoder\.token_embedding\.": f"{TEXT_ENCODER}text_model.embeddings.token_embedding.",
    r"^text_encoder\.positional_embedding$": f"{TEXT_ENCODER}text_model.embeddings.position_embedding.weight",
    r"^text_encoder\.ln_final\.": f"{TEXT_ENCODER}text_model.final_layer_norm.",
    r"^text_encoder\.text_projection$": f"{TEXT_ENCODER}text_projection.weight",
}
VISUAL_NAMES = BLOCKS | {
    r"^backbone\.transformer\.resblocks\.": "model.backbone.encoder.layers.",
    r"^backbone\.class_embedding$": "model.backbone.embeddings.class_embedding",
    r"^backbone\.positional_embedding$": "model.backbone.embeddings.position_embedding.weight",
    r"^backbone\.conv1\.weight$": "model.backbone.embeddings.patch_embedding.weight",
    r"^backbone\.ln_pre\.": "model.backbone.pre_layrnorm.",
}
RESNET_NAMES = {r"^backbone\.": "model.backbone."}

CONSTANTS = {
    r"logit_scale": "CLIP's temperature; ours is in the config",
    r"input_resolution|context_length|vocab_size": "a constant, which the config holds",
}
POOLING = {
    r"(?:visual|backbone)\.(?:attnpool\..+|ln_post\..+|proj)|vision_model\.post_layernorm\..+|visual_projection\..+": (
        "pools the feature maps into one embedding of the image"
    )
}
VISUAL_HALF = {
    r"visual\..+|vision_model\..+|visual_projection\..+": "the visual half of CLIP: the backbone is another one"
}
TEXT_HALF = {
    r"(?:text_model|text_projection)\..+|token_embedding\.weight|positional_embedding|text_projection|ln_final\..+"
    r"|transformer\..+": "the text half of CLIP: the text encoder is another one"
}


@dataclass
class ClipSource:
    """A CLIP model by OpenAI's or by transformers' names, with what configures its text and its visual half."""

    source: str
    tensors: dict[str, Tensor]
    text_config: CLIPTextConfig | None = None
    visual_fields: dict[str, Any] | None = None

    def text_encoder_config(self) -> CLIPTextConfig:
        """The configuration of the text half."""
        if self.text_config is None:
            raise self._lacks("text")
        return self.text_config

    def backbone_config(self, overrides: Mapping[str, Any] | None = None) -> PreTrainedConfig:
        """The configuration of the visual half as a backbone, with some fields replaced."""
        if self.visual_fields is None:
            raise self._lacks("visual")
        return make_visual_config(self.visual_fields | dict(overrides or {}))

    def _lacks(self, half: str) -> ValueError:
        return ValueError(
            f"{self.source} has no {half} half of a CLIP model by OpenAI's or transformers' names; it has e.g. "
            f"{sorted(self.tensors)[:3]}."
        )

    def text_encoder_weights(self) -> SourceWeights:
        """The text half."""
        weights = SourceWeights(self.source, covers=rf"{TEXT_ENCODER}.+")
        names = WITH_PREFIXES | TEXT_NAMES | {r"^(text_model|text_projection)\.": rf"{TEXT_ENCODER}\1."}
        weights.rename(self.tensors, names, CONSTANTS | VISUAL_HALF)
        return weights

    def backbone_weights(self) -> SourceWeights:
        """The visual half without what pools its feature maps."""
        weights = SourceWeights(self.source, covers=r"model\.backbone\..+")
        names = WITH_PREFIXES | visual_names(self.tensors, "visual.") | {r"^vision_model\.": "model.backbone."}
        weights.rename(self.tensors, names, CONSTANTS | POOLING | TEXT_HALF)
        return weights


def load_clip(name_or_path: str) -> ClipSource:
    """Reads CLIP from OpenAI's `.pt` file, or a folder or Hub id of transformers; else it is a `ValueError`."""
    if Path(name_or_path).is_file():
        return _load_openai(name_or_path)
    config = load_config(name_or_path, "clip", "clip_text_model")
    if isinstance(config, CLIPTextConfig):
        model, _ = load_pretrained(CLIPTextModelWithProjection, name_or_path)
        return ClipSource(name_or_path, model.state_dict(), config)
    model, _ = load_pretrained(CLIPModel, name_or_path)
    config.text_config.projection_dim = config.projection_dim
    about_the_file = ("model_type", "dtype", "architectures", "transformers_version")
    fields = {name: value for name, value in config.vision_config.to_diff_dict().items() if name not in about_the_file}
    config.text_config.dtype = None
    return ClipSource(name_or_path, model.state_dict(), config.text_config, fields)


def _load_openai(path: str) -> ClipSource:
    tensors = load_checkpoint(path).tensors
    source = ClipSource(path, tensors)
    try:
        if "token_embedding.weight" in tensors:
            source.text_config = openai_text_config(tensors)
        if "visual.conv1.weight" in tensors:
            source.visual_fields = openai_visual_fields(tensors, "visual.")
    except KeyError as error:
        raise ValueError(f"{path} is no complete CLIP model: it lacks the tensor {error}.") from error
    return source


def is_clip(name_or_path: str) -> bool:
    """Whether a name is that of a file, or of a folder or Hub id with a CLIP model."""
    is_file = Path(name_or_path).is_file()
    return is_file or (is_pretrained(name_or_path) and isinstance(load_config(name_or_path), CLIPConfig))


def is_pretrained(name_or_path: str) -> bool:
    """Whether a name is that of a folder or a Hub id of transformers, with weights."""
    return Path(name_or_path).is_dir() or ("/" in name_or_path and not name_or_path.startswith("timm/"))


def visual_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """For [`SourceWeights.rename`]: the names of the visual half with this prefix."""
    return VISUAL_NAMES if f"{prefix}class_embedding" in tensors else RESNET_NAMES


def openai_visual_fields(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Fields of the backbone's configuration by the shapes of tensors with OpenAI's names behind a prefix."""
    if f"{prefix}class_embedding" not in tensors:
        layers = [count_layers(tensors, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4)]
        return {"width": len(tensors[f"{prefix}conv3.weight"]), "layers": layers}
    hidden_size, _, patch_size, _ = tensors[f"{prefix}conv1.weight"].shape
    blocks = f"{prefix}transformer.resblocks."
    return {
        "hidden_size": hidden_size,
        "patch_size": patch_size,
        "image_size": patch_size * math.isqrt(len(tensors[f"{prefix}positional_embedding"]) - 1),
        "num_hidden_layers": count_layers(tensors, blocks),
        "num_attention_heads": max(1, hidden_size // 64),
        "intermediate_size": len(tensors[f"{blocks}0.mlp.c_fc.weight"]),
    }


def make_visual_config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of CLIP's ResNet, which has a `width`, or of its vision transformer."""
    return CLIPResNetBackboneConfig(**fields) if "width" in fields else CLIPViTBackboneConfig(**fields)


def openai_text_config(tensors: Mapping[str, Tensor], prefix: str = "") -> CLIPTextConfig:
    """Configures the text encoder of a checkpoint with OpenAI's names by the shapes of its tensors."""
    vocab_size, width = tensors[f"{prefix}token_embedding.weight"].shape
    blocks = f"{prefix}transformer.resblocks."
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=len(tensors[f"{blocks}0.mlp.c_fc.weight"]),
        projection_dim=tensors[f"{prefix}text_projection"].shape[1],
        num_hidden_layers=count_layers(tensors, blocks),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=len(tensors[f"{prefix}positional_embedding"]),
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
    )


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow a prefix of names, as in `layers.0.…`, `layers.1.…`."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})


def load_tokenizer(name_or_path: str, **hub_options: Any) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder or the Hub; none, or one without vocabulary, is a `ValueError`."""
    hint = "Give a folder with `tokenizer.json`, or `vocab.json` and `merges.txt`, or the name of a CLIP checkpoint."
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **hub_options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"No tokenizer could be loaded from {name_or_path!r}: {error} {hint}") from error
    # Where the files of a vocabulary are missing, transformers makes a tokenizer that knows nothing.
    if "street" not in tokenizer.decode(tokenizer("street", add_special_tokens=False)["input_ids"]):
        raise ValueError(f"The tokenizer in {name_or_path!r} has no vocabulary for plain English words. {hint}")
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, text_config: CLIPTextConfig, source: str) -> None:
    """Refuses a tokenizer that doesn't belong to a text encoder, as far as their sizes tell."""
    if len(tokenizer) != text_config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but the text encoder of {source!r} knows "
            f"{text_config.vocab_size}: it would read other words. Give the tokenizer that belongs to it."
        )
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer has no start or no end token, which the text encoder of {source!r} needs.")


def make_tokenizer(names: Sequence[str] = ()) -> CLIPTokenizer:
    """Makes a tokenizer in CLIP's format without any download, for which each word of the names is one token.

    Any other text falls apart into words and bytes that are known, so that a model can be given other classes later.
    Underscores count as spaces.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merges: dict[tuple[str, str], int] = {}
    splitter = CLIPTokenizer().backend_tokenizer
    for name in names:
        text = splitter.normalizer.normalize_str(name.replace("_", " "))
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(text):
            pieces = _merge([*word[:-1], f"{word[-1]}</w>"], merges)
            while len(pieces) > 1:
                # A new merge comes after all earlier ones, so that words that are whole already stay whole.
                merges[pieces[0], pieces[1]] = len(merges)
                pieces = _merge(pieces, merges)
    vocabulary += dict.fromkeys("".join(pair) for pair in merges if "".join(pair) not in vocabulary)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=list(merges))


def _merge(pieces: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding (arXiv 1508.07909): the earliest known merge first, until none applies."""
    while True:
        pairs = [(merges[pair], index) for index, pair in enumerate(pairwise(pieces)) if pair in merges]
        if not pairs:
            return pieces
        _, index = min(pairs)
        pieces = [*pieces[:index], pieces[index] + pieces[index + 1], *pieces[index + 2 :]]


def small_text_config(
    tokenizer: PreTrainedTokenizerBase, hidden_size: int = 128, num_layers: int = 2
) -> CLIPTextConfig:
    """Configures a small CLIP text encoder for a tokenizer; its width, a multiple of 64, is also its embeddings'."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, hidden_size // 64),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
