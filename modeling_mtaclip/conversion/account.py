# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Fills a model from several sources, and accounts for every tensor: loaded and from where, new, or left out.

What can't be explained is an error: a tensor of a source that nobody knows, one of the model that its source should
have given, a shape that doesn't fit.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from .renaming import ConversionReport


# Why tensors of the model are new when no source gives them; the first pattern that fits.
REASONS_FOR_NEW = {
    r".*\.num_batches_tracked": "a counter that the source does not keep",
    r"model\.text_model\.contexts": "the prompts are learned",
    r"model\.decoder\.(text_projection|query_layer_norm)\..*|model\.decoder\.text_query_positions|text_head\..*": (
        "for the text queries, which the sources don't have"
    ),
    r"model\.feature_pyramid\..*": "the feature pyramid of a vision transformer is learned",
    r"model\.text_model\.text_encoder\..*": "no weights of a text encoder were given",
    r"model\.backbone\..*": "no weights of a backbone were given",
    r"model\.(pixel_decoder|decoder)\..*|class_predictor\..*": "no weights of a decoder were given",
}


@dataclass
class Part:
    """What one source gives to a model.

    Attributes:
        source (`str`): the file, folder or Hub id.
        tensors (`dict[str, Tensor]`): by their names in [`MTAClipForSemanticSegmentation`].
        report ([`ConversionReport`]): which of the source's tensors they are made from, and which are left out.
        covers (`str`): regular expression of the model's tensors that the part has to give, all of them.
        new (`dict[str, str]`): regular expressions of tensors within these that it need not give, and the reasons.
        notes (`dict[str, str]`): for tensors that are only a part of the source's, which one.
        new_classes (`list[str]`): classes that the source does not have.
    """

    source: str
    tensors: dict[str, Tensor]
    report: ConversionReport
    covers: str
    new: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    new_classes: list[str] = field(default_factory=list)


@dataclass
class LoadedTensor:
    """Where a tensor of the model comes from.

    Attributes:
        source (`str`): the file, folder or Hub id.
        names (`tuple[str, ...]`): the source's tensors that it is made from.
        note (`str`): which part of them, if not all.
    """

    source: str
    names: tuple[str, ...]
    note: str = ""


@dataclass
class WeightAccount:
    """The account of a model's weights. `str(account)` lists everything; numbers of layers are drawn together.

    Attributes:
        loaded (`dict[str, LoadedTensor]`): by the model's names.
        new (`dict[str, str]`): the model's other tensors, which keep their initial values, and why.
        left_out (`dict[str, dict[str, str]]`): by source, its tensors that are not used, and why.
        new_classes (`list[str]`): classes whose slices of loaded tensors are new.
    """

    loaded: dict[str, LoadedTensor] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    new_classes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """How many tensors were loaded from each source, are new, and were left out."""
        sources = {tensor.source: 0 for tensor in self.loaded.values()}
        for tensor in self.loaded.values():
            sources[tensor.source] += 1
        parts = [f"{count} tensors from {source}" for source, count in sources.items()]
        left_out = sum(len(names) for names in self.left_out.values())
        return "; ".join([*parts, f"{len(self.new)} new", f"{left_out} of the sources left out"])

    def __str__(self) -> str:
        lines = [f"Weights: {self.summary()}."]
        for source in dict.fromkeys(tensor.source for tensor in self.loaded.values()):
            rows = {
                (name, *tensor.names): tensor.note for name, tensor in self.loaded.items() if tensor.source == source
            }
            lines.append(f"From {source}:")
            lines += [
                f"  {name} <- {' + '.join(names)}{note and f' ({note})'}"
                for (name, *names), note in _draw_together(rows)
            ]
        reasons = {"New": self.new} | {f"Left out of {source}": names for source, names in self.left_out.items()}
        for title, names in reasons.items():
            rows = {(name,): reason for name, reason in names.items()}
            lines += [f"{title}:"] if rows else []
            lines += [f"  {name}: {reason}" for (name,), reason in _draw_together(rows)]
        return "\n".join(lines)


def load_parts(model: nn.Module, parts: Sequence[Part]) -> WeightAccount:
    """Loads tensors into a model, and accounts for all of the model's and all of the sources'.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): is changed in place, unless there is an error.
        parts (`Sequence[Part]`): no two of them with the same tensor.

    Raises:
        ValueError: a tensor that doesn't fit, is missing, or is given twice.
    """
    target = model.state_dict()
    account, tensors = WeightAccount(), {}
    for part in parts:
        _check_part(part, target, account.loaded)
        tensors |= part.tensors
        account.loaded |= _origins(part)
        account.new_classes += part.new_classes
    account.new = {name: _reason_for_new(name, parts) for name in target if name not in tensors}
    account.left_out = _left_out(parts)
    model.load_state_dict(tensors, strict=False)
    return account


