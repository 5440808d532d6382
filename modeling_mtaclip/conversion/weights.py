# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Fills a model from several sources, and reports where each tensor came from: loaded, new, or left out.

Refused before anything is loaded: a tensor of a source that nobody knows, one of the model that its source should have
given, a shape that doesn't fit, a value that is not finite.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn


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
# Where names may differ in one place: a number (the last that is not yet in braces), and the last word.
NUMBER, LAST_WORD = r"(.*\.)(\d+)(\..*|)", r"(.*\.|)([^.{]+)()"


@dataclass
class SourceWeights:
    """What one source (a file, folder or Hub id) gives to a model."""

    source: str
    # Regular expression of the model's tensors that the source must give, but for those in `new`, with the reasons.
    covers: str
    new: dict[str, str] = field(default_factory=dict)
    # By the model's names, the tensors, and the source's tensors that each is made from.
    tensors: dict[str, Tensor] = field(default_factory=dict)
    made_from: dict[str, list[str]] = field(default_factory=dict)
    # By the source's names, why other tensors are not used.
    left_out: dict[str, str] = field(default_factory=dict)
    # For tensors that are only a part of the source's, which one; and classes that the source does not have.
    notes: dict[str, str] = field(default_factory=dict)
    new_classes: list[str] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor, made_from: str) -> None:
        """Adds a tensor of the model, and the source's tensor that it is made from."""
        self.tensors[name] = tensor
        self.made_from.setdefault(name, []).append(made_from)

    def mark_missing(self, missing: Sequence[str]) -> None:
        """Notes which tensors are not the source's, because it may lack them."""
        for name, originals in self.made_from.items():
            if originals and set(originals) <= set(missing):
                self.made_from[name], self.notes[name] = [], "not in the source; no prediction depends on it"

    def rename(self, original: Mapping[str, Tensor], names: Mapping[str, str], left_out: Mapping[str, str]) -> None:
        """Adds the tensors of a foreign state dict, the packed projections of attention split into three.

        Args:
            original (`Mapping[str, Tensor]`): the foreign state dict.
            names (`Mapping[str, str]`): regular expressions and what replaces them, one after the other, like
                transformers' `key_mapping`.
            left_out (`Mapping[str, str]`): regular expressions of whole foreign names that we don't use, and why.
        """
        for name, tensor in original.items():
            reason = _find_reason(name, left_out)
            if reason is not None:
                self.left_out[name] = reason
                continue
            target = name
            for pattern, replacement in names.items():
                target = re.sub(pattern, replacement, target)
            if ".in_proj_" in target:
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    self.add(target.replace(".in_proj_", f".{letter}_proj."), part.clone(), name)
            else:
                self.add(target, tensor, name)


class LoadedTensor(NamedTuple):
    """Where a tensor of the model comes from: which tensors of which source, and which part of them if not all."""

    source: str
    names: tuple[str, ...]
    note: str


