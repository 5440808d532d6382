# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Segmentation data sets as `datasets` data sets: known ones, folders of one's own, and data sets of the Hub.

Every data set becomes splits with the columns `image`, `annotation` and `name`. Of folders only the paths are kept, in
a table whose fingerprint is that of the list of files; no file is opened before its example is read. Annotations stay
as they are in the files; [`SegmentationData.read`] turns them into label ids.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Image, IterableDataset, IterableDatasetDict, Value, load_dataset
from huggingface_hub import hf_hub_download
from transformers.utils import logging

from .catalog import DATASETS, IGNORE_INDEX, DatasetInfo, read_dataset_info
from .examples import SegmentationData, Split
from .image_files import MAX_PIXELS, find_image_files, name_without_suffix
from .scenes import make_scene


logger = logging.get_logger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
# Files instead of decoded images, for `SegmentationData.read`.
FILE = Image(decode=False)
FEATURES = datasets.Features({"image": FILE, "annotation": FILE, "name": Value("string")})
USUAL_COLUMNS = {
    "image": ("image", "img", "pixel_values", "images"),
    "annotation": ("annotation", "label", "mask", "segmentation", "labels", "semantic_mask", "annotations", "masks"),
}
# Columns of class ids and other numbers can't be files.
NUMBERS = re.compile("int|float|bool|time|date|duration|decimal")
CLASS_FILES = ("classes.json", "id2label.json")
# Scenes by their seeds, so that the splits never share one.
SCENE_SEEDS = {"train": range(640), "validation": range(10_000_000, 10_000_100)}
# The files of a split are one "shard" otherwise, which the workers of a loader could not share.
MAX_STREAM_SHARDS = 64

_scene_of = lru_cache(maxsize=1024)(make_scene)


