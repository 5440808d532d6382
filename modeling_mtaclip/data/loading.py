# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Segmentation data sets as `datasets` data sets: images and annotations decoded when they are read.

Every data set becomes splits with the columns `image`, `annotation` and `name`. Annotations stay as they are in the
files; [`SegmentationData.read`] turns them into the model's label ids and checks them.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    load_dataset,
    load_from_disk,
)
from huggingface_hub import hf_hub_download
from PIL import Image as PILImage

from .catalog import (
    ADE20K_CLASSES,
    ADE20K_PALETTE,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    CITYSCAPES_TRAIN_IDS,
    generate_palette,
)
from .class_names import read_class_names
from .folders import FEATURES, SPLIT_NAMES, splits_of_cityscapes, splits_of_folder
from .reading import IGNORE_INDEX, SegmentationData, undecoded
from .scenes import SCENE_CLASSES, SCENE_PALETTE, make_scene


IMAGE_COLUMNS = ("image", "img", "pixel_values", "images")
ANNOTATION_COLUMNS = ("annotation", "label", "mask", "segmentation", "labels", "semantic_mask", "annotations", "masks")
CLASS_FILES = ("classes.json", "id2label.json")
# Scenes by their seeds, so that the splits never share one.
SCENE_SEEDS = {"train": range(640), "validation": range(10_000_000, 10_000_100)}
# The files of a split are one "shard" otherwise, which the workers of a loader could not share.
MAX_STREAM_SHARDS = 64


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
            `images/{train,val}`, `annotations/{train,val}` and `classes.json`. A folder saved by `save_to_disk` or
            of parquet files, with a `classes.json`. Else a data set on the Hub that has a `classes.json` or
            `id2label.json`.
        data_dir (`str`, *optional*): folder of `"ade20k"` or `"cityscapes"`.
        image_column, annotation_column (`str`, *optional*): columns of a data set of the last two kinds, where they
            can't be told by their names.
        streaming (`bool`, defaults to `False`): read while training, for data sets that don't fit on the disk.

    Raises:
        ValueError: an unknown data set, missing folders, images without annotation, empty splits, wrong class names.
    """
    data = _load(str(name_or_path), data_dir, image_column, annotation_column, streaming)
    if streaming:
        data.splits = IterableDatasetDict({name: _as_stream(split) for name, split in data.splits.items()})
    return data


def _load(
    name_or_path: str,
    data_dir: str | Path | None,
    image_column: str | None,
    annotation_column: str | None,
    streaming: bool,
) -> SegmentationData:
    if name_or_path == "scenes":
        return _load_scenes()
    if name_or_path in ("ade20k", "cityscapes"):
        if data_dir is None or not Path(data_dir).is_dir():
            raise ValueError(
                f"The data set {name_or_path!r} needs the folder of its files in `data_dir`, got {data_dir}."
            )
        return (_load_ade20k if name_or_path == "ade20k" else _load_cityscapes)(Path(data_dir))
    folder = Path(name_or_path)
    if (folder / "images").is_dir():
        return _load_folder(folder)
    if not folder.is_dir() and name_or_path.count("/") != 1:
        raise ValueError(
            f"Unknown data set {name_or_path!r}: expected 'scenes', 'ade20k', 'cityscapes', an existing folder, or a "
            "data set on the Hub (owner/name)."
        )
    return _load_columns(name_or_path, image_column, annotation_column, streaming)


def _as_stream(dataset: Dataset | IterableDataset) -> IterableDataset:
    if isinstance(dataset, IterableDataset):
        return dataset
    stream = dataset.with_format(None).to_iterable_dataset(num_shards=max(1, min(MAX_STREAM_SHARDS, len(dataset))))
    return stream.map(_draw_scene, remove_columns="seed") if "seed" in dataset.column_names else stream


def _load_scenes() -> SegmentationData:
    splits = {
        split: Dataset.from_dict({"seed": list(seeds)}).with_transform(_draw_scenes)
        for split, seeds in SCENE_SEEDS.items()
    }
    label_ids = {index: index for index in range(len(SCENE_CLASSES))}
    return SegmentationData(DatasetDict(splits), list(SCENE_CLASSES), list(SCENE_PALETTE), label_ids)


@lru_cache(maxsize=1024)
def _make_scene(seed: int) -> tuple[PILImage.Image, PILImage.Image]:
    return make_scene(seed)


def _draw_scene(example: Mapping[str, int]) -> dict[str, Any]:
    image, annotation = _make_scene(example["seed"])
    return {"image": image, "annotation": annotation, "name": f"scene {example['seed']}"}


def _draw_scenes(batch: Mapping[str, list[int]]) -> dict[str, list]:
    scenes = [_draw_scene({"seed": seed}) for seed in batch["seed"]]
    return {column: [scene[column] for scene in scenes] for column in ("image", "annotation", "name")}


def _load_ade20k(folder: Path) -> SegmentationData:
    label_ids = {index + 1: index for index in range(len(ADE20K_CLASSES))}
    # 0 is "other". 255 is an error: it would mean that the values have been lowered by one already.
    return SegmentationData(
        splits_of_folder(folder), list(ADE20K_CLASSES), list(ADE20K_PALETTE), label_ids, ignored_values={0}
    )


def _load_cityscapes(folder: Path) -> SegmentationData:
    splits, train_ids = splits_of_cityscapes(folder)
    label_ids, ignored = {index: index for index in range(len(CITYSCAPES_CLASSES))}, {IGNORE_INDEX}
    if not train_ids:
        label_ids = dict(CITYSCAPES_TRAIN_IDS)
        # 0 … 33 are all label ids; those that are not evaluated have no train id.
        ignored |= set(range(34)) - label_ids.keys()
    return SegmentationData(splits, list(CITYSCAPES_CLASSES), list(CITYSCAPES_PALETTE), label_ids, ignored)


def _load_folder(folder: Path) -> SegmentationData:
    names, ignore_index = read_class_names(folder / "classes.json")
    return _with_names(splits_of_folder(folder), names, ignore_index)


def _with_names(splits: Mapping[str, Any], names: list[str], ignore_index: int) -> SegmentationData:
    label_ids = {index: index for index in range(len(names))}
    return SegmentationData(
        splits, names, generate_palette(len(names)), label_ids, {ignore_index, IGNORE_INDEX} - label_ids.keys()
    )


def _load_columns(
    name_or_path: str, image_column: str | None, annotation_column: str | None, streaming: bool
) -> SegmentationData:
    """A data set that `datasets` loads by itself: from the Hub, saved to disk, or of parquet files."""
    loaded = _load_with_datasets(name_or_path, streaming)
    splits = {}
    for split, spellings in SPLIT_NAMES.items():
        dataset = next((loaded[spelling] for spelling in spellings if spelling in loaded), None)
        if dataset is None:
            continue
        columns = dataset.column_names or list(next(iter(dataset)))
        image = _find_column(columns, image_column, IMAGE_COLUMNS, "image")
        annotation = _find_column(columns, annotation_column, ANNOTATION_COLUMNS, "annotation")
        splits[split] = _with_columns(dataset, image, annotation, split)
    if not splits:
        raise ValueError(
            f"The data set {name_or_path!r} has the splits {list(loaded)}: expected train, validation or test."
        )
    kind = IterableDatasetDict if isinstance(loaded, IterableDatasetDict) else DatasetDict
    return _with_names(kind(splits), *_class_names_of(name_or_path))


def _load_with_datasets(name_or_path: str, streaming: bool) -> Mapping[str, Dataset | IterableDataset]:
    folder = Path(name_or_path)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = load_from_disk(name_or_path)
        elif folder.is_dir():
            loaded = load_dataset("parquet", data_files=_parquet_files(folder), streaming=streaming)
        else:
            loaded = load_dataset(name_or_path, streaming=streaming)
    except Exception as error:
        raise ValueError(f"The data set {name_or_path!r} could not be loaded: {error}") from error
    return loaded if isinstance(loaded, Mapping) else DatasetDict({"train": loaded})


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """Parquet files by split: their folder or the start of their name says which, as on the Hub."""
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        starts = (*path.relative_to(folder).parts[:-1], path.stem.replace(".", "-").replace("_", "-").split("-")[0])
        for split, spellings in SPLIT_NAMES.items():
            if any(start in spellings for start in starts):
                files.setdefault(split, []).append(str(path))
    if not files:
        raise ValueError(
            "expected images/{train,val}, annotations/{train,val} and classes.json, a folder made by `save_to_disk`, "
            "or parquet files like train-00000.parquet and validation-00000.parquet"
        )
    return files


def _find_column(columns: Sequence[str], given: str | None, known: Sequence[str], kind: str) -> str:
    if given is not None and given not in columns:
        raise ValueError(f"The data set has no {kind} column {given!r}, only {list(columns)}.")
    found = given or next((name for name in known if name in columns), None)
    if found is None:
        raise ValueError(f"Which of the columns {list(columns)} is the {kind}? Name it with `{kind}_column`.")
    return found


def _with_columns(
    dataset: Dataset | IterableDataset, image: str, annotation: str, split: str
) -> Dataset | IterableDataset:
    dataset = dataset.select_columns([image, annotation])
    renamed = {old: new for old, new in ((image, "image"), (annotation, "annotation")) if old != new}
    dataset = dataset.rename_columns(renamed) if renamed else dataset
    for column in ("image", "annotation"):
        # Paths and undecoded files become images too.
        if dataset.features is not None and not isinstance(dataset.features[column], Image):
            dataset = dataset.cast_column(column, Image())
    if isinstance(dataset, IterableDataset):
        return undecoded(dataset).map(_with_name, with_indices=True, fn_kwargs={"split": split}, features=FEATURES)
    return dataset.add_column("name", [f"{split} {index}" for index in range(len(dataset))])


def _with_name(example: dict[str, Any], index: int, split: str) -> dict[str, Any]:
    return example | {"name": f"{split} {index}"}


def _class_names_of(name_or_path: str) -> tuple[list[str], int]:
    """Class names and the value for "no label" from a file beside the data."""
    for name in CLASS_FILES:
        path = Path(name_or_path) / name
        if not Path(name_or_path).is_dir():
            path = _download(name_or_path, name)
        if path is not None and path.is_file():
            return read_class_names(path)
    raise ValueError(
        f"The data set {name_or_path!r} does not name its classes: it needs a classes.json that lists them in the "
        "order of their ids. A data set on the Hub that has none can be saved with `save_to_disk`, beside such a file."
    )


def _download(repository: str, name: str) -> Path | None:
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except (OSError, ValueError):
        # huggingface_hub's errors are of these kinds: no such file, no network, no such repository.
        return None


__all__ = ["load_segmentation_dataset"]
