# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Examples of a split: what is said of them before a run, what they depend on, and what becomes of unusable ones."""

import random
import re
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling_mtaclip.data import (
    Augmentation,
    SegmentationExamples,
    SegmentationStream,
    TrainingCollator,
    load_segmentation_dataset,
)
from tests.data.conftest import SIZE, label_map, write


VOID = np.full(SIZE, 255, np.uint8)
TRAIN, VAL = ([f"{split}/{index}.png" for index in range(number)] for split, number in (("train", 6), ("val", 5)))


def check(folder: Path, split: str = "train", how: str = "sample", streaming: bool = False, **limits) -> np.ndarray:
    return load_segmentation_dataset(str(folder), streaming=streaming).check(split, how, **limits)


def damage(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).write_bytes(b"damaged")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("maps", "split", "message"),
    [
        ([label_map(values=(0, 255))], "train", r"train split hold only the values 0 and 255.*0\.png.*'sky'.*= 1"),
        ([label_map(values=(0, 255))], "val", r"validation split hold only the values 0 and 255.*0\.png.*'sky'.*= 1"),
        ([VOID, VOID], "train", r"No pixel of 2 examples of the train split is labeled.*0\.png.*\[255\]"),
    ],
)
def test_labels_that_can_only_be_a_mistake_are_refused(tmp_path, caplog, maps, split, message, streaming):
    folder, split = write(tmp_path, *maps, split=split), split.replace("val", "validation")
    for how in ("sample", "full"):
        with pytest.raises(ValueError, match=message):
            check(folder, split, how, streaming)
    assert check(folder, split, "none", streaming).sum() == 0
    assert re.search(message, caplog.text)


@pytest.mark.parametrize("how", ["none", "sample", "full"])
@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ([label_map(values=(0, 2, 255))], ["Classes that don't occur in 1 examples of the train split: 1, sky."]),
        (
            [label_map(values=(1, 255))],
            ["Every labeled pixel of 1 examples of the train split is 'sky'", "road, tree."],
        ),
        (
            [VOID, label_map()],
            ["Without any labeled pixel, adding nothing in 2 examples of the train split: 1, ", "train/0.png."],
        ),
    ],
)
def test_labels_that_may_be_a_mistake_are_warned_of(tmp_path, caplog, maps, expected, how):
    check(write(tmp_path, *maps), how=how)
    assert all(part in caplog.text.replace("\\", "/") for part in expected)


def redrawn(change: Callable[[Image.Image], Image.Image]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = Image.open(path)
        image.load()
        change(image).save(path)

    return write


UNREADABLE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "text": lambda path: path.write_text("no image"),
    "missing": Path.unlink,
}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        *((f"{kind}/train/1.png", change, "") for kind in ("images", "annotations") for change in UNREADABLE.values()),
        ("", redrawn(lambda image: image.convert("RGB")), "has the mode 'RGB'"),
        ("", redrawn(lambda image: image.rotate(90, expand=True)), "24 x 32, but its image, .* 32 x 24. Mend or turn"),
        ("", redrawn(lambda image: image.resize((12, 8))), "12 x 8, but its image, .* 32 x 24"),
        (
            "",
            redrawn(lambda image: Image.effect_noise(image.size, 90)),
            "different values it looks like a gray picture",
        ),
        (
            "",
            redrawn(lambda image: image.point(lambda value: 17 if value else 0)),
            r"values \[17\].* 3 classes.* 0 to 2",
        ),
        ("", redrawn(lambda image: Image.new("I;16", image.size, 40_000)), r"has the values \[40000\]"),
        ("", lambda path: Image.new("I", SIZE[::-1], 70_000).save(path, "TIFF"), r"has the values \[70000\]"),
    ],
)
def test_files_that_cannot_be_used_are_named(folder, file, change, message):
    file = file or "annotations/val/1.png"
    data, split = load_segmentation_dataset(str(folder)), "train" if "train" in file else "validation"
    change(folder / file)
    message = rf"{file}.*{message or 'can.t be read'}"
    with pytest.raises(ValueError, match=message):
        SegmentationExamples(data, split)[1]
    with pytest.raises(ValueError, match=rf"(?s)1 unusable.*{message}"):
        data.check(split)


