# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets from real samples and from trees drawn here: splits, label ids, and every kind of bad input."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from modeling_mtaclip.data import DATASETS, catalog, load_segmentation_dataset, open_image, palette_of
from modeling_mtaclip.data.catalog import read_dataset_info
from tests.data.conftest import NAMES, label_map, save, write


ADE20K, CITYSCAPES = DATASETS["ade20k"], DATASETS["cityscapes"]
CITYSCAPES_IDS = {value: label for label, value in enumerate(CITYSCAPES.values)}


def read(data, split: str = "train") -> np.ndarray:
    return data.read(data.splits[split][0])[1]


def save_json(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_folder_has_lazy_splits_of_paths_whose_fingerprint_is_that_of_the_list_of_files(folder):
    data, again = load_segmentation_dataset(str(folder)), load_segmentation_dataset(str(folder))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "validation": 5, "test": 2}
    assert (data.class_names, len(set(data.palette))) == (NAMES, len(NAMES))
    for split in data.splits:
        assert data.splits[split].column_names == ["image", "annotation", "name"]
        assert again.splits[split]._fingerprint == data.splits[split]._fingerprint
        paths = sorted(map(str, (folder / "images").glob(f"{split[:3]}*/*")))
        assert data.splits[split]["image"][:] == [{"bytes": None, "path": path} for path in paths]
    write(folder, *map(label_map, range(7)))
    more = load_segmentation_dataset(str(folder)).splits
    assert more["train"]._fingerprint != data.splits["train"]._fingerprint
    assert more["validation"]._fingerprint == data.splits["validation"]._fingerprint


@pytest.mark.parametrize("streaming", [False, True])
def test_examples_are_as_in_the_files(folder, streaming):
    data = load_segmentation_dataset(str(folder), streaming=streaming)
    for index, example in enumerate(data.splits["validation"]):
        image, labels = data.read(example)
        np.testing.assert_array_equal(image, Image.open(folder / f"images/val/{index}.png"))
        np.testing.assert_array_equal(labels, label_map(index))
        assert (image.mode, labels.dtype, example["name"]) == ("RGB", np.int64, f"val/{index}.png")
    assert index == 4
    example = next(iter(data.splits["test"]))
    assert open_image(example["image"]).size == (32, 24)
    with pytest.raises(ValueError, match=r"test/0\.png has no annotation"):
        data.read(example)


MANY = {index: f"class {index}" for index in range(255)}
REDUCED = {"do_reduce_labels": True}


@pytest.mark.parametrize(
    ("classes", "options", "values", "expected"),
    [
        (NAMES, {}, [0, 1, 2, 255], [0, 1, 2, 255]),
        (dict(enumerate(NAMES)), {}, [0, 1, 2, 255], [0, 1, 2, 255]),
        ({"id2label": {"2": "tree", "0": "road", "1": "sky"}, "ignore_index": 11}, {}, [2, 255, 11], [2, 255, 255]),
        (NAMES, REDUCED, [0, 1, 2, 3, 255], [255, 0, 1, 2, 255]),
        ({"id2label": MANY, "ignore_index": 300}, {}, [0, 7, 254, 300], [0, 7, 254, 255]),
        ({"id2label": MANY, "ignore_index": 65_535}, {}, [0, 7, 254, 65_535], [0, 7, 254, 255]),
        (NAMES, {}, [0, 3], r"has the values \[3\], but the data set has 3 classes"),
        (NAMES, REDUCED, [0, 4], r"has the values \[4\].*from 1 to 3, or \[0, 255\]"),
        # 256 above a class is no class.
        (NAMES, {}, [0, 256], r"has the values \[256\]"),
    ],
)
def test_values_become_label_ids(tmp_path, classes, options, values, expected):
    labels = label_map(0, values, np.uint16 if max(values) > 255 else np.uint8)
    data = load_segmentation_dataset(str(write(tmp_path, labels, classes=classes)), **options)
    if isinstance(expected, str):
        for reader in (read, lambda data: data.check("train")):
            with pytest.raises(ValueError, match=expected):
                reader(data)
        return
    assert data.class_names == (NAMES if len(data.class_names) == 3 else [*MANY.values()])
    for value, label in zip(values, expected, strict=True):
        assert (read(data)[labels == value] == label).all()
        assert label == 255 or data.check("train")[label] == (labels == value).sum()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "JSONDecodeError"),
        ([], "names no classes"),
        (3, "names no classes"),
        (["road", 4], "names no classes"),
        (["road", "sky", "road"], r"same name: \['road'\]"),
        ({"0": "road", "2": "sky"}, r"label ids 0 … 1, got \['0', '2'\]"),
        ({"a": "road"}, "label ids 0 … 0"),
        ({"id2label": {"0": "road"}, "ignore_index": 0}, "that is no class, got 0"),
        ({"id2label": {"0": "road"}, "ignore_index": -1}, "in 0 … 65535 that is no class, got -1"),
        ([f"class {index}" for index in range(256)], "256 classes: at most 255"),
    ],
)
def test_wrong_class_names_are_errors(folder, content, message):
    save_json(folder / "classes.json", content)
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(str(folder))


