# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Segmentation data sets as `datasets` data sets: images and annotations decoded when they are read.

Every data set becomes splits with the columns `image`, `annotation` and `name`. Annotations stay as they are in the
files; [`SegmentationData.read`] turns them into the model's label ids and checks them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, Value, load_dataset, load_from_disk
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm
from transformers.utils import logging

from .catalog import (
    ADE20K_CLASSES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    CITYSCAPES_TRAIN_IDS,
    generate_palette,
)
from .scenes import SCENE_CLASSES, SCENE_PALETTE, make_scene


logger = logging.get_logger(__name__)

IGNORE_INDEX = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
IMAGE_COLUMNS = ("image", "img", "pixel_values", "images")
ANNOTATION_COLUMNS = ("annotation", "label", "mask", "segmentation", "labels", "semantic_mask", "annotations", "masks")
FEATURES = Features({"image": Image(), "annotation": Image(), "name": Value("string")})
NUM_TRAIN_SCENES, NUM_VALIDATION_SCENES = 640, 100
SAMPLES_TO_CHECK = 50


@dataclass
class SegmentationData:
    """A data set and how to read it.

    Attributes:
        splits (`dict[str, Dataset]`): "train", "validation" and "test", as far as there are any.
        class_names (`list[str]`): in the order of the label ids.
        palette (`list[tuple[int, int, int]]`): a colour for each class.
        label_ids (`dict[int, int]`): values in the annotations and the label ids that they stand for; values that are
            neither here nor in `ignored_values` are errors.
        ignored_values (`set[int]`): values in the annotations that stand for "no label".
        ignore_index (`int`): the label id for "no label".
    """

    splits: dict[str, Dataset | IterableDataset]
    class_names: list[str]
    palette: list[tuple[int, int, int]]
    label_ids: dict[int, int]
    ignored_values: set[int] = field(default_factory=lambda: {IGNORE_INDEX})
    ignore_index: int = IGNORE_INDEX

    def read(self, example: Mapping[str, Any]) -> tuple[PILImage.Image, np.ndarray]:
        """Reads an example.

        Args:
            example (`Mapping[str, Any]`): of one of the splits.

        Returns:
            `tuple[PIL.Image.Image, np.ndarray]`: the RGB image and the int64 label map `(height, width)`, with label
            ids and `ignore_index`.

        Raises:
            ValueError: an annotation of another size than the image, or with a value that stands for no class; the
                message names file and value.
        """
        name = example["name"]
        image = ImageOps.exif_transpose(example["image"]).convert("RGB")
        annotation = np.array(example["annotation"])
        if annotation.ndim != 2:
            raise ValueError(
                f"The annotation of {name} has the shape {annotation.shape}: expected one label per pixel, as a grey "
                "or palette image."
            )
        if annotation.shape != (image.height, image.width):
            raise ValueError(
                f"The annotation of {name} has the size {annotation.shape[1]} x {annotation.shape[0]}, but its image "
                f"{image.width} x {image.height}."
            )
        return image, self._to_label_ids(annotation.astype(np.int64), name)

    def _to_label_ids(self, annotation: np.ndarray, name: str) -> np.ndarray:
        values = np.unique(annotation)
        wrong = [int(v) for v in values if int(v) not in self.label_ids and int(v) not in self.ignored_values]
        if wrong:
            raise ValueError(
                f"The annotation of {name} has the values {wrong[:10]}, but the data set has {len(self.class_names)} "
                f"classes: expected values from {sorted(self.label_ids)[0]} to {sorted(self.label_ids)[-1]}, or "
                f"{sorted(self.ignored_values)} for pixels to ignore."
            )
        table = np.array([self.label_ids.get(int(value), self.ignore_index) for value in values])
        return table[np.searchsorted(values, annotation)]

    def check(self, split: str, how: str = "sample") -> np.ndarray:
        """Reads examples of a split and reports all that are unusable.

        Args:
            split (`str`): name of the split.
            how (`str`): `"sample"` reads 50 examples spread over the split (the first ones of a stream), `"full"` all,
                `"none"` none.

        Returns:
            `np.ndarray`: number of pixels of each class in what was read, int64.

        Raises:
            ValueError: unusable examples, each with the reason.
        """
        counts = np.zeros(len(self.class_names), dtype=np.int64)
        if how == "none" or split not in self.splits:
            return counts
        problems, indices = [], None
        dataset = self.splits[split]
        if isinstance(dataset, IterableDataset):
            examples = dataset if how == "full" else dataset.take(SAMPLES_TO_CHECK)
        else:
            number = len(dataset) if how == "full" else min(SAMPLES_TO_CHECK, len(dataset))
            indices = np.linspace(0, len(dataset) - 1, number).astype(int).tolist()
            examples = indices
        for example in tqdm(examples, desc=f"Checking {split}", leave=False):
            try:
                _, labels = self.read(example if indices is None else read_example(dataset, example))
            except ValueError as error:
                problems.append(str(error))
                continue
            counts += np.bincount(labels[labels != self.ignore_index], minlength=len(counts))
        if problems:
            listed = "\n".join(f"- {problem}" for problem in problems[:20])
            raise ValueError(f"{len(problems)} unusable examples in the {split} split:\n{listed}")
        return counts


