# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Fills a model from several sources, and reports where each tensor came from: loaded, new, or left out.

Refused before anything is loaded: a tensor of a source that nobody knows, one of the model that its source should have
given, a shape that doesn't fit, a value that is not finite.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn


# Tensors of ours that a source without text, or one for another backbone, or a classifier does not have.
COUNTERS = r".*\.num_batches_tracked"
TEXT_QUERIES = r"model\.decoder\.(text_projection|query_layer_norm|text_query_positions).*"
READS_BACKBONE = r"model\.pixel_decoder\.(input_projections|lateral_projection)\..*"
NORMS_OF_MAPS = r"(.+\.)?hidden_states_norms\..+"
# Why tensors of the model are new when no source gives them; the first pattern that fits.
REASONS_FOR_NEW = {
    COUNTERS: "a counter that the source does not keep",
    r"model\.text_model\.contexts": "the prompts are learned",
    rf"{TEXT_QUERIES}|text_head\..*": "for the text queries, which the sources don't have",
    r"model\.feature_pyramid\..*": "the feature pyramid of a vision transformer is learned",
    r"model\.text_model\.text_encoder\..*": "no weights of a text encoder were given",
    NORMS_OF_MAPS: "a norm of the feature maps, which classifiers don't have",
    r"model\.backbone\..*": "no weights of a backbone were given",
    READS_BACKBONE: "reads the backbone, and no weights for this one were given",
    r"model\.(pixel_decoder|decoder)\..*|class_predictor\..*": "no weights of a decoder were given",
}


@dataclass
class LoadedTensor:
    """Where a tensor of the model comes from: which tensors of which source, and which part of them if not all."""

    source: str
    names: list[str]
    note: str = ""


@dataclass
class SourceWeights:
    """What one source (a file, folder or Hub id) gives to a model."""

    source: str
    # Regular expression of the model's tensors that the source must give.
    covers: str
    # By the model's names: the tensors, and where they come from.
    tensors: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, LoadedTensor] = field(default_factory=dict)
    # By the source's names: why other tensors are not used.
    left_out: dict[str, str] = field(default_factory=dict)
    # Classes that the source does not have.
    new_classes: list[str] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor, made_from: str, note: str = "") -> None:
        """Adds a tensor of the model, and one of the source's that it is made from."""
        self.tensors[name] = tensor
        self.origins.setdefault(name, LoadedTensor(self.source, [], note)).names.append(made_from)

    def mark_missing(self, missing: Sequence[str]) -> None:
        """Notes which tensors are not the source's, because it may lack them."""
        for origin in self.origins.values():
            if set(origin.names) <= set(missing):
                origin.names, origin.note = [], "not in the source; no prediction depends on it"

    def rename(self, original: Mapping[str, Tensor], names: Mapping[str, str], left_out: Mapping[str, str]) -> None:
        """Adds the tensors of a foreign state dict, the packed projections of attention split into three.

        `names` are regular expressions and what replaces them, one after the other, like transformers' `key_mapping`;
        `left_out` are those of whole foreign names that we don't use, and why.
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
            elif name.endswith("text_projection"):
                # OpenAI multiplies by it from the other side.
                self.add(target, tensor.T.contiguous(), name)
            else:
                self.add(target, tensor, name)


@dataclass
class LoadingReport:
    """Where a model's weights come from; `str(report)` is a summary in which `*` stands for any number.

    Attributes:
        loaded (`dict[str, LoadedTensor]`): by the model's names.
        new (`dict[str, str]`): the model's other tensors, which keep their initial values, and why.
        left_out (`dict[str, dict[str, str]]`): by source, its tensors that are not used in any role, and why.
        new_classes (`list[str]`): classes whose slices of loaded tensors are new.
    """

    loaded: dict[str, LoadedTensor] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    new_classes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sections: dict[str, list[str]] = {}
        for name, origin in self.loaded.items():
            note = f" ({origin.note})" if origin.note else ""
            sections.setdefault(f"From {origin.source}", []).append(f"{name} <- {' + '.join(origin.names)}{note}")
        others = {"New": self.new} | {f"Left out of {source}": names for source, names in self.left_out.items()}
        for title, reasons in others.items():
            sections[title] = [f"{name}: {reason}" for name, reason in reasons.items()]
        lines = []
        for title, rows in sections.items():
            # Rows that differ only in the numbers of layers share a line.
            counts = Counter(re.sub(r"\.\d+(?=\.)", ".*", row) for row in rows)
            lines += [f"{title}: {len(rows)} tensors"]
            lines += [f"  {row}" + (f" [{count}]" if count > 1 else "") for row, count in counts.items()]
        return "\n".join(lines)


def load_weights(model: nn.Module, sources: Sequence[SourceWeights]) -> LoadingReport:
    """Loads the tensors of all sources into a model, in place.

    Raises:
        ValueError: a tensor that doesn't fit, is missing, is not finite, or is given twice.
    """
    target, tensors, report = model.state_dict(), {}, LoadingReport()
    for weights in sources:
        for name in weights.tensors:
            _check_tensor(name, weights, target)
            if name in report.loaded:
                both = f"{weights.source} and {report.loaded[name].source}"
                raise ValueError(f"{both} both give {name}. Choose one of them.")
        _check_complete(weights, target)
        tensors |= weights.tensors
        report.loaded |= weights.origins
        report.new_classes += weights.new_classes
    # A file may be a source in two roles.
    used = {(origin.source, name) for origin in report.loaded.values() for name in origin.names}
    for weights in sources:
        unused = {name: why for name, why in weights.left_out.items() if (weights.source, name) not in used}
        if unused:
            report.left_out.setdefault(weights.source, {}).update(unused)
    new = [name for name in target if name not in report.loaded]
    report.new = {name: _find_reason(name, REASONS_FOR_NEW) or "no source was given" for name in new}
    model.load_state_dict(tensors, strict=False)
    return report


def _check_tensor(name: str, weights: SourceWeights, target: Mapping[str, Tensor]) -> None:
    tensor, expected = weights.tensors[name], target.get(name)
    if expected is None:
        problem = (
            "has no place in the model. Either it is another kind of checkpoint, or its architecture differs from the "
            "configured one."
        )
    elif tensor.shape != expected.shape:
        problem = (
            f"does not fit: {name} has {tuple(expected.shape)} in the model. Leave out options that change the "
            "architecture, or choose the weights that belong to it."
        )
    elif tensor.is_floating_point() != expected.is_floating_point():
        problem = f"holds {tensor.dtype}, but {expected.dtype} is needed: quantized weights?"
    elif not tensor.isfinite().all():
        problem = "holds values that are not finite: the checkpoint is broken."
    else:
        return
    originals = " + ".join(weights.origins[name].names)
    raise ValueError(f"{weights.source}: the tensor {originals} {tuple(tensor.shape)} {problem}")


def _check_complete(weights: SourceWeights, target: Mapping[str, Tensor]) -> None:
    wanted = [name for name in target if re.fullmatch(weights.covers, name) and not re.fullmatch(COUNTERS, name)]
    missing = [name for name in wanted if name not in weights.tensors]
    if missing:
        raise ValueError(f"{weights.source} lacks {len(missing)} tensors of the model, e.g. {missing[:3]}.")


def _find_reason(name: str, reasons: Mapping[str, str]) -> str | None:
    return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, name)), None)


__all__ = ["LoadingReport", "SourceWeights", "load_weights"]
