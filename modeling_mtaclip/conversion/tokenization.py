# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizer and text encoder of a run: CLIP's own from a folder, or small ones that need no download."""

from collections.abc import Sequence
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPTextConfig, CLIPTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging


logger = logging.get_logger(__name__)

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
END_OF_WORD = "</w>"


def make_tokenizer(names: Sequence[str] = ()) -> CLIPTokenizer:
    """Makes a tokenizer in CLIP's format that knows every byte, and the words of some names, without any download.

    A known word is one token; any other text falls apart into words and bytes that are known, so that a model can be
    given other classes later.

    Args:
        names (`Sequence[str]`, *optional*): texts whose words become tokens; underscores count as spaces.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *(letter + END_OF_WORD for letter in alphabet)]
    merges: dict[tuple[str, str], int] = {}
    splitter = CLIPTokenizer().backend_tokenizer
    for name in names:
        text = splitter.normalizer.normalize_str(name.replace("_", " "))
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(text):
            pieces = _merge([*word[:-1], word[-1] + END_OF_WORD], merges)
            while len(pieces) > 1:
                # A new merge comes after all earlier ones, so that words that are whole already stay whole.
                merges[pieces[0], pieces[1]] = len(merges)
                pieces = _merge(pieces, merges)
    vocabulary += dict.fromkeys("".join(pair) for pair in merges if "".join(pair) not in vocabulary)
    vocabulary += [START_TOKEN, END_TOKEN]
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
    """Configures a small CLIP text encoder for a tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): its vocabulary is the encoder's.
        hidden_size (`int`): width, a multiple of 64; also the size of the text embeddings.
        num_layers (`int`): layers.
    """
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


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder or the Hub.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"No tokenizer could be loaded from {name_or_path!r}: {error} Give a folder with `tokenizer.json`, or "
            "`vocab.json` and `merges.txt`, or the name of a CLIP checkpoint on the Hub."
        ) from error


def load_text_config(name_or_path: str) -> CLIPTextConfig:
    """Reads the configuration of a CLIP text encoder, alone or as a part of a whole CLIP model.

    Raises:
        ValueError: the folder or Hub checkpoint is no CLIP model.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"No CLIP text encoder could be read from {name_or_path!r}: {error}") from error
    if isinstance(config, CLIPConfig):
        text_config = config.text_config
        text_config.projection_dim = config.projection_dim
        return text_config
    if isinstance(config, CLIPTextConfig):
        return config
    raise ValueError(
        f"{name_or_path!r} holds a model of the type {config.model_type!r}; the text encoder must be a CLIP model, "
        "like openai/clip-vit-base-patch16."
    )


__all__ = ["load_text_config", "load_tokenizer", "make_tokenizer", "small_text_config"]
