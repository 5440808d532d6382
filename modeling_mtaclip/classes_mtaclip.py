# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Other classes for a trained model: weights that belong to classes move with the names."""

from collections.abc import Mapping, Sequence

from torch import Tensor


# Tensors of a model with one slice per class, and the dimension; the last slice is "no object".
PER_CLASS = {"class_predictor.weight": 0, "class_predictor.bias": 0, "model.decoder.text_query_positions": 1}


def match_classes(names: Sequence[str], source_names: Sequence[str]) -> dict[int, int]:
    """Which class of a source each class is: the one of the same name, else the one that shares a synonym.

    Case, underscores and spaces at the ends don't count; commas separate synonyms, as in "door, double door". Names
    that several classes share are matched in order.

    Returns:
        `dict[int, int]`: from index in `names` to index in `source_names`; a class that is not there is absent.
    """
    matches: dict[int, int] = {}
    synonyms, source_synonyms = _synonyms(names), _synonyms(source_names)
    for is_same in (list.__eq__, lambda one, other: not set(one).isdisjoint(other)):
        for index in sorted(set(range(len(names))) - matches.keys()):
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
    """Rewrites tensors of a source for other classes, in place; new classes keep their initial values.

    Args:
        tensors (`dict[str, Tensor]`): the source's, by our names; those of [`PER_CLASS`] are replaced.
        initial (`Mapping[str, Tensor]`): state dict of the model with the new classes.
        names, source_names (`Sequence[str]`): of the model's and of the source's classes.

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


__all__ = ["PER_CLASS", "match_classes", "move_classes", "new_classes"]