@dataclass
class LoadingReport:
    """Where a model's weights come from. `str(report)` lists everything; names that differ in one place share a line.

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

    def __str__(self) -> str:
        counts = Counter(tensor.source for tensor in self.loaded.values())
        left_out = sum(len(names) for names in self.left_out.values())
        loaded = "".join(f"{count} tensors from {source}; " for source, count in counts.items())
        lines = [f"Weights: {loaded}{len(self.new)} new; {left_out} of the sources left out."]
        for source in counts:
            rows = [
                ((name, *tensor.names), f" ({tensor.note})" if tensor.note else "")
                for name, tensor in self.loaded.items()
                if tensor.source == source
            ]
            lines.append(f"From {source}:")
            lines += [f"  {name} <- {' + '.join(names)}{note}" for (name, *names), note in _unite_rows(rows)]
        sections = {"New": self.new} | {f"Left out of {source}": names for source, names in self.left_out.items()}
        for title, reasons in sections.items():
            rows = [((name,), reason) for name, reason in reasons.items()]
            lines += [f"{title}:"] if rows else []
            lines += [f"  {name}: {reason}" for (name,), reason in _unite_rows(rows)]
        return "\n".join(lines)


def load_weights(model: nn.Module, sources: Sequence[SourceWeights]) -> LoadingReport:
    """Loads the tensors of all sources into a model, in place.

    Raises:
        ValueError: a tensor that doesn't fit, is missing, is not finite, or is given twice.
    """
    target = model.state_dict()
    report, tensors = LoadingReport(), {}
    for weights in sources:
        _check(weights, target, report)
        tensors |= weights.tensors
        report.loaded |= {
            name: LoadedTensor(weights.source, tuple(originals), weights.notes.get(name, ""))
            for name, originals in weights.made_from.items()
        }
        report.new_classes += weights.new_classes
    reasons = {pattern: reason for weights in sources for pattern, reason in weights.new.items()} | REASONS_FOR_NEW
    report.new = {name: _find_reason(name, reasons) or "no source was given" for name in target if name not in tensors}
    report.left_out = _left_out(sources)
    model.load_state_dict(tensors, strict=False)
    return report


def _check(weights: SourceWeights, target: Mapping[str, Tensor], report: LoadingReport) -> None:
    for name, tensor in weights.tensors.items():
        described = f"{weights.source}: the tensor {' + '.join(weights.made_from[name])} {tuple(tensor.shape)}"
        if name not in target:
            raise ValueError(
                f"{described} has no place in the model. Either it is another kind of checkpoint, or its architecture "
                "differs from the configured one."
            )
        if tensor.shape != target[name].shape:
            raise ValueError(
                f"{described} does not fit: {name} has {tuple(target[name].shape)} in the model. Leave out options "
                "that change the architecture, or choose the weights that belong to it."
            )
        if tensor.is_floating_point() != target[name].is_floating_point():
            raise ValueError(
                f"{described} holds {tensor.dtype}, but {target[name].dtype} is needed: quantized weights?"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{described} holds values that are not finite: the checkpoint is broken.")
        if name in report.loaded:
            raise ValueError(
                f"{weights.source} and {report.loaded[name].source} both give {name}. Choose one of them."
            )
    missing = [
        name
        for name in target
        if re.fullmatch(weights.covers, name)
        and name not in weights.tensors
        and not name.endswith(".num_batches_tracked")
        and _find_reason(name, weights.new) is None
    ]
    if missing:
        raise ValueError(f"{weights.source} lacks {len(missing)} tensors of the model, e.g. {missing[:3]}.")


def _find_reason(name: str, reasons: Mapping[str, str]) -> str | None:
    return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, name)), None)


def _left_out(sources: Sequence[SourceWeights]) -> dict[str, dict[str, str]]:
    """By source; what is used in another role of the same source is not left out."""
    used = {(weights.source, name) for weights in sources for names in weights.made_from.values() for name in names}
    left_out: dict[str, dict[str, str]] = {}
    for weights in sources:
        for name, reason in weights.left_out.items():
            if (weights.source, name) not in used:
                left_out.setdefault(weights.source, {})[name] = reason
    return left_out


def _unite_rows(rows: Iterable[tuple[tuple[str, ...], str]]) -> list[tuple[tuple[str, ...], str]]:
    """Unites rows of names that differ in one place: `layers.{0-5}.fc1.{weight,bias}` stands for twelve names."""
    rows = list(rows)
    for place in (NUMBER, NUMBER, NUMBER, LAST_WORD):
        groups: dict[tuple, list[tuple[str, ...]]] = {}
        for names, text in rows:
            matches = [re.fullmatch(place, name) for name in names]
            pieces = [match.groups() if match else (name, "", "") for match, name in zip(matches, names, strict=True)]
            frame = tuple((before, after) for before, _, after in pieces)
            groups.setdefault((frame, text), []).append(tuple(value for _, value, _ in pieces))
        rows = [
            (
                tuple(
                    f"{before}{_unite(values)}{after}"
                    for (before, after), values in zip(frame, zip(*members, strict=True), strict=True)
                ),
                text,
            )
            for (frame, text), members in groups.items()
        ]
    return rows


def _unite(values: Sequence[str]) -> str:
    """What stands in one place of several names, in braces if there are different ones."""
    if len(set(values)) == 1:
        return values[0]
    if all(value.isdecimal() for value in values):
        first, last = int(values[0]), int(values[-1])
        if [int(value) for value in values] == list(range(first, last + 1)):
            return f"{{{first}-{last}}}"
    return f"{{{','.join(values)}}}"


__all__ = ["LoadingReport", "SourceWeights", "load_weights"]