def test_every_bad_file_is_named_and_pixels_of_the_others_are_counted(folder, caplog):
    expected = sum(np.bincount(label_map(index).ravel(), minlength=256)[:3] for index in range(6))
    for how, factor in (("full", 1), ("sample", 1), ("none", 0)):
        np.testing.assert_array_equal(check(folder, how=how), expected * factor)
    write(folder, *map(label_map, range(120)), split="val")
    damage(folder, "annotations/val/61.png", "images/val/62.png", "annotations/train/1.png")
    with pytest.raises(ValueError, match=r"(?s)2 unusable examples in the validation split.*61\.png.*62\.png"):
        check(folder, "validation")
    assert check(folder, "validation", max_samples=60).sum() > 60 * VOID.size / 2
    check(folder, max_bad_share=0.01)
    assert "1 unusable examples in the train split" in caplog.text
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"(?s)1 unusable examples in the train split.*train/1\.png") as caught:
            check(folder, how="full", streaming=streaming)
        assert "train/2" not in str(caught.value)
    with pytest.raises(ValueError, match=r"no extra split, only \['test', 'train', 'validation'\]"):
        check(folder, "extra")


def test_images_above_the_limit_of_pixels_can_be_allowed(folder):
    with pytest.raises(ValueError, match="more than the limit of 100"):
        load_segmentation_dataset(str(folder), max_pixels=100).check("train")
    assert load_segmentation_dataset(str(folder), max_pixels=None).check("train").sum() > 0


def examples_of(folder: Path, **options) -> SegmentationExamples:
    return SegmentationExamples(load_segmentation_dataset(str(folder)), "train", Augmentation((32, 32)), **options)


def stream_of(folder: Path, **options) -> SegmentationStream:
    data = load_segmentation_dataset(str(folder), streaming=True)
    return SegmentationStream(data, "train", Augmentation((32, 32)), **options)


def names_of(examples: Iterable[dict[str, Any]]) -> list[str]:
    return sorted(example["names"] for example in examples)


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    if first.keys() != second.keys() or first["names"] != second["names"]:
        return False
    return all(torch.equal(first[key], second[key]) for key in first if key != "names")


def test_examples_depend_on_seed_epoch_and_index_alone(folder):
    examples, others = examples_of(folder, seed=3), examples_of(folder, seed=3)
    state = torch.get_rng_state(), random.getstate()
    first = [examples[index] for index in range(6)]
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    torch.manual_seed(99)
    assert all(equal(others[index], first[index]) for index in reversed(range(6)))
    shapes = {name: (value.dtype, *value.shape) for name, value in first[0].items() if name != "names"}
    of_integers = {"labels": (torch.int64, 32, 32), "point_seeds": (torch.int64,)}
    assert shapes == {"pixel_values": (torch.float32, 3, 32, 32)} | of_integers
    others.set_epoch(1)
    assert not equal(others[0], first[0])
    others.set_epoch(0)
    assert equal(others[0], first[0])
    assert not equal(examples_of(folder, seed=4)[0], first[0])


def test_workers_change_nothing_and_learn_of_the_epoch(folder):
    examples, options = examples_of(folder), {"batch_size": 2, "collate_fn": TrainingCollator(3)}
    workers = DataLoader(examples, num_workers=2, persistent_workers=True, prefetch_factor=1, **options)
    seen = []
    for epoch in (0, 1):
        examples.set_epoch(epoch)
        batches = list(workers)
        assert all(equal(batch, other) for batch, other in zip(batches, DataLoader(examples, **options), strict=True))
        seen.append(batches[0]["pixel_values"])
    assert seen[0].shape == (2, 3, 32, 32)
    assert not torch.equal(*seen)


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0), (0.01, 1), (0.34, 2)])
def test_bad_files_are_replaced_and_counted(folder, share, allowed):
    examples = examples_of(folder, max_bad_share=share)
    damage(folder, *(f"images/{name}" for name in TRAIN[:allowed]))
    for index in range(allowed):
        replaced = examples[index]
        assert replaced["names"] in TRAIN[allowed:]
        assert equal(examples[index], replaced)
    assert examples.num_bad == allowed
    (folder / "annotations/train/3.png").unlink()
    message = rf"{allowed + 1} of 6 training examples can't be used, and {allowed} may be.*train/3\.png"
    with pytest.raises(RuntimeError, match=message):
        examples[3]


