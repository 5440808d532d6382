# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Other classes for a trained model: names are tokenised, and weights that belong to classes move with the names."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from .configuration_mtaclip import MTAClipConfig, tokenize_names


# Tensors of a model with one slice per class, and the dimension; the last slice is "no object".
PER_CLASS = {"class_predictor.weight": 0, "class_predictor.bias": 0, "model.decoder.text_query_positions": 1}


def match_classes(names: Sequence[str], source_names: Sequence[str]) -> dict[int, int]:
    """Which class of a source each class is: the one of the same name, else the one that shares a synonym.

    Case, underscores and spaces at the ends don't count; commas separate synonyms, as in "door, double door". Names
    that several classes share are matched in order.

    Args:
        names (`Sequence[str]`): the classes that are wanted.
        source_names (`Sequence[str]`): the classes that are there.

    Returns:
        `dict[int, int]`: from index in `names` to index in `source_names`; a class that is not there is absent.
    """
    matches: dict[int, int] = {}
    synonyms, source_synonyms = _synonyms(names), _synonyms(source_names)
    for is_same in (list.__eq__, lambda one, other: not set(one).isdisjoint(other)):
        for index in set(range(len(names))) - matches.keys():
            free = sorted(set(range(len(source_names))) - set(matches.values()))
            found = next((other for other in free if is_same(synonyms[index], source_synonyms[other])), None)
            if found is not None:
                matches[index] = found
    return dict(sorted(matches.items()))


def _synonyms(names: Sequence[str]) -> list[list[str]]:
    return [[" ".join(name.split()) for name in each.casefold().replace("_", " ").split(",")] for each in names]


def new_classes(names: Sequence[str], source_names: Sequence[str]) -> list[str]:
    """The classes of `names` that are not among those of a source."""
    matches = match_classes(names, source_names)
    return [name for index, name in enumerate(names) if index not in matches]


def move_classes(
    tensors: dict[str, Tensor], initial: Mapping[str, Tensor], names: Sequence[str], source_names: Sequence[str]
) -> dict[str, str]:
    """Rewrites tensors of a source for other classes; new classes keep their initial values.

    Args:
        tensors (`dict[str, Tensor]`): the source's, by our names; those of [`PER_CLASS`] are replaced.
        initial (`Mapping[str, Tensor]`): state dict of the model with the new classes.
        names (`Sequence[str]`): of the model's classes.
        source_names (`Sequence[str]`): of the source's classes.

    Returns:
        `dict[str, str]`: for each replaced tensor, which classes were moved.
    """
    if list(names) == list(source_names):
        return {}
    matches = match_classes(names, source_names)
    rows, source_rows = [*matches, len(names)], [*matches.values(), len(source_names)]
    unused = [name for index, name in enumerate(source_names) if index not in matches.values()]
    note = (
        f"no object and {len(matches)} classes by name; "
        f"new: {', '.join(new_classes(names, source_names)) or 'none'}; not used: {', '.join(unused) or 'none'}"
    )
    notes = {}
    for name, dim in PER_CLASS.items():
        if name in tensors:
            merged = initial[name].movedim(dim, 0).clone()
            merged[rows] = tensors[name].movedim(dim, 0)[source_rows].to(merged.dtype)
            tensors[name] = merged.movedim(0, dim)
            notes[name] = note
    return notes


def tokenize_new_names(config: MTAClipConfig, folder: str, **hub_options: Any) -> None:
    """Gives a config the token ids of its class names, from the tokenizer that a checkpoint carries.

    Args:
        config (`MTAClipConfig`): with the wanted `id2label`; its `class_token_ids` are completed.
        folder (`str`): of the checkpoint, or its name on the Hub.
        hub_options: such as `revision` and `token`.

    Raises:
        ValueError: a checkpoint without tokenizer, or that was saved for inference.
    """
    names = config.class_names_with_no_object()
    missing = [name for name in names if name not in config.class_token_ids]
    if not config.text_branch or not missing:
        return
    if config.stored_text_embeddings:
        raise ValueError(
            f"{folder} was saved for inference and has no text encoder for the new classes {missing}: load the "
            "checkpoint that it was made from."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **hub_options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no tokenizer for the new class names {missing}: save CLIP's there, for example with "
            '`AutoTokenizer.from_pretrained("openai/clip-vit-base-patch16").save_pretrained(folder)`, or pass a '
            "`config` whose `class_token_ids` have them."
        ) from error
    config.class_token_ids = config.class_token_ids | tokenize_names(missing, tokenizer)


__all__ = ["PER_CLASS", "match_classes", "move_classes", "new_classes"]