def load_segmentation_dataset(
    name_or_path: str = "scenes",
    data_dir: str | Path | None = None,
    image_column_name: str | None = None,
    annotation_column_name: str | None = None,
    streaming: bool = False,
    *,
    do_reduce_labels: bool = False,
    train_val_split: float | None = None,
    dataset_config_name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> SegmentationData:
    """Loads a data set; images are not copied, and decoded only when they are read.

    Args:
        name_or_path (`str`):
            A name in [`DATASETS`]: `"scenes"` (drawn, no download), or `"ade20k"` or `"cityscapes"` in `data_dir`. A
            folder with `images/{train,val}`, `annotations/{train,val}` and `classes.json`. A folder saved by
            `save_to_disk` or of parquet files, or a data set on the Hub, with a `classes.json` or `id2label.json`.
        data_dir (`str`, *optional*): folder of a known data set.
        image_column_name, annotation_column_name (`str`, *optional*): columns of a data set of the last two kinds,
            where they can't be told by their names.
        streaming (`bool`, defaults to `False`): read while training, for data sets that don't fit on the disk.
        do_reduce_labels (`bool`, defaults to `False`): the annotations' value 0 is "no label" and 1 the first class.
        train_val_split (`float`, *optional*): share of the training images that become the validation split if there
            is none.
        dataset_config_name, revision, token, cache_dir: as for `datasets.load_dataset`.
        max_pixels (`int`, *optional*): larger images are refused, by default above Pillow's limit; 0: none are.

    Raises:
        ValueError: an unknown data set, missing folders, images without annotation, empty splits, wrong class names,
            options that don't fit the data set.
    """
    source, folder = str(name_or_path), Path(name_or_path)
    if source in DATASETS:
        info = DATASETS[source]
        if info.loader == "scenes":
            splits = {split: Dataset.from_dict({"seed": list(seeds)}) for split, seeds in SCENE_SEEDS.items()}
            splits = DatasetDict(splits).with_transform(_draw_scenes)
        else:
            splits, info = _load_files(data_dir, info)
    elif (folder / "images").is_dir():
        splits, info = _load_files(folder, read_dataset_info(folder / "classes.json"))
    elif folder.is_dir() or source.count("/") == 1:
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        options = {name: value for name, value in options.items() if value is not None}
        loaded = _load_with_datasets(source, dataset_config_name, streaming, options)
        splits = _with_known_columns(loaded, {"image": image_column_name, "annotation": annotation_column_name})
        info = _info_beside(source, options)
    else:
        raise ValueError(
            f"Unknown data set {source!r}: expected {', '.join(map(repr, DATASETS))}, an existing folder, or a data "
            "set on the Hub (owner/name)."
        )
    if train_val_split is not None and "validation" not in splits:
        splits = _split_off_validation(splits, train_val_split)
    if streaming:
        splits = IterableDatasetDict({name: _as_stream(split) for name, split in splits.items()})
    return SegmentationData(splits, info.with_reduced_labels() if do_reduce_labels else info, max_pixels)


def _draw_scenes(batch: Mapping[str, list[int]]) -> dict[str, list]:
    images, annotations = zip(*map(_scene_of, batch["seed"]), strict=True)
    return {"image": images, "annotation": annotations, "name": [f"scene {seed}" for seed in batch["seed"]]}


def _load_files(folder: str | Path | None, info: DatasetInfo) -> tuple[DatasetDict, DatasetInfo]:
    """Splits of image files, and what the values in their annotations stand for."""
    if folder is None or not Path(folder).is_dir():
        raise ValueError(
            f"{info.title} needs the folder of its files in `data_dir`, got {folder}. Get it from {info.download}."
        )
    root, pairs = Path(folder), {}
    for split, (images, annotations) in (info.splits or _usual_splits(root)).items():
        found = _pair_files(root, images, annotations)
        if not found and not info.splits:
            raise ValueError(f"{root / images.format('')} has no images.")
        # Of a known data set one may have a part, and some splits, such as coarse annotations, without their images.
        if found and (split in SPLITS or any(mask.is_file() for mask in found.values())):
            pairs[split] = found
    if not pairs:
        raise ValueError(f"{root} is no folder of {info.title}: expected files like {info.splits['train'][0]}.")
    if info.train_ids is not None:
        ready = {
            split: {image: mask.with_name(mask.name.replace(*info.train_ids)) for image, mask in found.items()}
            for split, found in pairs.items()
        }
        if all(mask.is_file() for split, found in ready.items() if split != "test" for mask in found.values()):
            label_ids = tuple(range(len(info.values)))
            pairs, info = ready, replace(info, values=label_ids, ignored_values=frozenset({IGNORE_INDEX}))
    return DatasetDict({split: _make_split(split, found, root) for split, found in pairs.items()}), info


def _usual_splits(root: Path) -> dict[str, tuple[str, str]]:
    """Where images and annotations of the splits are, which may be spelled as in SceneParse150 (`training`)."""
    found = {
        split: [name for name in spellings if (root / "images" / name).is_dir()] for split, spellings in SPLITS.items()
    }
    if not (root / "annotations").is_dir() or not any(found.values()):
        raise ValueError(f"{root} must have the folders images and annotations, each with train and val.")
    return {
        split: (f"images/{names[0]}/{{}}", f"annotations/{names[0]}/{{}}") for split, names in found.items() if names
    }


def _pair_files(root: Path, image_pattern: str, annotation_pattern: str) -> dict[Path, Path]:
    """Images with their annotations, which may be missing; in the patterns, `{}` is what their names share."""
    images, annotations = _files_by_name(root, image_pattern), _files_by_name(root, annotation_pattern)
    pairs, unclear = {}, []
    for name, paths in images.items():
        found = annotations.pop(name, [])
        # Beside label maps, some folders have their pictures.
        masks = [path for path in found if path.suffix.lower() == ".png"] or found
        unclear += ["- " + " and ".join(map(str, each)) for each in (paths, masks) if len(each) > 1]
        expected = root / (annotation_pattern.removesuffix(".png") + ".png").format(name)
        pairs[paths[0]] = masks[0] if masks else expected
    if unclear:
        listed = "\n".join(unclear)
        raise ValueError(f"These files have one name; rename some of them or move them away:\n{listed}")
    unused = sorted(path for paths in annotations.values() for path in paths)
    if unused and images:
        logger.warning("%d annotations have no image and are not used, e.g. %s.", len(unused), unused[0])
    return pairs


def _files_by_name(root: Path, pattern: str) -> dict[str, list[Path]]:
    folder, ending = pattern.split("{}")
    found = find_image_files(root / folder)
    if found.left_out and not ending:
        logger.warning("Left out in %s: %s.", root / folder, found.remark)
    files: dict[str, list[Path]] = {}
    for path in found.paths:
        name = path.relative_to(root / folder)
        if path.name.endswith(ending):
            key = name.as_posix().removesuffix(ending) if ending else name_without_suffix(name).as_posix()
            files.setdefault(key, []).append(path)
    return files


def _make_split(split: str, pairs: Mapping[Path, Path], root: Path) -> Dataset:
    """A split of image files; the test split needn't be labeled: missing annotations become `None`."""
    missing = {image: mask for image, mask in pairs.items() if not mask.is_file()}
    if split != "test" and missing:
        listed = "\n".join(f"- {image} (expected {mask})" for image, mask in missing.items())
        raise ValueError(
            f"{len(missing)} of {len(pairs)} images have no annotation:\n{listed}\n"
            "Add the annotations, or move these images away."
        )
    columns = {
        "image": [str(image) for image in pairs],
        "annotation": [None if image in missing else str(mask) for image, mask in pairs.items()],
        # Without the folder of all images.
        "name": [Path(*image.relative_to(root).parts[1:]).as_posix() for image in pairs],
    }
    return Dataset.from_dict(columns, features=FEATURES, split=datasets.NamedSplit(split))


def _split_off_validation(splits: Mapping[str, Split], share: float) -> DatasetDict:
    if not 0 < share < 1 or not isinstance(splits.get("train"), Dataset):
        raise ValueError(
            f"`train_val_split` must be between 0 and 1, of a data set with training images that isn't streamed from "
            f"the Hub; got {share} and {sorted(splits)}."
        )
    parts = splits["train"].train_test_split(share, seed=0)
    return DatasetDict({**splits, "train": parts["train"], "validation": parts["test"]})


def _as_stream(dataset: Split) -> IterableDataset:
    if isinstance(dataset, IterableDataset):
        return dataset
    stream = dataset.with_format(None).to_iterable_dataset(num_shards=max(1, min(MAX_STREAM_SHARDS, len(dataset))))
    is_drawn = "seed" in dataset.column_names
    return stream.map(_draw_scenes, batched=True, batch_size=1, remove_columns="seed") if is_drawn else stream


def _load_with_datasets(
    source: str, config_name: str | None, streaming: bool, hub_options: Mapping[str, Any]
) -> DatasetDict | IterableDatasetDict:
    """What `datasets` loads by itself: from the Hub, saved to disk, or of parquet files."""
    folder = Path(source)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(source)
        elif folder.is_dir():
            if not any(folder.rglob("*.parquet")):
                raise ValueError(
                    "expected images/{train,val}, annotations/{train,val} and classes.json, a folder made by "
                    "`save_to_disk`, or parquet files like train-00000.parquet and validation-00000.parquet"
                )
            cache_dir = hub_options.get("cache_dir")
            loaded = load_dataset("parquet", data_dir=source, streaming=streaming, cache_dir=cache_dir)
        else:
            config = {} if config_name is None else {"name": config_name}
            loaded = load_dataset(source, **config, streaming=streaming, **hub_options)
    except Exception as error:
        raise ValueError(f"The data set {source!r} could not be loaded: {error}") from error
    return loaded if isinstance(loaded, Mapping) else DatasetDict({"train": loaded})


def _with_known_columns(
    loaded: DatasetDict | IterableDatasetDict, given: Mapping[str, str | None]
) -> DatasetDict | IterableDatasetDict:
    splits = {}
    for split, spellings in SPLITS.items():
        for dataset in [loaded[spelling] for spelling in spellings if spelling in loaded][:1]:
            splits[split] = _with_columns(dataset, _find_columns(dataset, given), split)
    if not splits:
        raise ValueError(f"The data set has the splits {list(loaded)}: expected train, validation or test.")
    return type(loaded)(splits)


def _find_columns(dataset: Split, given: Mapping[str, str | None]) -> dict[str, str]:
    features = dataset.features or dict.fromkeys(next(iter(dataset)))
    columns = [name for name, feature in features.items() if not NUMBERS.match(getattr(feature, "dtype", ""))]
    found = {
        kind: given[kind] or next((name for name in usual if name in columns), None)
        for kind, usual in USUAL_COLUMNS.items()
    }
    for kind, name in found.items():
        if name is None:
            raise ValueError(f"Which of the columns {columns} is the {kind}? Name it with `{kind}_column_name`.")
        if name not in columns:
            raise ValueError(f"The data set has no {kind} column {name!r}, only {columns}.")
    if found["image"] == found["annotation"]:
        raise ValueError(f"{name!r} can't be the column of images and of annotations; there are {columns}.")
    return found


def _with_columns(dataset: Split, columns: Mapping[str, str], split: str) -> Split:
    for column in columns.values() if dataset.features else ():
        dataset = dataset.cast_column(column, FILE)
    old = [*columns.values()]
    if isinstance(dataset, IterableDataset):
        row = partial(_named_row, columns=columns, split=split)
        return dataset.select_columns(old).map(row, with_indices=True, remove_columns=old, features=FEATURES)
    dataset = dataset.select_columns(old).rename_columns(dict(zip(old, columns, strict=True)))
    return dataset.add_column("name", [f"{split} {index}" for index in range(len(dataset))])


def _named_row(example: dict[str, Any], index: int, columns: Mapping[str, str], split: str) -> dict[str, Any]:
    return {new: example[old] for new, old in columns.items()} | {"name": f"{split} {index}"}


def _info_beside(source: str, hub_options: Mapping[str, Any]) -> DatasetInfo:
    """Class names from a file beside the data."""
    for name in CLASS_FILES:
        path = Path(source, name)
        if not Path(source).is_dir():
            # huggingface_hub's errors are of these kinds: no such file, no network, no such repository.
            with suppress(OSError, ValueError):
                path = Path(hf_hub_download(source, name, repo_type="dataset", **hub_options))
        if path.is_file():
            return read_dataset_info(path)
    raise ValueError(
        f"The data set {source!r} does not name its classes: it needs a classes.json that lists them in the order of "
        "their ids. A data set on the Hub that has none can be saved with `save_to_disk`, beside such a file."
    )


__all__ = ["load_segmentation_dataset"]