def read_example(dataset: Dataset, index: int) -> dict[str, Any]:
    """One example of a data set; files that can't be decoded are an error that names them.

    Raises:
        ValueError: a corrupt or missing image or annotation.
    """
    try:
        example = dataset[index]
        for column in ("image", "annotation"):
            if example[column] is not None:
                example[column].load()
        return example
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raw = dataset.with_format(None).cast_column("image", Image(decode=False))
        raw = raw.cast_column("annotation", Image(decode=False))[index]
        paths = [raw[column]["path"] for column in ("image", "annotation") if raw[column] and raw[column]["path"]]
        raise ValueError(f"{' or '.join(paths) or raw['name']} can't be read: {error}") from error


def load_segmentation_dataset(
    name_or_path: str = "scenes",
    data_dir: str | Path | None = None,
    image_column: str | None = None,
    annotation_column: str | None = None,
    streaming: bool = False,
) -> SegmentationData:
    """Loads a data set; images are not copied, and decoded only when they are read.

    Args:
        name_or_path (`str`):
            `"scenes"`: drawn street scenes, no download. `"ade20k"`: SceneParse150 in `data_dir`
            (`ADEChallengeData2016`). `"cityscapes"`: `leftImg8bit` and `gtFine` in `data_dir`. A folder with
            `images/{train,val}`, `annotations/{train,val}` and `classes.json`, or saved by `Dataset.save_to_disk`, or
            of parquet files. Else a data set on the Hub.
        data_dir (`str`, *optional*): folder of `"ade20k"` or `"cityscapes"`.
        image_column, annotation_column (`str`, *optional*): columns of a data set of the last three kinds, where they
            can't be told by their names.
        streaming (`bool`, defaults to `False`): read while training, for data sets that don't fit on the disk.

    Raises:
        ValueError: an unknown data set, missing folders, images without annotation, empty splits, wrong class names.
    """
    if name_or_path == "scenes":
        return _load_scenes(streaming)
    if name_or_path in ("ade20k", "cityscapes"):
        if data_dir is None or not Path(data_dir).is_dir():
            raise ValueError(
                f"The data set {name_or_path!r} needs the folder of its files in `data_dir`, got {data_dir}."
            )
        load = _load_ade20k if name_or_path == "ade20k" else _load_cityscapes
        return load(Path(data_dir), streaming)
    folder = Path(name_or_path)
    if (folder / "images").is_dir():
        return _load_folder(folder, streaming)
    if folder.is_dir() or "/" in name_or_path:
        return _load_columns(name_or_path, image_column, annotation_column, streaming)
    raise ValueError(
        f"Unknown data set {name_or_path!r}: expected 'scenes', 'ade20k', 'cityscapes', an existing folder, or a data "
        "set on the Hub (owner/name)."
    )


def _load_scenes(streaming: bool) -> SegmentationData:
    sizes = {"train": (0, NUM_TRAIN_SCENES), "validation": (10_000_000, NUM_VALIDATION_SCENES)}
    splits = {}
    for split, (first, number) in sizes.items():
        seeds = Dataset.from_dict({"seed": list(range(first, first + number))})
        dataset = seeds.to_iterable_dataset() if streaming else seeds
        splits[split] = dataset.map(_draw, remove_columns="seed") if streaming else dataset.with_transform(_draw_batch)
    label_ids = {index: index for index in range(len(SCENE_CLASSES))}
    return SegmentationData(splits, list(SCENE_CLASSES), list(SCENE_PALETTE), label_ids)


# All scenes fit into about 50 MB, and drawing one takes longer than training on it.
_draw_scene = lru_cache(maxsize=NUM_TRAIN_SCENES + NUM_VALIDATION_SCENES)(make_scene)


def _draw(example: Mapping[str, int]) -> dict[str, Any]:
    image, annotation = _draw_scene(example["seed"])
    return {"image": image, "annotation": annotation, "name": f"scene {example['seed']}"}


def _draw_batch(batch: Mapping[str, list[int]]) -> dict[str, list]:
    scenes = [_draw({"seed": seed}) for seed in batch["seed"]]
    return {column: [scene[column] for scene in scenes] for column in ("image", "annotation", "name")}


