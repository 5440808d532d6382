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
        names, numbers = self.class_names, range(MAX_VALUE + 1)
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("it names no classes")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several classes have the same name: {twice}. Each needs a name of its own")
        if len(names) > IGNORE_INDEX:
            raise ValueError(f"there are {len(names)} classes: at most 255 are possible, since 255 means 'no label'")
        if len(set(self.values).intersection(numbers)) < len(names):
            raise ValueError(f"each class needs a value of its own in 0 … {MAX_VALUE}, got {self.values}")
        for ignored in self.ignored_values:
            if type(ignored) is not int or ignored in self.values or ignored not in numbers:
                raise ValueError(
                    f"`ignore_index` must be a number in 0 … {MAX_VALUE} that is no class, got {ignored!r}"
                )

    @cached_property
    def label_table(self) -> np.ndarray:
        """Label id of each value in the annotations, int64; -1 for values that must not occur, and as the last one."""
        table = np.full(MAX_VALUE + 2, -1, dtype=np.int64)
        table[list(self.ignored_values)] = IGNORE_INDEX
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def with_reduced_labels(self) -> "DatasetInfo":
        """The same for annotations in which 0 is "no label" and 1 the first class (`do_reduce_labels`); a `ValueError`
        if it is known that the values stand for something else.
        """
        values = tuple(range(1, len(self.values) + 1))
        if self.title and self.values != values:
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
        return _info_of(**content) if isinstance(content, dict) and "classes" in content else _info_of_names(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} can't be used ({type(error).__name__}): {error}; {EXPECTED}.") from error


def _info_of(
    classes: list[dict[str, Any]], ignored_values: Sequence[int] = (IGNORE_INDEX,), **facts: Any
) -> DatasetInfo:
    names, values = ([each[key] for each in classes] for key in ("name", "value"))
    palette = tuple(tuple(each["color"]) for each in classes)
    categories = tuple(each["category"] for each in classes if "category" in each)
    return DatasetInfo(tuple(names), palette, tuple(values), frozenset(ignored_values), categories=categories, **facts)


def _info_of_names(content: Any) -> DatasetInfo:
    names, ignore_index = content, IGNORE_INDEX
    if isinstance(content, dict):
        ignore_index = content.get("ignore_index", IGNORE_INDEX)
        names = content.get("id2label", {key: name for key, name in content.items() if key != "ignore_index"})
    if isinstance(names, dict):
        ids = [str(index) for index in range(len(names))]
        if names.keys() != set(ids):
            raise ValueError(
                f"it must name the label ids 0 … {len(names) - 1}, got {list(names)}. If 0 is 'no label' in the "
                "annotations, list the others and set `do_reduce_labels`"
            )
        names = [names[index] for index in ids]
    names = tuple(names) if isinstance(names, list) else ()
    values, ignored = tuple(range(len(names))), frozenset({IGNORE_INDEX, ignore_index})
    return DatasetInfo(names, tuple(generate_palette(len(names))), values, ignored)


def generate_palette(num_colors: int) -> list[Color]:
    """Red, green and blue in 0 … 255 of colors that differ as much as possible, to color-blind readers too.

    The first eight are those of Okabe and Ito (https://jfly.uni-koeln.de/color). Of a grid of colors, each further one
    is that with the greatest distance in Oklab to all before it and to white, seen with normal vision, without red,
    or without green cones (Viénot, Brettel and Mollon 1999). After 500 they repeat.
    """
    colors = [tuple(color) for color in json.loads((FOLDER / "colors.json").read_text())]
    return [colors[index % len(colors)] for index in range(num_colors)]


def palette_of(class_names: Sequence[str]) -> list[Color]:
    """Colors of classes: those of the data set whose classes they are, else generated ones."""
    known = [info.palette for info in DATASETS.values() if info.class_names == tuple(class_names)]
    return list(known[0]) if known else generate_palette(len(class_names))


DATASETS = {path.stem: read_dataset_info(path) for path in sorted((FOLDER / "known").glob("*.json"))}

__all__ = ["DATASETS", "IGNORE_INDEX", "DatasetInfo", "generate_palette", "palette_of", "read_dataset_info"]
