# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Fills a model from several sources, and accounts for every tensor: loaded and from where, new, or left out.

What can't be explained is an error: a tensor of a source that nobody knows, one of the model that its source should
have given, a shape that doesn't fit.
"""

import re
from collections.abc import Mapping, Sequence
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
    """

    source: str
    tensors: dict[str, Tensor]
    report: ConversionReport
    covers: str
    new: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


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
    """

    loaded: dict[str, LoadedTensor] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)

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
            lines.append(f"From {source}:")
            rows = {
                (name, *tensor.names): tensor.note for name, tensor in self.loaded.items() if tensor.source == source
            }
            lines += [
                f"  {name} <- {' + '.join(names)}{note and f' ({note})'}"
                for (name, *names), note in _draw_together(rows)
            ]
        if self.new:
            lines.append("New:")
            lines += [f"  {name}: {reason}" for (name,), reason in _draw_together({(n,): r for n, r in self.new.items()})]
        for source, names in self.left_out.items():
            lines.append(f"Left out of {source}:")
            lines += [f"  {name}: {reason}" for (name,), reason in _draw_together({(n,): r for n, r in names.items()})]
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
        names = {
            name: reason for report in reports for name, reason in report.left_out.items() if name not in used
        }
        if names:
            left_out[source] = names
    return left_out


def _draw_together(rows: Mapping[tuple[str, ...], str]) -> list[tuple[tuple[str, ...], str]]:
    """Unites rows of names that differ in their last number only, which becomes `{0-5}` or `{0,2,4}`."""
    groups: dict[tuple, list[tuple[int | None, ...]]] = {}
    for names, text in rows.items():
        templates, numbers = zip(*(_split_last_number(name) for name in names), strict=True)
        groups.setdefault((templates, text), []).append(numbers)
    united = []
    for (templates, text), members in groups.items():
        columns = zip(templates, zip(*members, strict=True), strict=True)
        united.append((tuple(template.format(_ranges(numbers)) for template, numbers in columns), text))
    return united


def _split_last_number(name: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.*\.)(\d+)((?:\.[^.\d][^.]*)*)", name)
    if match is None:
        return name, None
    return f"{match[1]}{{}}{match[3]}", int(match[2])


def _ranges(numbers: Sequence[int | None]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    first, last = numbers[0], numbers[-1]
    if list(numbers) == list(range(first or 0, (last or 0) + 1)):
        return f"{{{first}-{last}}}"
    return f"{{{','.join(map(str, numbers))}}}"


__all__ = ["LoadedTensor", "Part", "WeightAccount", "load_parts"]