def _load_ade20k(folder: Path, streaming: bool) -> SegmentationData:
    splits = _splits_of_folder(folder / "images", folder / "annotations", streaming)
    label_ids = {index + 1: index for index in range(len(ADE20K_CLASSES))}
    palette = generate_palette(len(ADE20K_CLASSES))
    # 0 is "other"; annotations that were already lowered by one can't be told apart, so that 255 is an error.
    return SegmentationData(splits, list(ADE20K_CLASSES), palette, label_ids, ignored_values={0})


def _load_cityscapes(folder: Path, streaming: bool) -> SegmentationData:
    images = folder / "leftImg8bit"
    if not images.is_dir():
        raise ValueError(f"{folder} is no Cityscapes folder: it has no leftImg8bit.")
    splits = {}
    train_ids = _has_train_ids(folder)
    suffix = "gtFine_labelTrainIds.png" if train_ids else "gtFine_labelIds.png"
    for split, directory in (("train", "train"), ("validation", "val"), ("test", "test")):
        paths = sorted((images / directory).glob("*/*_leftImg8bit.png"))
        if not paths:
            continue
        annotations = [
            folder / "gtFine" / directory / path.parent.name / path.name.replace("leftImg8bit.png", suffix)
            for path in paths
        ]
        if split == "test":
            annotations = [path if path.is_file() else None for path in annotations]
        splits[split] = _make_split(paths, annotations, images, streaming)
    _require_train_or_validation(splits, folder)
    if train_ids:
        label_ids = {index: index for index in range(len(CITYSCAPES_CLASSES))}
        return SegmentationData(splits, list(CITYSCAPES_CLASSES), list(CITYSCAPES_PALETTE), label_ids)
    # 0 … 33 are all label ids; those that are not evaluated have no train id.
    ignored = set(range(34)) - CITYSCAPES_TRAIN_IDS.keys() | {IGNORE_INDEX}
    return SegmentationData(
        splits, list(CITYSCAPES_CLASSES), list(CITYSCAPES_PALETTE), dict(CITYSCAPES_TRAIN_IDS), ignored
    )


def _has_train_ids(folder: Path) -> bool:
    """Whether every fine annotation has been converted to train ids."""
    label_ids = list((folder / "gtFine").glob("*/*/*_gtFine_labelIds.png"))
    train_ids = list((folder / "gtFine").glob("*/*/*_gtFine_labelTrainIds.png"))
    return bool(train_ids) and len(train_ids) >= len(label_ids)


def _load_folder(folder: Path, streaming: bool) -> SegmentationData:
    names, ignore_index = _read_classes(folder / "classes.json")
    splits = _splits_of_folder(folder / "images", folder / "annotations", streaming)
    label_ids = {index: index for index in range(len(names))}
    return SegmentationData(
        splits, names, generate_palette(len(names)), label_ids, ignored_values={ignore_index, IGNORE_INDEX}
    )


def _read_classes(path: Path) -> tuple[list[str], int]:
    expected = 'expected a list of names, or {"id2label": {"0": "sky", ...}, "ignore_index": 255}'
    if not path.is_file():
        raise ValueError(f"{path} is missing: it names the classes; {expected}.")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {expected}.") from error
    ignore_index = IGNORE_INDEX
    if isinstance(content, dict):
        ignore_index = content.get("ignore_index", IGNORE_INDEX)
        content = content.get("id2label", content)
    if isinstance(content, dict):
        ids = sorted(int(key) for key in content if str(key).isdigit())
        if ids != list(range(len(content))):
            raise ValueError(
                f"{path} must name the label ids 0 … {len(content) - 1}, got {list(content)}; {expected}."
            )
        content = [content[str(index)] for index in ids]
    if not isinstance(content, list) or not content or not all(isinstance(name, str) and name for name in content):
        raise ValueError(f"{path} names no classes; {expected}.")
    if len(set(content)) < len(content):
        logger.warning("%s gives classes the same name: %s.", path, {n for n in content if content.count(n) > 1})
    if not isinstance(ignore_index, int) or 0 <= ignore_index < len(content):
        raise ValueError(f"{path}: `ignore_index` must be a number that is no label id, got {ignore_index!r}.")
    return content, ignore_index


