# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets from real samples and from trees drawn here: splits, label ids, and every kind of bad input."""

import csv
import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from modeling_mtaclip.data import DATASETS, SegmentationExamples, catalog, load_segmentation_dataset, palette_of
from modeling_mtaclip.data.catalog import read_dataset_info
from modeling_mtaclip.data.loading import logger as loading_logger


NAMES = ["road", "sky", "tree"]
ADE20K, CITYSCAPES = DATASETS["ade20k"], DATASETS["cityscapes"]


def image(height: int = 24, width: int = 32, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def annotation(
    height: int = 24, width: int = 32, seed: int = 0, values: tuple[int, ...] = (0, 1, 2, 255)
) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(values, dtype=np.uint8), (height, width))


def save(picture: Image.Image | np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and annotations of three training and two validation examples, and two test images."""
    for split, number in (("train", 3), ("val", 2), ("test", 2)):
        for index in range(number):
            save(image(seed=index), tmp_path / "images" / split / f"{index}.jpg")
            if split != "test":
                save(annotation(seed=index), tmp_path / "annotations" / split / f"{index}.png")
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    return tmp_path


def read(data, split: str = "train", index: int = 0):
    return data.read(data.splits[split][index])


def test_folder_has_lazy_splits_with_names_and_paths(folder):
    data = load_segmentation_dataset(str(folder))
    assert isinstance(data.splits, datasets.DatasetDict)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "validation": 2, "test": 2}
    assert data.splits["train"].column_names == ["image", "annotation", "name"]
    assert data.splits["train"]["name"][:] == ["train/0.jpg", "train/1.jpg", "train/2.jpg"]
    assert data.class_names == NAMES
    assert len(set(data.palette)) == len(NAMES)
    picture, labels = read(data, "validation", 1)
    assert (picture.mode, picture.size, labels.dtype) == ("RGB", (32, 24), np.int64)
    np.testing.assert_array_equal(labels, annotation(seed=1))


def test_fingerprint_is_that_of_the_list_of_files_and_images_are_not_copied(folder):
    first, again = (load_segmentation_dataset(str(folder)).splits for _ in range(2))
    for split in ("train", "validation", "test"):
        assert again[split]._fingerprint == first[split]._fingerprint
        files = again[split].cast_column("image", datasets.Image(decode=False))["image"][:]
        assert [file["path"] for file in files] == sorted(map(str, (folder / "images").glob(f"{split[:3]}*/*")))
        assert all(file["bytes"] is None for file in files)
    save(image(), folder / "images/train/3.jpg")
    save(annotation(), folder / "annotations/train/3.png")
    more = load_segmentation_dataset(str(folder)).splits
    assert len(more["train"]) == 4
    assert more["train"]._fingerprint != first["train"]._fingerprint
    assert more["validation"]._fingerprint == first["validation"]._fingerprint


def test_test_split_needs_no_annotations(folder):
    data = load_segmentation_dataset(str(folder))
    example = data.splits["test"][0]
    assert example["annotation"] is None
    assert data.read_image(example).size == (32, 24)
    with pytest.raises(ValueError, match=r"0\.jpg has no annotation|test/0\.jpg has no annotation"):
        data.read(example)


@pytest.mark.parametrize(
    "content",
    [
        NAMES,
        dict(enumerate(NAMES)),
        {"id2label": {"2": "tree", "0": "road", "1": "sky"}, "ignore_index": 255},
    ],
)
def test_class_names_may_be_written_in_three_ways(folder, content):
    (folder / "classes.json").write_text(json.dumps(content))
    assert load_segmentation_dataset(str(folder)).class_names == NAMES


def test_own_ignored_value_becomes_255(folder):
    (folder / "classes.json").write_text(json.dumps({"id2label": dict(enumerate(NAMES)), "ignore_index": 11}))
    values = np.full((24, 32), 11, np.uint8)
    values[0] = 1
    save(values, folder / "annotations/train/0.png")
    _, labels = read(load_segmentation_dataset(str(folder)))
    np.testing.assert_array_equal(labels, np.where(values == 11, 255, values))


def test_palette_annotations_give_their_indices(folder):
    values = annotation(seed=5)
    indexed = Image.frombytes("P", (32, 24), values.tobytes())
    indexed.putpalette([channel for index in range(256) for channel in (index, 255 - index, 7)])
    indexed.save(folder / "annotations/train/0.png")
    np.testing.assert_array_equal(read(load_segmentation_dataset(str(folder)))[1], values)


def test_exif_orientation_turns_the_image(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise when shown
    wide = np.zeros((24, 32, 3), np.uint8)
    wide[:12] = 255
    Image.fromarray(wide).save(folder / "images/train/0.jpg", exif=exif)
    save(annotation(32, 24), folder / "annotations/train/0.png")
    picture, labels = read(load_segmentation_dataset(str(folder)))
    assert picture.size == labels.shape[::-1] == (24, 32)
    # The upper half of the file is the right half of what is seen.
    assert np.asarray(picture)[:, 14:].min() > 200
    assert np.asarray(picture)[:, :10].max() < 50


def test_streaming_gives_the_same_examples(folder):
    data, stream = (load_segmentation_dataset(str(folder), streaming=streaming) for streaming in (False, True))
    assert isinstance(stream.splits, datasets.IterableDatasetDict)
    streamed = list(stream.splits["train"])
    assert [example["name"] for example in streamed] == data.splits["train"]["name"][:]
    for example, other in zip(streamed, data.splits["train"], strict=True):
        np.testing.assert_array_equal(stream.read(example)[1], data.read(other)[1])


def test_label_out_of_range_names_file_and_value(folder):
    values = annotation()
    values[3, 4] = 17
    save(values, folder / "annotations/train/1.png")
    data = load_segmentation_dataset(str(folder))
    with pytest.raises(ValueError, match=r"annotations/train/1\.png has the values \[17\].*3 classes.*from 0 to 2"):
        read(data, index=1)


def test_16_bit_label_beyond_the_table_is_out_of_range(folder):
    save(np.full((24, 32), 40_000, np.uint16), folder / "annotations/train/0.png")
    with pytest.raises(ValueError, match=r"0\.png has the values \[40000\]"):
        read(load_segmentation_dataset(str(folder)))


@pytest.mark.parametrize("file", ["images/train/2.jpg", "annotations/train/2.png"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"no image", None])
def test_corrupt_files_are_named(folder, file, damage):
    data = load_segmentation_dataset(str(folder))
    if damage is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(ValueError, match=rf"{file} can't be read"):
        SegmentationExamples(data, "train")[2]


def test_image_without_annotation_is_named(folder):
    (folder / "annotations/train/1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images have no annotation:\n- .*images/train/1\.jpg .*train/1\.png"):
        load_segmentation_dataset(str(folder))


def test_annotation_without_image_is_a_warning(folder, caplog):
    save(annotation(), folder / "annotations/train/9.png")
    loading_logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        data = load_segmentation_dataset(str(folder))
    loading_logger.removeHandler(caplog.handler)
    assert "9.png" in caplog.text
    assert len(data.splits["train"]) == 3


def test_empty_split_is_an_error(folder):
    for path in (folder / "images/val").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"images/val has no images"):
        load_segmentation_dataset(str(folder))


def test_absent_split_is_an_error(folder):
    data = load_segmentation_dataset(str(folder))
    with pytest.raises(ValueError, match=r"no extra split, only \['test', 'train', 'validation'\]"):
        SegmentationExamples(data, "extra")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is no JSON"),
        ("[]", "names no classes"),
        ("3", "names no classes"),
        ('["road", 4]', "names no classes"),
        ('["road", "sky", "road"]', r"same name: \['road'\]"),
        ('{"0": "road", "2": "sky"}', r"label ids 0 … 1, got \['0', '2'\]"),
        ('{"a": "road"}', "label ids 0 … 0"),
        ('{"id2label": {"0": "road"}, "ignore_index": 0}', "must be a number that is no class, got 0"),
        ('{"id2label": {"0": "road"}, "ignore_index": -1}', "not negative, got -1"),
        (json.dumps([f"class {index}" for index in range(256)]), "256 classes: at most 255"),
    ],
)
def test_wrong_class_names_are_errors(folder, content, message):
    (folder / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(str(folder))


def test_missing_class_names_are_an_error(folder):
    (folder / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"classes\.json is missing"):
        load_segmentation_dataset(str(folder))


def test_unknown_data_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown data set 'ade200k': expected 'ade20k', 'cityscapes', 'scenes'"):
        load_segmentation_dataset("ade200k")
    with pytest.raises(ValueError, match=r"'ade20k' needs the folder of its files in `data_dir`, got None"):
        load_segmentation_dataset("ade20k")
    with pytest.raises(ValueError, match="could not be loaded"):
        load_segmentation_dataset("nobody/nothing")
    with pytest.raises(ValueError, match=r"could not be loaded: expected images/\{train,val\}"):
        load_segmentation_dataset(str(tmp_path))


def test_check_lists_every_bad_file_and_counts_pixels(folder):
    data = load_segmentation_dataset(str(folder))
    expected = sum(np.bincount(annotation(seed=index).ravel(), minlength=256)[:3] for index in range(3))
    np.testing.assert_array_equal(data.check("train", "full"), expected)
    np.testing.assert_array_equal(data.check("train", "sample"), expected)
    assert data.check("train", "none").sum() == 0
    save(np.full((24, 32), 9, np.uint8), folder / "annotations/train/0.png")
    (folder / "images/train/2.jpg").write_bytes(b"")
    for streaming in (False, True):
        data = load_segmentation_dataset(str(folder), streaming=streaming)
        with pytest.raises(ValueError, match=r"(?s)2 unusable examples.*train/0\.png.*\[9\].*train/2\.jpg") as caught:
            data.check("train", "full")
        assert "train/1" not in str(caught.value)
    with pytest.raises(ValueError, match="got 'all'"):
        data.check("train", "all")


def test_check_names_every_offending_file(folder):
    for index in range(30):
        save(image(), folder / f"images/train/bad{index}.jpg")
        save(np.full((24, 32), 200, np.uint8), folder / f"annotations/train/bad{index}.png")
    with pytest.raises(ValueError, match="30 unusable examples in the train split") as caught:
        load_segmentation_dataset(str(folder)).check("train", "full")
    assert all(f"train/bad{index}.png" in str(caught.value) for index in range(30))
    for path in (folder / "annotations/train").glob("bad*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="30 of 33 images have no annotation") as caught:
        load_segmentation_dataset(str(folder))
    assert all(f"images/train/bad{index}.jpg (expected" in str(caught.value) for index in range(30))


def columns_of(folder: Path, image_column: str = "image", annotation_column: str = "annotation"):
    files = {
        image_column: [str(folder / f"images/train/{index}.jpg") for index in range(3)],
        annotation_column: [str(folder / f"annotations/train/{index}.png") for index in range(3)],
        "scene_category": [0, 1, 0],
    }
    features = {image_column: datasets.Image(), annotation_column: datasets.Image()}
    category = {"scene_category": datasets.ClassLabel(names=["street", "park"])}
    return datasets.Dataset.from_dict(files, features=datasets.Features(features | category))


@pytest.mark.parametrize("kind", ["dict", "single", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_saved_data_sets_are_loaded(folder, tmp_path, monkeypatch, kind, streaming):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    saved = tmp_path / "saved"
    source = columns_of(folder, "photo", "labels_of_pixels")
    if kind == "dict":
        datasets.DatasetDict({"train": source, "validation": source.select([1])}).save_to_disk(saved)
    elif kind == "single":
        source.save_to_disk(saved)
    else:
        saved.mkdir()
        source.to_parquet(saved / "train-00000-of-00001.parquet")
        source.select([1]).to_parquet(saved / "validation-00000-of-00001.parquet")
    (saved / "classes.json").write_text(json.dumps(NAMES))
    data = load_segmentation_dataset(str(saved), None, "photo", "labels_of_pixels", streaming)
    assert list(data.splits) == (["train"] if kind == "single" else ["train", "validation"])
    examples = list(data.splits["train"])
    assert [example["name"] for example in examples] == ["train 0", "train 1", "train 2"]
    for index, example in enumerate(examples):
        np.testing.assert_array_equal(data.read(example)[1], annotation(seed=index))
    assert data.check("train", "full").sum() > 0


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_of_the_hub_are_loaded(folder, monkeypatch, streaming):
    def load(name: str, streaming: bool):
        assert name == "city/streets"
        splits = {"train": columns_of(folder, "image", "label"), "validation": columns_of(folder, "image", "label")}
        if streaming:
            return datasets.IterableDatasetDict({key: split.to_iterable_dataset() for key, split in splits.items()})
        return datasets.DatasetDict(splits)

    def download(repository: str, name: str, repo_type: str) -> str:
        assert (repository, repo_type) == ("city/streets", "dataset")
        if name != "id2label.json":
            raise LocalEntryNotFoundError(f"there is no {name}")
        (folder / name).write_text(json.dumps(dict(enumerate(NAMES))))
        return str(folder / name)

    monkeypatch.setattr("modeling_mtaclip.data.loading.load_dataset", load)
    monkeypatch.setattr("modeling_mtaclip.data.loading.hf_hub_download", download)
    data = load_segmentation_dataset("city/streets", streaming=streaming)
    assert isinstance(data.splits, datasets.IterableDatasetDict if streaming else datasets.DatasetDict)
    assert (list(data.splits), data.class_names) == (["train", "validation"], NAMES)
    for index, example in enumerate(data.splits["validation"]):
        assert example["name"] == f"validation {index}"
        np.testing.assert_array_equal(data.read(example)[1], annotation(seed=index))


def test_columns_are_found_or_asked_for(folder, tmp_path):
    found, unclear = tmp_path / "found", tmp_path / "unclear"
    columns_of(folder, "image", "label").save_to_disk(found)
    columns_of(folder, "image", "z").save_to_disk(unclear)
    with pytest.raises(ValueError, match=r"does not name its classes"):
        load_segmentation_dataset(str(found))
    (found / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert load_segmentation_dataset(str(found)).class_names == NAMES
    with pytest.raises(
        ValueError, match=r"Which of the columns .*'z'.* is the annotation\? .*`annotation_column_name`"
    ):
        load_segmentation_dataset(str(unclear))
    with pytest.raises(ValueError, match="no image column 'photo', only"):
        load_segmentation_dataset(str(found), image_column_name="photo")


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    ids = np.arange(34, dtype=np.uint8).repeat(2).reshape(4, 17)
    for split, city in (("train", "a"), ("val", "b"), ("test", "c"), ("train_extra", "d")):
        stem = f"{city}_000000_000019"
        save(image(4, 17), tmp_path / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
        kind = "gtCoarse" if split == "train_extra" else "gtFine"
        if split != "test":
            save(ids, tmp_path / f"{kind}/{split}/{city}/{stem}_{kind}_labelIds.png")
    return tmp_path


def cityscapes_train_ids() -> np.ndarray:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="needs cityscapesscripts").id2label
    ids = np.arange(34).repeat(2).reshape(4, 17)
    return np.vectorize(lambda value: labels[value].trainId)(ids)


def test_cityscapes_label_ids_become_train_ids(cityscapes):
    data = load_segmentation_dataset("cityscapes", cityscapes)
    assert list(data.splits) == ["train", "validation", "test", "train_extra"]
    assert data.splits["test"][0]["annotation"] is None
    for split in ("train", "validation", "train_extra"):
        np.testing.assert_array_equal(read(data, split)[1], cityscapes_train_ids())


def test_cityscapes_prefers_train_ids_if_complete(cityscapes):
    inverse = np.where(cityscapes_train_ids() == 255, 255, 18 - cityscapes_train_ids()).astype(np.uint8)
    files = list(cityscapes.rglob("*_labelIds.png"))
    for path in files[:-1]:
        save(inverse, path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    np.testing.assert_array_equal(read(load_segmentation_dataset("cityscapes", cityscapes))[1], cityscapes_train_ids())
    save(inverse, files[-1].with_name(files[-1].name.replace("labelIds", "labelTrainIds")))
    np.testing.assert_array_equal(read(load_segmentation_dataset("cityscapes", cityscapes))[1], inverse)


def test_cityscapes_with_a_value_that_is_no_label_id(cityscapes):
    save(np.full((4, 17), 34, np.uint8), next((cityscapes / "gtFine/train").rglob("*_labelIds.png")))
    with pytest.raises(ValueError, match=r"a_000000_000019_gtFine_labelIds\.png has the values \[34\]"):
        read(load_segmentation_dataset("cityscapes", cityscapes))


def test_cityscapes_facts_are_the_official_ones():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="needs cityscapesscripts").labels
    evaluated = sorted((label for label in labels if label.trainId not in (255, -1)), key=lambda label: label.trainId)
    assert tuple(label.name for label in evaluated) == CITYSCAPES.class_names
    assert tuple(label.color for label in evaluated) == CITYSCAPES.palette
    assert tuple(label.category for label in evaluated) == CITYSCAPES.categories
    assert {label.id: label.trainId for label in evaluated} == CITYSCAPES.label_ids
    assert CITYSCAPES.ignored_values == {label.id for label in labels if label.id >= 0} - CITYSCAPES.label_ids.keys()


def test_a_new_data_set_is_one_file(cityscapes, tmp_path, monkeypatch):
    facts = {
        "title": "Two",
        "splits": {"train": ["leftImg8bit/train/{}_leftImg8bit.png", "gtFine/train/{}_gtFine_labelIds.png"]},
        "ignored_values": [*range(7), *range(9, 34)],
        "classes": [
            {"name": "sidewalk", "value": 8, "color": [1, 2, 3], "category": "flat"},
            {"name": "road", "value": 7, "color": [4, 5, 6], "category": "flat"},
        ],
    }
    (tmp_path / "two.json").write_text(json.dumps(facts))
    monkeypatch.setitem(DATASETS, "two", read_dataset_info(tmp_path / "two.json"))
    data = load_segmentation_dataset("two", cityscapes)
    assert (data.class_names, data.palette, list(data.splits)) == (
        ["sidewalk", "road"],
        [(1, 2, 3), (4, 5, 6)],
        ["train"],
    )
    ids = np.arange(34).repeat(2).reshape(4, 17)
    np.testing.assert_array_equal(read(data)[1], np.select([ids == 8, ids == 7], [0, 1], 255))
    assert palette_of(["sidewalk", "road"]) == data.palette
    known = Path(catalog.__file__).parent / "known"
    assert {path.stem for path in known.iterdir()} == DATASETS.keys() - {"two"}
    assert all(info.license and info.download and info.source for info in DATASETS.values() if info.title != "Two")


def test_options_of_the_hub_reach_datasets(folder, monkeypatch):
    seen = {}

    def load(path: str, **options):
        seen.update(options, path=path)
        return datasets.DatasetDict({"train": columns_of(folder, "image", "label")})

    monkeypatch.setattr("modeling_mtaclip.data.loading.load_dataset", load)
    monkeypatch.setattr(
        "modeling_mtaclip.data.loading.hf_hub_download", lambda *args, **options: str(folder / "classes.json")
    )
    options = {"revision": "v2", "token": "secret", "cache_dir": "cache"}
    data = load_segmentation_dataset("a/b", dataset_config_name="small", train_val_split=0.4, **options)
    assert seen == {"path": "a/b", "name": "small", "streaming": False} | options
    assert {split: len(each) for split, each in data.splits.items()} == {"train": 1, "validation": 2}
    with pytest.raises(ValueError, match=r"`trust_remote_code`: datasets .* runs no code"):
        load_segmentation_dataset("a/b", trust_remote_code=True)


def test_real_cityscapes_samples(shared_dir):
    folder = shared_dir / "data/cityscapes"
    data = load_segmentation_dataset("cityscapes", folder)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "validation": 2}
    picture, labels = read(data, "validation")
    assert picture.size == (2048, 1024)
    raw = np.asarray(Image.open(next((folder / "gtFine/val").rglob("*000004_000019_gtFine_labelIds.png"))))
    for value in np.unique(raw):
        assert set(np.unique(labels[raw == value])) == {CITYSCAPES.label_ids.get(int(value), 255)}


def test_real_ade20k_samples_are_shifted_by_one(shared_dir):
    folder = shared_dir / "data/ade20k/ADEChallengeData2016"
    data = load_segmentation_dataset("ade20k", folder)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2, "validation": 1}
    _, labels = read(data, "validation")
    raw = np.asarray(Image.open(folder / "annotations/validation/ADE_val_00000003.png")).astype(int)
    assert (raw == 0).any()
    np.testing.assert_array_equal(labels, np.where(raw == 0, 255, raw - 1))


def test_ade20k_names_are_the_first_of_the_official_list(shared_dir):
    with (shared_dir / "data/ade20k/objectInfo150.csv").open() as file:
        rows = [row["Name"] for row in csv.DictReader(file)]
    assert len(ADE20K.class_names) == len(set(ADE20K.class_names)) == 150
    for name, row in zip(ADE20K.class_names, rows, strict=True):
        # The file puts the words of a name apart like names.
        assert f"{row};".startswith(name.replace(" ", ";") + ";")


def test_ade20k_value_that_was_lowered_already_is_an_error(tmp_path):
    for split in ("training", "validation"):
        save(image(), tmp_path / "images" / split / "a.jpg")
        save(annotation(values=(0, 150)), tmp_path / "annotations" / split / "a.png")
    _, labels = read(load_segmentation_dataset("ade20k", tmp_path))
    assert set(np.unique(labels)) == {149, 255}
    save(annotation(values=(0, 255)), tmp_path / "annotations/training/a.png")
    with pytest.raises(ValueError, match=r"a\.png has the values \[255\]"):
        read(load_segmentation_dataset("ade20k", tmp_path))


def test_real_camvid_samples(shared_dir):
    data = load_segmentation_dataset(str(shared_dir / "data/camvid"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 367, "validation": 101}
    assert data.class_names[:3] == ["sky", "building", "pole"]
    assert (data.check("validation") > 0).all()
