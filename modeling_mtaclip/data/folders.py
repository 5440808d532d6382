# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Splits made of image files: SceneParse150, Cityscapes, and folders of one's own.

Only the paths are stored, as a table in the cache of `datasets` whose fingerprint is that of the list of files; no
file is opened before its example is read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, NamedSplit, Value
from transformers.utils import logging


logger = logging.get_logger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
# Cityscapes' folders of images and the kind of annotation that they have.
CITYSCAPES_SPLITS = {
    "train": ("train", "gtFine"),
    "validation": ("val", "gtFine"),
    "test": ("test", "gtFine"),
    "train_extra": ("train_extra", "gtCoarse"),
}
FEATURES = Features({"image": Image(), "annotation": Image(), "name": Value("string")})


def splits_of_folder(folder: Path) -> DatasetDict:
    """Splits of `images/<split>/**` and `annotations/<split>/**.png`, with the same names.

    Args:
        folder (`Path`): that holds `images` and `annotations`; splits may be spelt as in SceneParse150 (`training`).

    Raises:
        ValueError: missing folders, a split without images, images of train or validation without annotation.
    """
    images, annotations = folder / "images", folder / "annotations"
    if not images.is_dir() or not annotations.is_dir():
        raise ValueError(f"{folder} must have the folders images and annotations, each with train and val.")
    splits = {}
    for split, spellings in SPLIT_NAMES.items():
        directory = next((name for name in spellings if (images / name).is_dir()), None)
        if directory is None:
            continue
        paths = sorted(path for path in (images / directory).rglob("*") if _is_image(path))
        if not paths:
            raise ValueError(f"{images / directory} has no images (of the kinds {', '.join(IMAGE_SUFFIXES)}).")
        masks = [(annotations / path.relative_to(images)).with_suffix(".png") for path in paths]
        _warn_of_unused(masks, annotations / directory)
        splits[split] = _make_split(split, paths, masks, images)
    return _require_any(splits, folder)


def splits_of_cityscapes(folder: Path) -> tuple[DatasetDict, bool]:
    """Splits of `leftImg8bit/<split>/<city>` and `gtFine` (`gtCoarse` for `train_extra`).

    Args:
        folder (`Path`): that holds `leftImg8bit` and `gtFine`.

    Returns:
        `tuple[DatasetDict, bool]`: the splits, and whether annotations hold train ids rather than label ids: they do
        if the files that `csCreateTrainIdLabelImgs` writes are complete.

    Raises:
        ValueError: missing folders, or images of another split than test without annotation.
    """
    images = folder / "leftImg8bit"
    if not images.is_dir():
        raise ValueError(f"{folder} is no Cityscapes folder: it has no leftImg8bit.")
    files = {}
    for split, (directory, kind) in CITYSCAPES_SPLITS.items():
        paths = sorted(path for path in (images / directory).glob("*/*_leftImg8bit.png") if _is_image(path))
        if paths and (kind == "gtFine" or (folder / kind / directory).is_dir()):
            files[split] = paths, [_cityscapes_annotation(path, folder, directory, kind) for path in paths]
    train_ids = _have_train_ids(masks for split, (_, masks) in files.items() if split != "test")
    splits = {}
    for split, (paths, masks) in files.items():
        if train_ids:
            masks = [_with_train_ids(mask) for mask in masks]
        splits[split] = _make_split(split, paths, masks, images)
    return _require_any(splits, images), train_ids


def _cityscapes_annotation(image: Path, folder: Path, split: str, kind: str) -> Path:
    name = image.name.replace("_leftImg8bit.png", f"_{kind}_labelIds.png")
    return folder / kind / split / image.parent.name / name


def _with_train_ids(annotation: Path) -> Path:
    return annotation.with_name(annotation.name.replace("_labelIds", "_labelTrainIds"))


def _have_train_ids(annotations_of_splits: Iterable[list[Path]]) -> bool:
    """Whether all annotations of all splits exist with train ids too."""
    annotations = [path for paths in annotations_of_splits for path in paths]
    return bool(annotations) and all(_with_train_ids(path).is_file() for path in annotations)


def _is_image(path: Path) -> bool:
    # Names that start with a dot are what some systems leave beside the files that they copy.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _warn_of_unused(annotations: Sequence[Path], directory: Path) -> None:
    unused = sorted(set(directory.rglob("*.png")) - set(annotations))
    unused = [path for path in unused if not path.name.startswith(".")]
    if unused:
        logger.warning(
            "%d annotations in %s have no image and are not used, e.g. %s.", len(unused), directory, unused[0]
        )


def _require_any(splits: dict[str, Dataset], folder: Path) -> DatasetDict:
    if not splits:
        raise ValueError(f"{folder} has no images for training or validation: expected folders like train and val.")
    return DatasetDict(splits)


def _make_split(split: str, images: Sequence[Path], annotations: Sequence[Path], root: Path) -> Dataset:
    """A split of image files; the test split needn't be labelled: missing annotations become `None`."""
    exist = [mask.is_file() for mask in annotations]
    if split != "test" and not all(exist):
        missing = "\n".join(
            f"- {image} (expected {mask})"
            for image, mask, there in zip(images, annotations, exist, strict=True)
            if not there
        )
        raise ValueError(
            f"{exist.count(False)} of {len(images)} images have no annotation:\n{missing}\n"
            "Add the annotations, or move these images away."
        )
    columns = {
        "image": [str(path) for path in images],
        "annotation": [str(mask) if there else None for mask, there in zip(annotations, exist, strict=True)],
        "name": [path.relative_to(root).as_posix() for path in images],
    }
    return Dataset.from_generator(_rows, features=FEATURES, gen_kwargs={"columns": columns}, split=NamedSplit(split))


def _rows(columns: Mapping[str, list[str | None]]) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


__all__ = ["FEATURES", "SPLIT_NAMES", "splits_of_cityscapes", "splits_of_folder"]