def test_files_without_partner_are_named(folder, caplog):
    save(label_map(), folder / "annotations/train/9.png")
    load_segmentation_dataset(str(folder))
    assert "1 annotations have no image and are not used" in caplog.text
    for index in range(30):
        save(Image.new("RGB", (4, 4)), folder / f"images/train/bad{index}.png")
    with pytest.raises(ValueError, match="30 of 36 images have no annotation") as caught:
        load_segmentation_dataset(str(folder))
    assert all(f"images/train/bad{index}.png (expected" in str(caught.value) for index in range(30))
    for path in (folder / "images/val").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"images/val has no images"):
        load_segmentation_dataset(str(folder))
    (folder / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"classes\.json is missing"):
        load_segmentation_dataset(str(folder))


def test_one_file_of_a_folder_is_found_whatever_its_suffix_and_copies_are_refused(folder, caplog):
    (folder / "annotations/train/0.png").rename(folder / "annotations/train/0.PNG")
    (folder / "images/train/1.png").rename(folder / "images/train/1")
    Image.open(folder / "images/train/2.png").save(folder / "annotations/train/2.jpg")
    for name in (".ipynb_checkpoints/0.png", "nested/.9.png"):
        save(Image.new("RGB", (4, 4)), folder / "images/train" / name)
    (folder / "images/train/notes.txt").write_text("-")
    data = load_segmentation_dataset(str(folder))
    assert data.splits["train"]["name"][:3] == ["train/0.png", "train/1", "train/2.png"]
    assert "images/train: 2 hidden, 1 not an image." in caplog.text.replace("\\", "/")
    assert data.check("train", "full").sum() == sum((label_map(index) < 3).sum() for index in range(6))
    Image.open(folder / "images/train/0.png").save(folder / "images/train/0.bmp")
    with pytest.raises(ValueError, match=r"one name; rename.*\n- .*0\.bmp and .*0\.png"):
        load_segmentation_dataset(str(folder))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("ade200k", {}, r"Unknown data set 'ade200k': expected 'ade20k', 'cityscapes', 'scenes'"),
        ("ade20k", {}, r"ADE20K .*needs the folder of its files in `data_dir`, got None"),
        ("nobody/nothing", {}, "could not be loaded"),
        (str(Path(__file__).parent), {}, r"could not be loaded: expected images/\{train,val\}"),
        ("scenes", {"do_reduce_labels": True}, "`do_reduce_labels` is for other data than Synthetic scenes"),
    ],
)
def test_unknown_data_sets_and_options_are_errors(source, options, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(source, **options)


def test_validation_images_may_be_split_off(tmp_path):
    write(tmp_path, *map(label_map, range(10)))
    with pytest.raises(ValueError, match=r"no validation split, only \['train'\].*`train_val_split`"):
        load_segmentation_dataset(str(tmp_path)).split("validation")
    first, again = (load_segmentation_dataset(str(tmp_path), train_val_split=0.2).splits for _ in range(2))
    assert (len(first["train"]), len(first["validation"])) == (8, 2)
    assert first["validation"]["name"][:] == again["validation"]["name"][:]
    assert not set(first["validation"]["name"][:]) & set(first["train"]["name"][:])
    with pytest.raises(ValueError, match="`train_val_split` must be between 0 and 1"):
        load_segmentation_dataset(str(tmp_path), train_val_split=1.5)


def columns_of(folder: Path, image: str = "image", annotation: str = "label", category: str = "scene_category"):
    """Three training examples of a folder, with a column of class ids besides."""
    columns = {
        image: [str(folder / f"images/train/{index}.png") for index in range(3)],
        annotation: [str(folder / f"annotations/train/{index}.png") for index in range(3)],
        category: [0, 1, 0],
    }
    features = {image: datasets.Image(), annotation: datasets.Image()}
    features[category] = datasets.ClassLabel(names=["street", "park"])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def require_train_examples(data):
    for index, example in enumerate(data.splits["train"]):
        assert example["name"] == f"train {index}"
        np.testing.assert_array_equal(data.read(example)[1], label_map(index))
    assert index == 2


@pytest.mark.parametrize(
    ("kind", "columns", "named"),
    [
        ("dict", ("photo", "labels_of_pixels"), True),
        # Class ids are no annotations, whatever their column is called.
        ("single", ("image", "mask", "label"), False),
        ("parquet", ("label", "image"), True),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_saved_data_sets_are_loaded(folder, tmp_path, monkeypatch, kind, columns, named, streaming):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    saved, source = tmp_path / "saved", columns_of(folder, *columns)
    if kind == "dict":
        datasets.DatasetDict({"train": source, "validation": source.select([1])}).save_to_disk(saved)
    elif kind == "single":
        source.save_to_disk(saved)
    else:
        saved.mkdir()
        source.to_parquet(saved / "train-00000-of-00001.parquet")
        source.select([1]).to_parquet(saved / "validation-00000-of-00001.parquet")
    save_json(saved / "classes.json", NAMES)
    data = load_segmentation_dataset(str(saved), None, *(columns if named else (None, None)), streaming)
    assert list(data.splits) == (["train"] if kind == "single" else ["train", "validation"])
    require_train_examples(data)
    assert data.check("train", "full").sum() > 0


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_of_the_hub_are_loaded_with_their_options(folder, monkeypatch, streaming):
    options = {"revision": "v2", "token": "secret", "cache_dir": "cache"}
    train = columns_of(folder)
    loaded = datasets.DatasetDict({"train": train})
    if streaming:
        loaded = datasets.IterableDatasetDict({"train": train.to_iterable_dataset()})

    def load(path: str, name: str, streaming: bool, **given: str):
        assert (path, name, given) == ("city/streets", "small", options)
        return loaded

    def download(repository: str, name: str, repo_type: str, **given: str) -> str:
        assert (repository, repo_type, given) == ("city/streets", "dataset", options)
        if name != "id2label.json":
            raise LocalEntryNotFoundError(f"there is no {name}")
        return str(save_json(folder / name, dict(enumerate(NAMES))))

    monkeypatch.setattr("modeling_mtaclip.data.loading.load_dataset", load)
    monkeypatch.setattr("modeling_mtaclip.data.loading.hf_hub_download", download)
    data = load_segmentation_dataset("city/streets", streaming=streaming, dataset_config_name="small", **options)
    assert (type(data.splits), list(data.splits), data.class_names) == (type(loaded), ["train"], NAMES)
    require_train_examples(data)


@pytest.mark.parametrize(
    ("annotation", "options", "message"),
    [
        ("label", {}, "does not name its classes"),
        ("z", {}, r"Which of .*'z'.* is the annotation\? .*`annotation_column_name`"),
        ("label", {"image_column_name": "photo"}, "no image column 'photo', only"),
        ("label", {"annotation_column_name": "image"}, "'image' can't be the column of images and of annotations"),
        ("mask", {"annotation_column_name": "scene_category"}, r"'scene_category', only \['image', 'mask'\]"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(folder, tmp_path, annotation, options, message):
    columns_of(folder, "image", annotation).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(str(tmp_path / "saved"), **options)


IDS = np.arange(34, dtype=np.uint8).repeat(2).reshape(4, 17)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for split, city in (("train", "a"), ("val", "b"), ("test", "c"), ("train_extra", "d")):
        stem = f"{city}_000000_000019"
        save(Image.new("RGB", (17, 4)), tmp_path / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
        kind = "gtCoarse" if split == "train_extra" else "gtFine"
        if split != "test":
            save(IDS, tmp_path / f"{kind}/{split}/{city}/{stem}_{kind}_labelIds.png")
    return tmp_path


def test_cityscapes_label_ids_become_train_ids_unless_all_files_have_them(cityscapes):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="needs cityscapesscripts").id2label
    train_ids = np.vectorize(lambda value: labels[value].trainId)(IDS)
    inverse = np.where(train_ids == 255, 255, 18 - train_ids).astype(np.uint8)
    data = load_segmentation_dataset("cityscapes", cityscapes)
    assert list(data.splits) == ["train", "validation", "test", "train_extra"]
    assert data.splits["test"][0]["annotation"] is None
    for split in ("train", "validation", "train_extra"):
        np.testing.assert_array_equal(read(data, split), train_ids)
    for path in list(cityscapes.rglob("*_labelIds.png")):
        np.testing.assert_array_equal(read(load_segmentation_dataset("cityscapes", cityscapes)), train_ids)
        save(inverse, path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    np.testing.assert_array_equal(read(load_segmentation_dataset("cityscapes", cityscapes)), inverse)


def test_cityscapes_facts_are_the_official_ones():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="needs cityscapesscripts").labels
    evaluated = sorted((label for label in labels if label.trainId not in (255, -1)), key=lambda label: label.trainId)
    for ours, key in ((CITYSCAPES.class_names, "name"), (CITYSCAPES.palette, "color"), (CITYSCAPES.values, "id")):
        assert ours == tuple(getattr(label, key) for label in evaluated)
    assert CITYSCAPES.categories == tuple(label.category for label in evaluated)
    assert CITYSCAPES.ignored_values == {label.id for label in labels if label.id >= 0} - CITYSCAPES_IDS.keys()


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
    known = Path(catalog.__file__).parent / "known"
    assert {path.stem for path in known.iterdir()} == DATASETS.keys()
    assert all(info.license and info.download and info.source for info in DATASETS.values())
    monkeypatch.setitem(DATASETS, "two", read_dataset_info(save_json(tmp_path / "two.json", facts)))
    data = load_segmentation_dataset("two", cityscapes)
    assert (data.class_names, list(data.splits)) == (["sidewalk", "road"], ["train"])
    assert data.palette == palette_of(["sidewalk", "road"]) == [(1, 2, 3), (4, 5, 6)]
    np.testing.assert_array_equal(read(data), np.select([IDS == 8, IDS == 7], [0, 1], 255))
    save(np.full((4, 17), 34, np.uint8), next((cityscapes / "gtFine/train").rglob("*_labelIds.png")))
    with pytest.raises(ValueError, match=r"a_000000_000019_gtFine_labelIds\.png has the values \[34\]"):
        read(data)


@pytest.mark.parametrize(
    ("name", "sizes", "file", "id_of"),
    [
        ("cityscapes", [4, 2], "gtFine/val/*/*000004_000019_gtFine_labelIds.png", CITYSCAPES_IDS),
        ("ade20k", [2, 1], "annotations/validation/ADE_val_00000003.png", {value + 1: value for value in range(150)}),
    ],
)
def test_values_of_real_samples_become_label_ids(shared_dir, name, sizes, file, id_of):
    folder = shared_dir / "data" / name / ("ADEChallengeData2016" if name == "ade20k" else "")
    data = load_segmentation_dataset(name, folder)
    assert [len(data.splits[split]) for split in ("train", "validation")] == sizes
    (path,) = folder.glob(file)
    raw, labels = np.asarray(Image.open(path)), read(data, "validation")
    for value in np.unique(raw):
        assert set(np.unique(labels[raw == value])) == {id_of.get(int(value), 255)}


def test_ade20k_names_are_the_first_of_the_official_list_and_lowered_values_are_errors(shared_dir, tmp_path):
    with (shared_dir / "data/ade20k/objectInfo150.csv").open() as file:
        rows = [row["Name"] for row in csv.DictReader(file)]
    assert len(ADE20K.class_names) == len(set(ADE20K.class_names)) == 150
    for name, row in zip(ADE20K.class_names, rows, strict=True):
        # The file puts the words of a name apart like names.
        assert f"{row};".startswith(name.replace(" ", ";") + ";")
    write(tmp_path, label_map(values=(0, 150)), split="training")
    assert set(np.unique(read(load_segmentation_dataset("ade20k", tmp_path)))) == {149, 255}
    write(tmp_path, label_map(values=(0, 255)), split="training")
    with pytest.raises(ValueError, match=r"0\.png has the values \[255\]"):
        read(load_segmentation_dataset("ade20k", tmp_path))


def test_real_camvid_samples(shared_dir):
    data = load_segmentation_dataset(str(shared_dir / "data/camvid"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 367, "validation": 101}
    assert data.class_names[:3] == ["sky", "building", "pole"]
    assert (data.check("validation") > 0).all()
