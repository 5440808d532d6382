# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Class names in JSON files beside the data."""

import json
from pathlib import Path
from typing import Any

from .reading import IGNORE_INDEX


EXPECTED = 'expected a list of names, or {"id2label": {"0": "sky", ...}, "ignore_index": 255}'


def read_class_names(path: Path) -> tuple[list[str], int]:
    """Reads the class names of a data set.

    Args:
        path (`Path`): a JSON file with a list of names, with a mapping of ids to names, or with such a mapping as
            `id2label` and the value for "no label" as `ignore_index`.

    Returns:
        `tuple[list[str], int]`: names in the order of their ids, and the value for "no label" (255 unless given).

    Raises:
        ValueError: a missing file, other content, gaps in the ids, a name used twice, more than 255 classes, or an
            `ignore_index` that is a class.
    """
    content = _read_json(path)
    ignore_index = IGNORE_INDEX
    if isinstance(content, dict):
        ignore_index = content.get("ignore_index", IGNORE_INDEX)
        content = content.get("id2label", {key: name for key, name in content.items() if key != "ignore_index"})
    if isinstance(content, dict):
        content = _in_order(content, path)
    if not isinstance(content, list) or not content or not all(isinstance(name, str) and name for name in content):
        raise ValueError(f"{path} names no classes; {EXPECTED}.")
    if len(set(content)) < len(content):
        twice = sorted({name for name in content if content.count(name) > 1})
        raise ValueError(f"{path} gives several classes the same name: {twice}. Each needs a name of its own.")
    if len(content) > IGNORE_INDEX:
        raise ValueError(
            f"{path} names {len(content)} classes: at most {IGNORE_INDEX} are possible, since the label id "
            f"{IGNORE_INDEX} means 'no label'."
        )
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int) or 0 <= ignore_index < len(content):
        raise ValueError(f"{path}: `ignore_index` must be a number that is no class, got {ignore_index!r}.")
    if ignore_index < 0:
        raise ValueError(f"{path}: `ignore_index` must be a pixel value, not negative, got {ignore_index}.")
    return content, ignore_index


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path} is missing: it names the classes; {EXPECTED}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {EXPECTED}.") from error


def _in_order(names: dict[str, Any], path: Path) -> list[Any]:
    by_id = {int(key): name for key, name in names.items() if key.isdecimal()}
    if len(by_id) < len(names) or sorted(by_id) != list(range(len(names))):
        raise ValueError(f"{path} must name the label ids 0 … {len(names) - 1}, got {list(names)}; {EXPECTED}.")
    return [by_id[index] for index in range(len(names))]


__all__ = ["read_class_names"]