def _check_part(part: Part, target: Mapping[str, Tensor], loaded: Mapping[str, LoadedTensor]) -> None:
    surplus = [name for name in part.tensors if name not in target]
    if surplus:
        raise ValueError(
            f"{part.source} has {len(surplus)} tensors for which the model has no place, e.g. {surplus[:3]}: their "
            "architectures differ."
        )
    misshapen = [name for name, tensor in part.tensors.items() if tensor.shape != target[name].shape]
    if misshapen:
        name = misshapen[0]
        raise ValueError(
            f"{part.source} does not fit the model: {len(misshapen)} tensors have other shapes, e.g. {name} has "
            f"{tuple(part.tensors[name].shape)} where the model has {tuple(target[name].shape)}. Leave out options "
            "that change the architecture."
        )
    twice = [name for name in part.tensors if name in loaded]
    if twice:
        raise ValueError(f"{part.source} and {loaded[twice[0]].source} both give {twice[0]}. Choose one of them.")
    missing = [
        name
        for name in target
        if re.fullmatch(part.covers, name)
        and name not in part.tensors
        and not name.endswith(".num_batches_tracked")
        and not any(re.fullmatch(pattern, name) for pattern in part.new)
    ]
    if missing:
        raise ValueError(f"{part.source} lacks the tensors for {missing[:5]}{' …' if len(missing) > 5 else ''}.")


def _origins(part: Part) -> dict[str, LoadedTensor]:
    names: dict[str, list[str]] = {}
    for original, targets in part.report.used.items():
        for target in targets:
            names.setdefault(target, []).append(original)
    return {
        target: LoadedTensor(part.source, tuple(originals), part.notes.get(target, ""))
        for target, originals in names.items()
    }


def _reason_for_new(name: str, parts: Sequence[Part]) -> str:
    reasons = [*(item for part in parts for item in part.new.items()), *REASONS_FOR_NEW.items()]
    reason = next((reason for pattern, reason in reasons if re.fullmatch(pattern, name)), None)
    if reason is None:
        raise ValueError(f"{name} would be new without a known reason: it belongs to no part of the model.")
    return reason


def _left_out(parts: Sequence[Part]) -> dict[str, dict[str, str]]:
    """By source; what another part of the same source uses is not left out."""
    left_out: dict[str, dict[str, str]] = {}
    for source in dict.fromkeys(part.source for part in parts):
        reports = [part.report for part in parts if part.source == source]
        used = {name for report in reports for name in report.used}
        names = {name: reason for report in reports for name, reason in report.left_out.items() if name not in used}
        if names:
            left_out[source] = names
    return left_out


def _draw_together(rows: Mapping[tuple[str, ...], str]) -> list[tuple[tuple[str, ...], str]]:
    """Unites rows of names that differ in one place: `layers.{0-5}.fc1.{weight,bias}` stands for twelve names."""
    united = list(rows.items())
    for find_place in (_last_number, _last_number_but_one, lambda words: len(words) - 1):
        groups: dict[tuple, list[tuple[str, ...]]] = {}
        for names, text in united:
            templates, values = zip(*(_take_out(name, find_place) for name in names), strict=True)
            groups.setdefault((templates, text), []).append(values)
        united = [
            (
                tuple(
                    template.replace("\0", _unite(column))
                    for template, column in zip(templates, zip(*members, strict=True), strict=True)
                ),
                text,
            )
            for (templates, text), members in groups.items()
        ]
    return united


def _take_out(name: str, find_place: Callable[[list[str]], int | None]) -> tuple[str, str]:
    """A name with a gap at the place, and what stood there."""
    words = name.split(".")
    place = find_place(words)
    if place is None:
        return name, ""
    value, words[place] = words[place], "\0"
    return ".".join(words), value


def _last_number(words: list[str], from_end: int = 1) -> int | None:
    numbers = [index for index, word in enumerate(words) if re.fullmatch(r"\d+|\{[\d,-]+\}", word)]
    return numbers[-from_end] if len(numbers) >= from_end else None


def _last_number_but_one(words: list[str]) -> int | None:
    return _last_number(words, from_end=2)


def _unite(values: Sequence[str]) -> str:
    """What stands in one place of several names, in braces if there are different ones."""
    if len(set(values)) == 1:
        return values[0]
    if all(value.isdecimal() for value in values):
        first, last = int(values[0]), int(values[-1])
        if [int(value) for value in values] == list(range(first, last + 1)):
            return f"{{{first}-{last}}}"
    return f"{{{','.join(values)}}}"


__all__ = ["LoadedTensor", "Part", "WeightAccount", "load_parts"]
