# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of mmengine, read without mmengine: tensors, what is said about them, and the run's configuration.

mmengine (https://github.com/open-mmlab/mmengine) saves `{"meta": ..., "state_dict": ..., "message_hub": ...}`;
`meta["cfg"]` is the configuration as Python text, `meta["dataset_meta"]["classes"]` are the class names.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals


@dataclass
class Checkpoint:
    """What a checkpoint holds that we read.

    Attributes:
        source (`str`): the file.
        tensors (`dict[str, Tensor]`): the model's state dict.
        class_names (`list[str]`, *optional*): of the data set, where the file tells.
        run_config (`dict[str, Any]`): the run's configuration; empty where the file doesn't tell.
    """

    source: str
    tensors: dict[str, Tensor]
    class_names: list[str] | None = None
    run_config: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a `.safetensors` file, or a `.pth` file as mmengine saves it or with a plain state dict.

    No code of the file is run: objects in it that are neither tensors nor plain values are read as placeholders.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that can't be read, or without a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: expected weights as .safetensors or .pth.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pth(path)
    except Exception as error:  # every reader has its own kinds
        raise ValueError(f"{path} can't be read safely: {error}") from error
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(
            f"{path} holds no state dict: expected names and tensors, or these under the key 'state_dict'."
        )
    meta = content.get("meta") if "state_dict" in content else None
    return Checkpoint(str(path), dict(tensors), _class_names(meta), _run_config(meta))


class _Placeholder:
    """Stands for an object of a class that is not loaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _load_pth(path: Path) -> Any:
    unknown = get_unsafe_globals_in_checkpoint(path)
    with safe_globals([(_Placeholder, name) for name in unknown]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _class_names(meta: Any) -> list[str] | None:
    dataset = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    names = dataset.get("classes") if isinstance(dataset, Mapping) else None
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else None


def _run_config(meta: Any) -> dict[str, Any]:
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    return parse_python_config(text) if isinstance(text, str) else {}


def parse_python_config(text: str) -> dict[str, Any]:
    """Reads a configuration of assignments like `model = dict(type='X', sizes=[1, 2])`, without running it.

    Args:
        text (`str`): Python code.

    Returns:
        `dict[str, Any]`: the values that are made of literals and `dict(...)`; others are `None`. Empty if the text is
        no Python.
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


__all__ = ["Checkpoint", "load_checkpoint", "parse_python_config"]