def _splits_of_folder(images: Path, annotations: Path, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    if not images.is_dir() or not annotations.is_dir():
        raise ValueError(f"{images.parent} must have the folders {images.name} and {annotations.name}.")
    splits = {}
    for split, spellings in SPLIT_NAMES.items():
        directory = next((name for name in spellings if (images / name).is_dir()), None)
        if directory is None:
            continue
        paths = sorted(path for path in (images / directory).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise ValueError(f"{images / directory} has no images (of the kinds {', '.join(IMAGE_SUFFIXES)}).")
        masks = [_annotation_of(path, images / directory, annotations / directory) for path in paths]
        if split == "test":
            masks = [path if path.is_file() else None for path in masks]
        splits[split] = _make_split(paths, masks, images, streaming)
    _require_train_or_validation(splits, images)
    return splits


def _annotation_of(image: Path, images: Path, annotations: Path) -> Path:
    return (annotations / image.relative_to(images)).with_suffix(".png")


def _require_train_or_validation(splits: Mapping[str, Any], folder: Path) -> None:
    if not splits:
        raise ValueError(f"{folder} has no images for training or validation: expected folders like train and val.")


def _make_split(
    images: Sequence[Path], annotations: Sequence[Path | None], root: Path, streaming: bool
) -> Dataset | IterableDataset:
    missing = [
        (image, mask)
        for image, mask in zip(images, annotations, strict=True)
        if mask is not None and not mask.is_file()
    ]
    if missing:
        listed = ", ".join(f"{image} (expected {mask})" for image, mask in missing[:5])
        raise ValueError(f"{len(missing)} images have no annotation: {listed}. Add them, or move the images away.")
    known = {mask for mask in annotations if mask is not None}
    for directory in {mask.parent for mask in known}:
        unused = [path for path in directory.glob("*.png") if path not in known and "_instanceIds" not in path.name]
        if unused and "gtFine" not in directory.parts:
            logger.warning("%d annotations in %s have no image, e.g. %s.", len(unused), directory, unused[0])
    columns = {
        "image": [str(path) for path in images],
        "annotation": [None if mask is None else str(mask) for mask in annotations],
        "name": [path.relative_to(root).as_posix() for path in images],
    }
    dataset = Dataset.from_dict(columns, features=FEATURES)
    return dataset.to_iterable_dataset() if streaming else dataset


def _load_columns(
    name_or_path: str, image_column: str | None, annotation_column: str | None, streaming: bool
) -> SegmentationData:
    """A data set that `datasets` loads by itself: from the Hub, saved to disk, or of parquet files."""
    try:
        if (Path(name_or_path) / "dataset_dict.json").is_file():
            loaded = load_from_disk(name_or_path)
        else:
            loaded = load_dataset(name_or_path, streaming=streaming)
    except Exception as error:
        raise ValueError(f"The data set {name_or_path!r} could not be loaded: {error}") from error
    if not isinstance(loaded, Mapping):
        loaded = DatasetDict({"train": loaded})
    splits, class_names = {}, None
    for split, spellings in SPLIT_NAMES.items():
        name = next((spelling for spelling in spellings if spelling in loaded), None)
        if name is None:
            continue
        dataset = loaded[name]
        image = _find_column(dataset, image_column, IMAGE_COLUMNS, "image")
        annotation = _find_column(dataset, annotation_column, ANNOTATION_COLUMNS, "annotation")
        class_names = class_names or _names_in_info(dataset)
        splits[split] = _rename(dataset, image, annotation, split)
    _require_train_or_validation(splits, Path(name_or_path))
    classes_file = Path(name_or_path) / "classes.json"
    ignore_index = IGNORE_INDEX
    if classes_file.is_file():
        class_names, ignore_index = _read_classes(classes_file)
    if class_names is None:
        raise ValueError(
            f"The data set {name_or_path!r} does not name its classes. Save it as a folder with a classes.json beside "
            "the data, which lists them in the order of their ids."
        )
    label_ids = {index: index for index in range(len(class_names))}
    return SegmentationData(
        splits, class_names, generate_palette(len(class_names)), label_ids, {ignore_index, IGNORE_INDEX}
    )


def _find_column(dataset: Any, given: str | None, known: Sequence[str], kind: str) -> str:
    columns = dataset.column_names or list(next(iter(dataset)))
    if given is not None and given not in columns:
        raise ValueError(f"The data set has no {kind} column {given!r}, only {columns}.")
    found = given or next((name for name in known if name in columns), None)
    if found is None:
        raise ValueError(f"Which of the columns {columns} is the {kind}? Name it with `{kind}_column`.")
    return found


def _names_in_info(dataset: Any) -> list[str] | None:
    """Class names from the label features that a data set describes, if it does."""
    for feature in (dataset.features or {}).values():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            return list(names)
    return None


def _rename(dataset: Any, image: str, annotation: str, split: str) -> Any:
    dataset = dataset.select_columns([image, annotation])
    dataset = dataset.rename_columns(
        {old: new for old, new in ((image, "image"), (annotation, "annotation")) if old != new}
    )
    if isinstance(dataset, IterableDataset):
        return dataset.map(partial(_with_name, split), with_indices=True)
    return dataset.add_column("name", [f"{split} {index}" for index in range(len(dataset))])


def _with_name(split: str, example: dict[str, Any], index: int) -> dict[str, Any]:
    return example | {"name": f"{split} {index}"}


__all__ = ["IGNORE_INDEX", "SegmentationData", "load_segmentation_dataset", "read_example"]
