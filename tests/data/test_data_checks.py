# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What is said of labels that look wrong before a run starts: refused or warned of, with the file and the mend."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_mtaclip.data import load_segmentation_dataset
from modeling_mtaclip.data.examples import logger as reading_logger
from modeling_mtaclip.data.loading import logger as loading_logger


@pytest.fixture(autouse=True)
def warnings(caplog):
    for logger in (loading_logger, reading_logger):
        logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        yield caplog
    for logger in (loading_logger, reading_logger):
        logger.removeHandler(caplog.handler)


def write(folder: Path, *maps: np.ndarray, classes: object = ("road", "sky"), split: str = "train") -> Path:
    """A folder with images of noise for these label maps."""
    for index, labels in enumerate(maps):
        for kind, pixels in (
            ("images", np.random.default_rng(index).integers(0, 256, (*labels.shape, 3))),
            ("annotations", labels),
        ):
            path = folder / kind / split / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(labels.dtype if kind == "annotations" else np.uint8)).save(path)
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def maps(*values: int, number: int = 2, dtype: type = np.uint8) -> list[np.ndarray]:
    return [np.random.default_rng(index).choice(np.array(values, dtype), (16, 24)) for index in range(number)]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("streaming", [False, True])
def test_binary_masks_of_0_and_255_are_refused(tmp_path, warnings, split, streaming):
    folder = write(tmp_path, *maps(0, 255), split=split.replace("validation", "val"))
    data = load_segmentation_dataset(str(folder), streaming=streaming)
    for how in ("sample", "full"):
        with pytest.raises(
            ValueError, match=rf"(?s)the {split} split hold only the values 0 and 255.*0\.png.*'sky'.*= 1"
        ):
            data.check(split, how)
    data.check(split, "none")
    assert "only the values 0 and 255" in warnings.text


def test_masks_without_any_label_are_refused_and_some_are_named(tmp_path, warnings):
    empty = np.full((16, 24), 255, np.uint8)
    data = load_segmentation_dataset(str(write(tmp_path, empty, empty)))
    with pytest.raises(ValueError, match=r"No pixel of the train split is labeled.*0\.png.*\[255\]"):
        data.check("train")
    write(tmp_path, empty, *maps(0, 1))
    load_segmentation_dataset(str(tmp_path)).check("train")
    assert "1 files of the train split have no labeled pixel" in warnings.text
    assert "annotations/train/0.png" in warnings.text.replace("\\", "/")


def test_classes_that_never_occur_are_named(tmp_path, warnings):
    data = load_segmentation_dataset(str(write(tmp_path, *maps(0, 2, 255), classes=["road", "sky", "tree"])))
    for how in ("none", "sample", "full"):
        warnings.clear()
        data.check("train", how)
        assert "Classes that don't occur in the train split: sky." in warnings.text
    write(tmp_path, *maps(1, 255), classes=["road", "sky", "tree"])
    load_segmentation_dataset(str(tmp_path)).check("train")
    assert "Every labeled pixel of the train split is 'sky'" in warnings.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.convert("RGB"), "has the mode 'RGB'"),
        (
            lambda image: image.transpose(Image.Transpose.ROTATE_90),
            "16 x 24, but its image 24 x 16.*turn the annotation",
        ),
        (lambda image: image.resize((12, 8)), "12 x 8, but its image 24 x 16"),
        (lambda image: Image.effect_noise(image.size, 90), "different values it looks like a gray picture"),
        (lambda image: image.point(lambda value: value * 127), "has the values .127"),
    ],
)
def test_annotations_that_cannot_be_label_maps_are_named(tmp_path, change, message):
    data = load_segmentation_dataset(str(write(tmp_path, *maps(0, 1, number=3), split="val")))
    path = tmp_path / "annotations/val/1.png"
    change(Image.open(path)).save(path)
    with pytest.raises(ValueError, match=rf"(?s)1 unusable.*val.1\.png.*{message}"):
        data.check("validation")


def test_every_validation_file_is_checked_and_the_training_split_may_have_a_bad_one(tmp_path, warnings):
    folder = write(tmp_path, *maps(0, 1, number=120), split="val")
    write(tmp_path, *maps(0, 1, number=3))
    for path in ("annotations/val/61.png", "images/val/62.png", "annotations/train/1.png"):
        (folder / path).write_bytes(b"damaged")
    data = load_segmentation_dataset(str(folder))
    with pytest.raises(ValueError, match=r"(?s)2 unusable examples in the validation split.*61\.png.*62\.png"):
        data.check("validation")
    assert data.check("validation", max_samples=60).sum() == 60 * 16 * 24
    assert data.check("train", max_bad_share=0.01).sum() == 2 * 16 * 24
    assert "1 unusable examples in the train split" in warnings.text
    with pytest.raises(ValueError, match="1 unusable examples in the train split"):
        data.check("train")


