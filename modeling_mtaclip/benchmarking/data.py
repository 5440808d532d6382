# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading and augmenting training examples, beside a plain pipeline of torchvision's transforms."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data import Augmentation, TrainingExamples, load_segmentation_dataset
from .measuring import alternate, make_row
from .settings import Settings


# Height and width of most images of ADE20K.
IMAGE_SIZE = (512, 683)
NUM_IMAGES, SMALL_NUM_IMAGES = 96, 4
SHORTEST_EDGE = 512


class PlainExamples(Dataset):
    """Scaling, cropping, mirroring, distortion and normalisation by torchvision's own transforms.

    Args:
        folder (`Path`): with `images/train` and `annotations/train`.
        crop_size (`int`): side of the crops.
    """

    def __init__(self, folder: Path, crop_size: int) -> None:
        self.images = sorted((folder / "images" / "train").iterdir())
        self.annotations = sorted((folder / "annotations" / "train").iterdir())
        self.transform = v2.Compose(
            [
                v2.RandomResize(SHORTEST_EDGE // 2, SHORTEST_EDGE * 2),
                v2.RandomCrop(
                    crop_size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255, "others": 0}
                ),
                v2.RandomHorizontalFlip(),
                v2.RandomPhotometricDistort(),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = tv_tensors.Image(Image.open(self.images[index]).convert("RGB"))
        mask = tv_tensors.Mask(torch.from_numpy(np.asarray(Image.open(self.annotations[index])).copy())[None])
        pixels, labels = self.transform(image, mask)
        return {"pixel_values": pixels.as_subclass(Tensor), "labels": labels.as_subclass(Tensor)[0]}


def write_images(folder: Path, settings: Settings) -> None:
    """Draws images and label maps, as files of a data set."""
    generator = np.random.default_rng(settings.seed)
    for kind in ("images", "annotations"):
        for split in ("train", "val"):
            (folder / kind / split).mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps([f"class {index}" for index in range(settings.classes)]))
    count = SMALL_NUM_IMAGES if settings.small else NUM_IMAGES
    for split, number in (("train", count), ("val", 1)):
        for index in range(number):
            image, labels = _draw(generator, settings.classes)
            image.save(folder / "images" / split / f"{index:04}.jpg", quality=90)
            labels.save(folder / "annotations" / split / f"{index:04}.png")


def _draw(generator: np.random.Generator, num_classes: int) -> tuple[Image.Image, Image.Image]:
    width_first = IMAGE_SIZE[::-1]
    coarse = generator.integers(0, 256, (32, 43, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(width_first, Image.BICUBIC)).astype(np.float32)
    image = (smooth + generator.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    cells = generator.integers(0, min(num_classes, 255), (8, 11), dtype=np.uint8)
    return Image.fromarray(image), Image.fromarray(cells).resize(width_first, Image.NEAREST)


def compare_pipelines(settings: Settings) -> list[dict[str, Any]]:
    """The row of the case `data`: seconds and images per second, with workers that run already."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, settings)
        data = load_segmentation_dataset(str(folder))
        augmentation = Augmentation(
            (settings.size, settings.size), {"shortest_edge": SHORTEST_EDGE, "longest_edge": 4 * SHORTEST_EDGE}
        )
        examples = {
            "ours": TrainingExamples(data, "train", augmentation, seed=settings.seed),
            "peer": PlainExamples(folder, settings.size),
        }
        loaders = {
            side: DataLoader(
                dataset,
                settings.batch,
                shuffle=True,
                num_workers=settings.workers,
                persistent_workers=settings.workers > 0,
            )
            for side, dataset in examples.items()
        }
        seconds = alternate({side: _read_all(loader) for side, loader in loaders.items()}, settings)
    per_image = {side: [run / len(examples[side]) for run in runs] for side, runs in seconds.items()}
    row = make_row("data", "time", "s/image", per_image)
    return [row | {f"{side}_images_per_second": 1 / row[side] for side in examples}]


def _read_all(loader: DataLoader) -> Callable[[Settings], Callable[[], Any]]:
    def read() -> int:
        return sum(len(batch["labels"]) for batch in loader)

    return lambda _: read


__all__ = ["PlainExamples", "compare_pipelines", "write_images"]