@pytest.mark.parametrize("make", [examples_of, stream_of])
def test_a_split_without_any_usable_file_ends_the_run(folder, make):
    damage(folder, *(f"images/{name}" for name in TRAIN))
    with pytest.raises(RuntimeError, match="6 of 6 training examples can't be used"):
        next(iter(make(folder, max_bad_share=1)))


def test_every_pass_over_a_stream_gives_every_example_once(folder):
    stream = stream_of(folder)
    alone = list(islice(stream, 18))
    for first in (0, 6, 12):
        assert names_of(alone[first : first + 6]) == TRAIN
    by_seed = {int(example["point_seeds"]): example for example in alone}
    assert len(by_seed) == 18
    # Two processes together read the same examples.
    shares = [example for rank in range(2) for example in islice(stream_of(folder, rank=rank, world_size=2), 3)]
    assert names_of(shares) == TRAIN
    assert all(equal(by_seed[int(example["point_seeds"])], example) for example in shares)
    few = stream_of(folder, max_samples=2)
    assert names_of(islice(few, 4)) == sorted(TRAIN[:2] * 2)
    for each, names in ((stream, TRAIN), (few, TRAIN[:2])):
        assert set(names_of(islice(DataLoader(each, batch_size=None, num_workers=2), 6))) == set(names)


def test_stream_leaves_out_bad_files(folder, monkeypatch):
    damage(folder, "images/train/2.png")
    stream = stream_of(folder)
    assert names_of(islice(stream, 10)) == sorted([*TRAIN[:2], *TRAIN[3:]] * 2)
    list(islice(DataLoader(stream, batch_size=None, num_workers=2), 10))
    assert stream.num_bad == 1
    damage(folder, "images/train/3.png")
    monkeypatch.setattr("modeling_mtaclip.data.examples.MIN_STREAM_LENGTH", 1)
    for share, number in ((0.01, 2), (0, 1)):
        with pytest.raises(RuntimeError, match=rf"{number} of \d training examples can't be used.*train/[23]\.png"):
            list(islice(stream_of(folder, max_bad_share=share), 10))


@pytest.mark.parametrize("max_samples", [None, 4])
@pytest.mark.parametrize(
    ("streaming", "num_workers", "world_size"),
    [(False, 0, 1), (False, 2, 1), (True, 0, 1), (True, 0, 2), (True, 2, 2)],
)
def test_evaluation_reads_each_example_once_and_counts_bad_ones(
    folder, max_samples, streaming, num_workers, world_size
):
    damage(folder, "images/val/1.png")
    data = load_segmentation_dataset(str(folder), streaming=streaming)
    names, num_bad = [], 0
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "max_samples": max_samples}
        examples = (SegmentationStream if streaming else SegmentationExamples)(data, "validation", **options)
        loader = DataLoader(examples, batch_size=2, num_workers=num_workers, collate_fn=list)
        names += [example["name"] for batch in loader for example in batch]
        num_bad += examples.num_bad
    assert (sorted(names), num_bad) == ([VAL[0], *VAL[2:max_samples]], 1)


def test_batches_know_the_classes_of_their_images():
    labels = torch.tensor([[[0, 2], [255, 2]], [[1, 1], [1, 255]]])
    examples = [{"labels": each, "names": "a"} for each in labels]
    batch = TrainingCollator(3)(examples)
    assert torch.equal(batch["labels"], labels)
    assert batch["image_classes"].tolist() == [[0, 2], [1, -1]]
    assert batch["names"] == ["a", "a"]
    with pytest.raises(ValueError, match="contain the values \\[2\\]"):
        TrainingCollator(2)(examples)