def test_reduced_labels_make_0_void_and_1_the_first_class(tmp_path):
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    folder = write(tmp_path, labels, labels)
    data = load_segmentation_dataset(str(folder), do_reduce_labels=True)
    assert data.read(data.splits["train"][0])[1].tolist() == [[255, 0, 1, 255]]
    with pytest.raises(ValueError, match=r"has the values \[2\], but the data set has 2 classes"):
        load_segmentation_dataset(str(folder)).check("train")
    write(tmp_path, labels + 1)
    with pytest.raises(ValueError, match=r"has the values \[3\].*from 1 to 2, or \[0, 255\]"):
        load_segmentation_dataset(str(folder), do_reduce_labels=True).check("train")
    with pytest.raises(ValueError, match="`do_reduce_labels` is for other data than Synthetic scenes"):
        load_segmentation_dataset("scenes", do_reduce_labels=True)


@pytest.mark.parametrize("ignore_index", [300, 65_535])
def test_label_ids_of_16_bits_are_exact(tmp_path, ignore_index):
    classes = {"id2label": {index: f"class {index}" for index in range(255)}, "ignore_index": ignore_index}
    labels = maps(0, 7, 254, ignore_index, dtype=np.uint16)
    data = load_segmentation_dataset(str(write(tmp_path, *labels, classes=classes)))
    read = data.read(data.splits["train"][0])[1]
    np.testing.assert_array_equal(read, np.where(labels[0] == ignore_index, 255, labels[0]))
    assert data.check("train")[[0, 7, 254]].tolist() == [
        sum((each == value).sum() for each in labels) for value in (0, 7, 254)
    ]
    # 256 above a class is no class.
    write(tmp_path, *maps(0, 256, dtype=np.uint16), classes=classes)
    with pytest.raises(ValueError, match=r"has the values \[256\]"):
        load_segmentation_dataset(str(tmp_path)).check("train")


def test_one_file_of_a_folder_is_found_whatever_its_suffix_and_copies_are_refused(tmp_path, warnings):
    folder = write(tmp_path, *maps(0, 1, number=3))
    (folder / "annotations/train/0.png").rename(folder / "annotations/train/0.PNG")
    (folder / "images/train/1.png").rename(folder / "images/train/1")
    Image.open(folder / "annotations/train/2.png").convert("RGB").save(folder / "annotations/train/2.jpg")
    for name in (".ipynb_checkpoints/0.png", "nested/.9.png", "notes.txt"):
        path = folder / "images/train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((folder / "images/train/0.png").read_bytes() if path.suffix == ".png" else b"-")
    data = load_segmentation_dataset(str(folder))
    assert data.splits["train"]["name"][:] == ["train/0.png", "train/1", "train/2.png"]
    assert "images/train: 2 hidden, 1 not an image." in warnings.text.replace("\\", "/")
    assert data.check("train", "full").sum() == 3 * 16 * 24
    Image.open(folder / "images/train/0.png").save(folder / "images/train/0.bmp")
    with pytest.raises(ValueError, match=r"one name; rename.*\n- .*0\.bmp and .*0\.png"):
        load_segmentation_dataset(str(folder))


def test_images_above_the_limit_of_pixels_can_be_allowed(tmp_path):
    folder = write(tmp_path, *maps(0, 1))
    with pytest.raises(ValueError, match="more than the limit of 100"):
        load_segmentation_dataset(str(folder), max_pixels=100).check("train")
    assert load_segmentation_dataset(str(folder), max_pixels=None).check("train").sum() == 2 * 16 * 24


def test_validation_images_may_be_split_off(tmp_path):
    folder = write(tmp_path, *maps(0, 1, number=10))
    with pytest.raises(ValueError, match=r"no validation split.*`train_val_split`"):
        load_segmentation_dataset(str(folder)).split("validation")
    first, again = (load_segmentation_dataset(str(folder), train_val_split=0.2).splits for _ in range(2))
    assert {split: len(each) for split, each in first.items()} == {"train": 8, "validation": 2}
    assert first["validation"]["name"][:] == again["validation"]["name"][:]
    assert not set(first["validation"]["name"][:]) & set(first["train"]["name"][:])
    with pytest.raises(ValueError, match="`train_val_split` must be between 0 and 1"):
        load_segmentation_dataset(str(folder), train_val_split=1.5)
