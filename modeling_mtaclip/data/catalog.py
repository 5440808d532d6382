# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known about data sets: classes, colors, values in the annotations, files, license, metric.

A data set that is known by its name is one file in the folder `known`; nothing else has to change for a new one. The
`classes.json` of one's own data may be such a file too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration_mtaclip import IGNORE_INDEX


# Label maps with more than 16 bits don't occur.
MAX_VALUE = 2**16 - 1
EXPECTED = 'expected a list of names, or {"id2label": {"0": "sky", ...}, "ignore_index": 255}'
FOLDER = Path(__file__).parent

Color = tuple[int, int, int]


@dataclass(frozen=True)
class DatasetInfo:
    """A data set, without its images.

    Attributes:
        class_names (`tuple[str, ...]`): in the order of their label ids.
        palette (`tuple[tuple[int, int, int], ...]`): red, green and blue of each class.
        values (`tuple[int, ...]`): the value of each class in the annotations.
        ignored_values (`frozenset[int]`): values in the annotations that stand for "no label"; others are errors.
        splits (`dict[str, tuple[str, str]]`): where images and annotations of each split are, `{}` standing for what
            their names have in common; empty: in `images/<split>` and `annotations/<split>`.
        train_ids (`tuple[str, str]`, *optional*): part of the annotations' names, and what stands there in the names
            of files that hold label ids already, which are preferred if there are all of them.
        loader (`str`): `"files"`, or `"scenes"`, which are drawn.
        title, license, download, metric, source (`str`): name in full, license, where to get it, its official metric,
            and where all of this is from.
        categories (`tuple[str, ...]`): the category of each class, if the official metric scores these too.
    """

    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    values: tuple[int, ...]
    ignored_values: frozenset[int]
    splits: dict[str, tuple[str, str]] = field(default_factory=dict)
    train_ids: tuple[str, str] | None = None
    loader: str = "files"
    title: str = ""
    license: str = ""
    download: str = ""
    metric: str = "mean IoU"
    source: str = ""
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.class_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"Several classes have the same name: {twice}. Each needs a name of its own.")
        if len(names) > IGNORE_INDEX:
            raise ValueError(
                f"There are {len(names)} classes: at most {IGNORE_INDEX} are possible, since the label id "
                f"{IGNORE_INDEX} means 'no label'."
            )
        if len(set(self.values)) < len(names):
            raise ValueError(f"Each class needs a value of its own, got {self.values}.")
        for ignored in self.ignored_values:
            if not isinstance(ignored, int) or isinstance(ignored, bool) or ignored in self.values:
                raise ValueError(f"`ignore_index` must be a number that is no class, got {ignored!r}.")
        if wrong := [value for value in (*self.values, *self.ignored_values) if not 0 <= value <= MAX_VALUE]:
            raise ValueError(
                f"Values such as `ignore_index` must be those of 16-bit pixels, not negative, got {wrong[0]}."
            )

    @cached_property
    def label_table(self) -> np.ndarray:
        """Label id of each value in the annotations, int64; -1 for values that must not occur, and as the last one."""
        table = np.full(MAX_VALUE + 2, -1, dtype=np.int64)
        table[list(self.ignored_values)] = IGNORE_INDEX
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def with_reduced_labels(self) -> "DatasetInfo":
        """The same for annotations in which 0 is "no label" and 1 the first class (`do_reduce_labels`).

        Raises:
            ValueError: it is known that the values stand for something else.
        """
        values = tuple(label + 1 for label in range(len(self.values)))
        if self.values == values:
            return self
        if self.title:
            raise ValueError(f"`do_reduce_labels` is for other data than {self.title}, whose labels are known.")
        return replace(self, values=values, ignored_values=(self.ignored_values | {0}).difference(values))


def read_dataset_info(path: Path) -> DatasetInfo:
    """Reads what is known about a data set.

    Args:
        path (`Path`): a JSON file with a list of class names; with a mapping of label ids to names; with such a
            mapping as `id2label` and the value for "no label" as `ignore_index`; or with fields of [`DatasetInfo`]
            and, in place of the first three, `classes`, of which each has a `name`, a `value` and a `color`.

    Raises:
        ValueError: a missing file, other content, gaps in the ids, a name or value used twice, more than 255 classes,
            or an `ignore_index` that is a class or no pixel value.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: it names the classes; {EXPECTED}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and isinstance(content.get("classes"), list):
            return _full_info(**content)
        return _info_of_names(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {EXPECTED}.") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: each of `classes` needs name, value and color; {error!r}; {EXPECTED}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _full_info(
    classes: list[dict[str, Any]], ignored_values: Sequence[int] = (IGNORE_INDEX,), **facts: Any
) -> DatasetInfo:
    return DatasetInfo(
        class_names=tuple(each["name"] for each in classes),
        palette=tuple(tuple(each["color"]) for each in classes),
        values=tuple(each["value"] for each in classes),
        ignored_values=frozenset(ignored_values),
        categories=tuple(each["category"] for each in classes if "category" in each),
        **facts,
    )


def _info_of_names(content: Any) -> DatasetInfo:
    ignore_index = IGNORE_INDEX
    if isinstance(content, dict):
        ignore_index = content.get("ignore_index", IGNORE_INDEX)
        content = content.get("id2label", {key: name for key, name in content.items() if key != "ignore_index"})
    if isinstance(content, dict):
        content = _in_order(content)
    if not isinstance(content, list) or not content or not all(isinstance(name, str) and name for name in content):
        raise ValueError(f"It names no classes; {EXPECTED}.")
    values = tuple(range(len(content)))
    ignored = {IGNORE_INDEX}.difference(values) | {ignore_index}
    return DatasetInfo(tuple(content), tuple(generate_palette(len(content))), values, frozenset(ignored))


def _in_order(names: dict[str, Any]) -> list[Any]:
    by_id = {int(key): name for key, name in names.items() if key.isdecimal()}
    if len(by_id) < len(names) or sorted(by_id) != list(range(len(names))):
        raise ValueError(
            f"It must name the label ids 0 … {len(names) - 1}, got {list(names)}; {EXPECTED}. If 0 is 'no label' "
            "in the annotations, list the others and set `do_reduce_labels`."
        )
    return [by_id[index] for index in range(len(names))]


def generate_palette(num_colors: int) -> list[Color]:
    """Colors that differ as much as possible, to color-blind readers too.

    The first eight are those of Okabe and Ito (https://jfly.uni-koeln.de/color). Of a grid of colors, each further one
    is that with the greatest distance in Oklab to all before it and to white, seen with normal vision, without red,
    or without green cones (Viénot, Brettel and Mollon 1999). After 500 they repeat.

    Args:
        num_colors (`int`): how many.

    Returns:
        `list[tuple[int, int, int]]`: red, green, blue in 0 … 255.
    """
    colors = [tuple(color) for color in json.loads((FOLDER / "colors.json").read_text())]
    return [colors[index % len(colors)] for index in range(num_colors)]


def palette_of(class_names: Sequence[str]) -> list[Color]:
    """Colors of classes: those of the data set whose classes they are, else generated ones."""
    known = [info.palette for info in DATASETS.values() if info.class_names == tuple(class_names)]
    return list(known[0]) if known else generate_palette(len(class_names))


DATASETS = {path.stem: read_dataset_info(path) for path in sorted((FOLDER / "known").glob("*.json"))}

__all__ = ["DATASETS", "IGNORE_INDEX", "DatasetInfo", "generate_palette", "palette_of", "read_dataset_info"]
