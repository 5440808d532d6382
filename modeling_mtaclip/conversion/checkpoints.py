# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints: files of every kind, known by their content, and the folders and Hub ids of transformers.

No code of a file is run. mmengine (https://github.com/open-mmlab/mmengine) saves `{"meta": ..., "state_dict": ...}`,
where `meta["cfg"]` is the run's configuration as Python text and `meta["dataset_meta"]["classes"]` the class names.
"""

import ast
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel


# What a folder's weights are called, the first that is there.
FILE_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Buffers that follow from the configuration, which some versions of transformers save and others don't, and a norm of
# Swin behind all feature maps, which only newer versions have.
BUFFERS = r"(.*\.)?(num_batches_tracked|position_ids|relative_position_index|relative_coords_table)"
UNUSED_NORM = r"(.*\.)?swin\.layernorm\.(weight|bias)"
# Under what keys files hold the weights beside other things, and what wrappers put in front of all names.
WEIGHTS_KEYS, WRAPPER_PREFIXES = ("state_dict", "model"), ("module.", "_orig_mod.")


@dataclass
class Checkpoint:
    """The state dict of a file or folder in float32, and where the file has them, class names and configuration."""

    source: str
    tensors: dict[str, Tensor]
    class_names: list[str] | None = None
    run_config: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads weights: a file, the `.index.json` of several files, or a folder with either by transformers' names.

    Raises:
        ValueError: no such file or folder, or one that can't be read, like a truncated one, or without a state dict.
    """
    checkpoint = Checkpoint(str(path), {})
    for file in _find_files(Path(path)):
        content = _read_file(file)
        checkpoint.tensors |= _state_dict(content, file)
        names, run_config = look_up(content, "meta.dataset_meta.classes"), look_up(content, "meta.cfg")
        if isinstance(names, (list, tuple)):
            checkpoint.class_names = [str(name) for name in names]
        if isinstance(run_config, str):
            checkpoint.run_config = parse_python_config(run_config)
    return checkpoint


def _find_files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [path / name for name in FILE_NAMES if (path / name).is_file()]
        if not found:
            raise ValueError(f"The folder {path} has no weights: expected one of {', '.join(FILE_NAMES)}.")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"There is no file {path}: expected weights, like .safetensors, .pth, .pt or .bin.")
    if not path.name.endswith(".index.json"):
        return [path]
    shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    return [file for shard in shards for file in _find_files(path.parent / shard)]


def _read_file(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(24)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights: get them with `git lfs pull`.")
    try:
        if start[8:9] == b"{":
            return load_file(path)
        members = []
        if zipfile.is_zipfile(path):  # as PyTorch writes pickles since version 1.6
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in members):
            with warnings.catch_warnings():
                # PyTorch advises against TorchScript, but OpenAI's files are what they are.
                warnings.simplefilter("ignore")
                return torch.jit.load(path, map_location="cpu").state_dict()
        unknown = get_unsafe_globals_in_checkpoint(path) if members else []
        with safe_globals([(_Placeholder, name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds
        raise ValueError(
            f"{path} can't be read safely as safetensors, TorchScript or pickled tensors. It may be truncated: "
            f"compare its size with that of the original. ({str(error).strip() or type(error).__name__})"
        ) from error


class _Placeholder:
    """Stands for an object of a class that is not loaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in WEIGHTS_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    content = content if isinstance(content, Mapping) else {}
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if not content or others:
        raise ValueError(
            f"{path} holds no state dict: expected a mapping from names to tensors, by itself or under "
            f"{' or '.join(WEIGHTS_KEYS)}{f'; no tensors are {others[:3]}' if others else ''}."
        )
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in content.items()}


def look_up(content: Any, path: str, default: Any = None) -> Any:
    """What stands at a path like `"model.decode_head.num_queries"` of nested mappings, or the default."""
    for key in path.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    return default if content is None else content


def parse_python_config(text: str) -> dict[str, Any]:
    """Reads a configuration of assignments like `model = dict(type='X', sizes=[1, 2])`, without running it.

    Values that are not made of literals and `dict(...)` are `None`; what is no Python gives nothing.
    """
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return {}
    return {
        target.id: _value(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(element) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def load_config(name_or_path: str, *model_types: str, **overrides: Any) -> PreTrainedConfig:
    """The configuration of a model of transformers with some fields replaced; if types are given, of one of these."""
    try:
        config = AutoConfig.from_pretrained(name_or_path, **overrides)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name_or_path!r} is no file, and no model of transformers could be read from it: {error} Without a "
            "connection to the Hub, give a local folder or file."
        ) from error
    if model_types and config.model_type not in model_types:
        raise ValueError(
            f"{name_or_path!r} holds a model of the type {config.model_type!r}, but one of {list(model_types)} was "
            "expected."
        )
    return config


def load_pretrained(
    model_class: type[PreTrainedModel], name_or_path: str, may_lack: str = "", may_leave_out: str = "", **options: Any
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """Loads a model of transformers in float32, without any tensor that would be random or unused.

    The regular expressions are of tensors that may be missing and of those of the checkpoint that may stay unused.
    `options` are for `from_pretrained`; with a `state_dict`, nothing is read from files. Returned are the model, and
    what is `"missing"` and `"unexpected"`. No such model, or other tensors than the architecture's: `ValueError`.
    """
    options |= {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    folder = name_or_path if options.get("state_dict") is None else None
    try:
        model, info = model_class.from_pretrained(folder, **options)
    except Exception as error:  # every reader has its own kinds
        raise ValueError(f"No {model_class.__name__} could be loaded from {name_or_path!r}: {error}") from error
    found = {kind: sorted(info[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched")}
    allowed = {"missing": f"{BUFFERS}|{UNUSED_NORM}|{may_lack}", "unexpected": f"{BUFFERS}|{may_leave_out}"}
    for kind, names in found.items():
        wrong = [name for name in names if kind == "mismatched" or not re.fullmatch(allowed[kind], name)]
        if wrong:
            raise ValueError(
                f"{name_or_path!r} is no complete {model_class.__name__}: {len(wrong)} {kind} tensors, e.g. "
                f"{wrong[:3]}."
            )
    return model, found


__all__ = ["Checkpoint", "load_checkpoint", "load_config", "load_pretrained", "look_up", "parse_python_config"]
