#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures how fast training examples are prepared and predictions are scored, in one process with one thread.

python scripts/benchmark_data.py [config.yaml] [--option value ...]

The options are those of run_seg.py; they choose the data set and the augmentation. Each part is compared with the
plain way: all of mmsegmentation's steps one after the other on the whole image, and the algorithm of `evaluate`'s mean
IoU as a metric of `evaluate`, which keeps all label maps. Times are those of the processor, so that other programs
hardly disturb them.
"""

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields

import datasets
import evaluate
import numpy as np
import torch
from PIL import Image

from modeling_mtaclip.data import Augmentation, SegmentationData, TrainingExamples, load_segmentation_dataset
from modeling_mtaclip.metrics import MeanIoU
from modeling_mtaclip.training import parse_run_arguments


NUM_IMAGES = 40
NUM_MAPS, MAP_SIZE, NUM_LABELS = 200, 512, 150


def main(arguments: Sequence[str]) -> None:
    """Measures and prints.

    Args:
        arguments (`Sequence[str]`): of the command line, without the program's name.

    Raises:
        ValueError: options or data that can't be used.
    """
    torch.set_num_threads(1)
    _, data_arguments, _ = parse_run_arguments(arguments)
    data = load_segmentation_dataset(
        data_arguments.dataset_name,
        data_arguments.data_dir,
        data_arguments.image_column_name,
        data_arguments.annotation_column_name,
    )
    names = {field.name for field in fields(Augmentation)}
    options = {name: getattr(data_arguments, name) for name in names if hasattr(data_arguments, name)}
    report_examples(data, Augmentation(**options))
    report_metric()


def report_examples(data: SegmentationData, augmentation: Augmentation) -> None:
    """Prints how many training examples one worker prepares in a second, here and in the plain way."""
    examples = TrainingExamples(data, "train", augmentation)
    indices = [index % len(examples) for index in range(NUM_IMAGES)]
    files = [examples.dataset[index] for index in indices]
    reading = seconds(lambda: [data.read(example) for example in files])
    ours = seconds(lambda: [examples[index] for index in indices])
    decoded = [data.read(example) for example in files]
    generator = random.Random(0)
    plain = reading + seconds(lambda: [plain_augmentation(*pair, augmentation, generator) for pair in decoded])
    print(f"Training examples per second and worker: {NUM_IMAGES / ours:.1f}, plain {NUM_IMAGES / plain:.1f}")
    print(f"  of which reading the files takes {1000 * reading / NUM_IMAGES:.1f} ms per example")


def plain_augmentation(
    image: Image.Image, labels: np.ndarray, augmentation: Augmentation, generator: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """mmsegmentation's steps in its order: resize all, crop, flip, distort in float, normalise, pad."""
    fit = 1.0
    if augmentation.size is not None:
        fit = min(
            augmentation.size["shortest_edge"] / min(labels.shape),
            augmentation.size["longest_edge"] / max(labels.shape),
        )
    scale = fit * generator.uniform(*augmentation.scale_range)
    height, width = (round(length * scale) for length in labels.shape)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    resized = Image.fromarray(labels.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
    mask = np.asarray(resized).astype(np.int64)
    crop_height, crop_width = (min(pair) for pair in zip(augmentation.crop_size, mask.shape, strict=True))
    for _ in range(11):
        top, left = generator.randint(0, height - crop_height), generator.randint(0, width - crop_width)
        crop = mask[top : top + crop_height, left : left + crop_width]
        values, counts = np.unique(crop, return_counts=True)
        counts = counts[values != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < augmentation.cat_max_ratio:
            break
    pixels, mask = pixels[top : top + crop_height, left : left + crop_width], crop
    if generator.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    if augmentation.photometric_distortion:
        pixels = plain_distortion(pixels, generator)
    pixels = (pixels.astype(np.float32) / 255 - augmentation.image_mean) / augmentation.image_std
    padding = [(0, whole - part) for whole, part in zip(augmentation.crop_size, mask.shape, strict=True)]
    return np.pad(pixels.astype(np.float32), [*padding, (0, 0)]), np.pad(mask, padding, constant_values=255)


def plain_distortion(pixels: np.ndarray, generator: random.Random) -> np.ndarray:
    """mmsegmentation's distortion: each change goes from bytes to floats and back, or to HSV and back."""

    def convert(values: np.ndarray, factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)

    def change_hsv(values: np.ndarray, channel: int, change: Callable) -> np.ndarray:
        hsv = np.array(Image.fromarray(values).convert("HSV"))
        hsv[..., channel] = change(hsv[..., channel])
        return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))

    contrast_first = generator.random() < 0.5
    pixels = np.ascontiguousarray(pixels)
    if generator.random() < 0.5:
        pixels = convert(pixels, shift=generator.uniform(-32, 32))
    if contrast_first and generator.random() < 0.5:
        pixels = convert(pixels, generator.uniform(0.5, 1.5))
    if generator.random() < 0.5:
        pixels = change_hsv(pixels, 1, lambda values: convert(values, generator.uniform(0.5, 1.5)))
    if generator.random() < 0.5:
        pixels = change_hsv(pixels, 0, lambda values: (values.astype(int) + generator.randint(-25, 25)) % 256)
    if not contrast_first and generator.random() < 0.5:
        pixels = convert(pixels, generator.uniform(0.5, 1.5))
    return pixels


def report_metric() -> None:
    """Prints the time that mean IoU takes, here and by `evaluate`'s algorithm."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, NUM_LABELS, (2, NUM_MAPS, MAP_SIZE // 8, MAP_SIZE // 8), dtype=np.uint8)
    predictions, references = coarse.repeat(8, axis=2).repeat(8, axis=3).astype(np.int64)

    def ours() -> None:
        metric = MeanIoU(num_labels=NUM_LABELS)
        for prediction, reference in zip(predictions, references, strict=True):
            metric.add(prediction=prediction, reference=reference)
        metric.compute()

    def plain() -> None:
        metric = PlainMeanIoU()
        for prediction, reference in zip(predictions, references, strict=True):
            metric.add(prediction=prediction, reference=reference)
        metric.compute()

    own, theirs = seconds(ours), seconds(plain)
    print(
        f"Mean IoU of {NUM_MAPS} label maps of {MAP_SIZE} x {MAP_SIZE} with {NUM_LABELS} classes: {own:.2f} s, plain "
        f"{theirs:.2f} s: {theirs / own:.1f} times as fast"
    )


class PlainMeanIoU(evaluate.Metric):
    """Images are stored as in the metric `mean_iou` of `evaluate`, and three histograms are made of each."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        areas = np.zeros((3, NUM_LABELS))
        for prediction, reference in zip(map(np.array, predictions), map(np.array, references), strict=True):
            kept = reference != 255
            prediction, reference = prediction[kept], reference[kept]
            for index, values in enumerate((prediction[prediction == reference], prediction, reference)):
                areas[index] += np.histogram(values, bins=NUM_LABELS, range=(0, NUM_LABELS - 1))[0]
        return {"mean_iou": float(np.nanmean(areas[0] / (areas[1] + areas[2] - areas[0])))}


def seconds(function: Callable[[], object]) -> float:
    """Processor time of the faster of two calls."""
    times = []
    for _ in range(2):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"benchmark_data.py: {error}")
