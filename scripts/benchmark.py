#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of MTA-CLIP beside transformers' Mask2Former, on random weights and images.

python scripts/benchmark.py [--mode train|infer|text|postprocess|data|launches|all] [--dtype bfloat16]

Both models have the same backbone, pixel decoder and decoder; ours has the text branch on top.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


# Threads that wait must not spin: on a machine with other work they would slow everything down several times. OpenMP
# reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from device_counts import KINDS, count_device_work
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_mtaclip import MTAClipConfig, MTAClipForSemanticSegmentation, MTAClipImageProcessor, MTAClipModel
from modeling_mtaclip.conversion import fields_from_mask2former
from modeling_mtaclip.data import Augmentation, SegmentationExamples, load_segmentation_dataset, make_scene
from modeling_mtaclip.loss_mtaclip import classes_of_images
from modeling_mtaclip.modeling_mtaclip import MTAClipForSemanticSegmentationOutput


SIDES = ("ours", "peer")
SEED = 0
LAUNCHES_BATCHES, LAUNCHES_SIZE = (2, 16), 64
SMALL_BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
SMALL_SIZES = ("hidden_dim", "feature_size", "mask_feature_size", "encoder_feedforward_dim", "dim_feedforward")
SMALL_HEAD = dict.fromkeys(SMALL_SIZES, 32) | {"encoder_layers": 1, "decoder_layers": 3, "num_queries": 6}
SMALL_HEAD["train_num_points"] = 64
SMALL_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# Classes in an image, which lie in a grid of so many rows and columns.
CLASSES_PER_IMAGE, GRID = 8, 4
# How many of ADE20K's names, "none" included, have one, two and three tokens.
NAMES_OF_LENGTH = {1: 121, 2: 27, 3: 3}
POSTPROCESSED_SIZE, SMALL_POSTPROCESSED_SIZE, MASK_STRIDE = (1024, 2048), (64, 128), 4
# Height and width of most images of ADE20K, to which side they are resized, and how many are drawn.
DATA_SIZE, DATA_SHORTEST_EDGE, DATA_IMAGES, SMALL_DATA_IMAGES = (512, 683), 512, 96, 4
PROCESS_STATUS = Path("/proc/self/status")
HEADING = f"{'case':34}{'metric':13}{'unit':9}{'ours':>10}{'peer':>10}{'ratio':>7}  spread of ours, of peer"

Options = argparse.Namespace
Row = dict[str, Any]
Run = Callable[[], Any]


def main(arguments: Sequence[str]) -> list[Row]:
    """Prints the table that the options ask for, and returns its rows."""
    options = parse_arguments(arguments)
    prepare(options)
    table = {"environment": environment(options), "settings": vars(options) | {"json": str(options.json)}, "rows": []}
    for described in ("environment", "settings"):
        print(", ".join(f"{name}: {value}" for name, value in table[described].items()))
    print(HEADING, flush=True)
    for mode in WORKLOADS if options.mode == "all" else [options.mode]:
        for row in count_launches(options) if mode == "launches" else compare(mode, options):
            table["rows"].append(row)
            print(_line(row), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    return table["rows"]


def parse_arguments(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    modes = [*WORKLOADS, "launches", "all"]
    parser.add_argument("--mode", choices=modes, default="all", help="what to measure; all: all but launches")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="others than float32: autocast to it")
    for name, (default, lowest, meaning) in {
        "size": (512, 32, "side of the images, a multiple of 32"),
        "batch_size": (2, 1, "number of images"),
        "classes": (150, 1, "number of classes"),
        "contexts": (3, 1, "number of prompt contexts"),
        "num_threads": (torch.get_num_threads(), 1, "threads on the CPU"),
        "num_workers": (2, 0, "processes that read data"),
        "repeats": (5, 1, "measured runs of each figure, after one that is not measured"),
    }.items():
        parser.add_argument(f"--{name}", type=partial(_integer, lowest), default=default, help=meaning)
    parser.add_argument("--small", action="store_true", help="tiny layers and data, to try the benchmark itself")
    parser.add_argument("--json", type=Path, help="file for the table, with all runs")
    options = parser.parse_args(arguments)
    if options.size % 32:
        parser.error(f"--size must be a multiple of 32, got {options.size}.")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: the folder does not exist; make it first.")
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} can't be used: {error}")
    return options


def _integer(lowest: int, text: str) -> int:
    if int(text) < lowest:
        raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {text}.")
    return int(text)


def compare(mode: str, options: Options) -> Iterator[Row]:
    """Time, images per second and memory of a workload beside the peer's."""
    seconds = alternate({side: WORKLOADS[mode](options, side) for side in SIDES}, options)
    yield make_row(mode, "time", "s", seconds)
    images = {"data": num_data_images(options), "train": options.batch_size, "infer": options.batch_size}.get(mode)
    if images is not None:
        yield make_row(mode, "speed", "images/s", {side: [images / each for each in seconds[side]] for side in SIDES})
    if mode != "data" and (_is_cuda(options) or PROCESS_STATUS.exists()):
        memory = {side: in_fresh_process(memory_of, mode, options, side) for side in SIDES}
        for metric in ("peak memory", "above start"):
            yield make_row(mode, metric, "MiB", {side: [memory[side][metric]] for side in SIDES})


def count_launches(options: Options) -> Iterator[Row]:
    """What a step asks of an accelerator: kernels, waits and copies by kind, counted on the CPU, whatever the size."""
    for mode in ("train", "infer"):
        for batch_size in LAUNCHES_BATCHES:
            changes = {"device": "cpu", "size": LAUNCHES_SIZE, "batch_size": batch_size}
            point = Options(**(vars(options) | changes))
            counts = {side: count_device_work(WORKLOADS[mode](point, side)) for side in SIDES}
            for kind in KINDS:
                totals = {side: [counts[side][kind].total()] for side in SIDES}
                yield make_row(f"{mode}, batch {batch_size}, {kind}", "count", "", totals)


def alternate(runs: dict[str, Run], options: Options) -> dict[str, list[float]]:
    """Seconds of each measured run; the sides take turns, so that both meet the same machine."""
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    for turn in range(1 + options.repeats):
        for side, run in runs.items():
            gc.collect()
            _synchronize(options)
            start = time.perf_counter()
            run()
            _synchronize(options)
            if turn > 0:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def _is_cuda(options: Options) -> bool:
    return torch.device(options.device).type == "cuda"


def _synchronize(options: Options) -> None:
    if _is_cuda(options):
        torch.cuda.synchronize(options.device)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, where nothing ran before."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        # One process does the imports, and each new one is a copy of it.
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        context.set_forkserver_preload(["benchmark"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def memory_of(mode: str, options: Options, side: str) -> dict[str, float]:
    """Peak memory of two runs in MiB, and how far it is above what was held before: on CUDA that of tensors on the
    device, else, where Linux tells, that of the whole process, libraries included.
    """
    run = WORKLOADS[mode](options, side)
    gc.collect()
    before = torch.cuda.memory_allocated(options.device) if _is_cuda(options) else _memory_of_process("VmRSS")
    for _ in range(2):
        run()
    peak = torch.cuda.max_memory_allocated(options.device) if _is_cuda(options) else _memory_of_process("VmHWM")
    return {"peak memory": peak / 2**20, "above start": max(0, peak - before) / 2**20}


def _memory_of_process(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s*(\d+)", PROCESS_STATUS.read_text())[1])


def environment(options: Options) -> Row:
    """Processor, device, allocator, threads and versions."""
    information = Path("/proc/cpuinfo")
    cores = re.findall(r"model name\s*: (.*)", information.read_text()) if information.exists() else []
    return {
        "cpu": f"{len(cores)} x {cores[0]}" if cores else platform.machine(),
        "device": torch.cuda.get_device_name(options.device) if _is_cuda(options) else options.device,
        "threads": torch.get_num_threads(),
        "allocator": os.environ.get("LD_PRELOAD") or "the system's",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def make_row(case: str, metric: str, unit: str, runs: dict[str, list[float]]) -> Row:
    """A row of the table: the sides' medians, their ratio, and all runs."""
    ours, peer = (statistics.median(runs[side]) for side in SIDES)
    row = {"case": case, "metric": metric, "unit": unit, "ours": ours, "peer": peer}
    row["ratio"] = ours / peer if peer else None
    return row | {f"{side}_runs": values for side, values in runs.items()}


def _line(row: Row) -> str:
    form = ".0f" if row["metric"] == "count" else ".4g"
    ours, peer = (format(row[side], form) for side in SIDES)
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    spreads = ", ".join("{:.4g}-{:.4g}".format(min(row[f"{side}_runs"]), max(row[f"{side}_runs"])) for side in SIDES)
    return f"{row['case']:34}{row['metric']:13}{row['unit']:9}{ours:>10}{peer:>10}{ratio:>7}  {spreads}"


def prepare(options: Options) -> None:
    """Makes this process measure under the options."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(SEED)


def peer_config(options: Options) -> Mask2FormerConfig:
    """Mask2Former with a ResNet-50."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(out_features=stages, **(SMALL_BACKBONE if options.small else {}))
    head = SMALL_HEAD if options.small else {}
    return Mask2FormerConfig(backbone_config=backbone, num_labels=options.classes, **head)


def our_config(options: Options) -> MTAClipConfig:
    """The same with the text branch, on random class names."""
    text = CLIPTextConfig(**(SMALL_TEXT if options.small else {}))
    generator = random.Random(SEED)
    names = [*(f"class {index}" for index in range(options.classes)), "none"]
    lengths = generator.choices([*NAMES_OF_LENGTH], weights=NAMES_OF_LENGTH.values(), k=len(names))
    ids = [[generator.randrange(text.vocab_size - 2) for _ in range(length)] for length in lengths]
    return MTAClipConfig(
        **fields_from_mask2former(peer_config(options)),
        text_config=text,
        id2label=dict(enumerate(names[:-1])),
        class_token_ids=dict(zip(names, ids, strict=True)),
        num_prompt_contexts=options.contexts,
        semantic_loss_ignore_index=max(255, options.classes),
    )


def make_model(options: Options, side: str) -> nn.Module:
    prepare(options)
    if side == "ours":
        return MTAClipForSemanticSegmentation(our_config(options)).to(options.device)
    return Mask2FormerForUniversalSegmentation(peer_config(options)).to(options.device)


def random_images(options: Options) -> Tensor:
    return torch.randn(options.batch_size, 3, options.size, options.size, device=options.device)


def random_labels(options: Options) -> Tensor:
    """Label maps `(B, size, size)` with rectangles of up to eight classes."""
    classes = torch.rand(options.batch_size, options.classes).argsort(dim=1)[:, :CLASSES_PER_IMAGE]
    cells = torch.randint(classes.shape[1], (options.batch_size, GRID**2))
    grid = classes.gather(1, cells).view(-1, 1, GRID, GRID).float()
    return F.interpolate(grid, size=(options.size, options.size))[:, 0].long().to(options.device)


def train(options: Options, side: str) -> Run:
    """Forward and backward pass; the peer's with the masks that its image processor makes of the same label maps."""
    model, images, labels = make_model(options, side).train(), random_images(options), random_labels(options)
    if side == "ours":
        present = classes_of_images(labels.cpu(), options.classes, model.config.semantic_loss_ignore_index)
        inputs = {"labels": labels, "image_classes": present.to(options.device), "output_logits": False}
    else:
        classes = [each.unique() for each in labels]
        masks = [(each == present[:, None, None]).float() for each, present in zip(labels, classes, strict=True)]
        inputs = {"mask_labels": masks, "class_labels": classes}
    return _training_step(model, lambda: model(pixel_values=images, **inputs).loss, options)


def _training_step(model: nn.Module, forward: Callable[[], Tensor], options: Options) -> Run:
    def step() -> None:
        with _autocast(options):
            loss = forward()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def _autocast(options: Options) -> torch.autocast:
    enabled = options.dtype != "float32"
    return torch.autocast(torch.device(options.device).type, getattr(torch, options.dtype), enabled=enabled)


def infer(options: Options, side: str) -> Run:
    """Forward pass; ours with its text embeddings as constants."""
    model, images = make_model(options, side).eval(), random_images(options)
    model = model.for_inference() if side == "ours" else model

    def forward() -> Any:
        with torch.inference_mode(), _autocast(options):
            return model(pixel_values=images)

    return forward


def text(options: Options, side: str) -> Run:
    """Encodes all names in all contexts, and goes back: behind shared prefixes, and as one batch of padded prompts."""
    prepare(options)
    config = our_config(options)
    if side == "ours":
        model = MTAClipModel(config).text_model.to(options.device).train()
        return _training_step(model, lambda: model().square().sum(), options)
    model = CLIPTextModelWithProjection(config.text_config).to(options.device).requires_grad_(False).train()
    # One weight at the start, so that the pass goes back as far as to our contexts.
    model.text_model.embeddings.position_embedding.requires_grad_(True)
    shape = options.contexts * (options.classes + 1), 2 + config.prompt_length + max(NAMES_OF_LENGTH)
    prompts = torch.randint(config.text_config.vocab_size, shape, device=options.device)
    return _training_step(model, lambda: model(prompts).text_embeds.square().sum(), options)


def postprocess(options: Options, side: str) -> Run:
    """Label map of one image with smooth masks, by our image processor and by Mask2Former's."""
    prepare(options)
    processor = MTAClipImageProcessor(do_resize=False) if side == "ours" else Mask2FormerImageProcessor()
    size = SMALL_POSTPROCESSED_SIZE if options.small else POSTPROCESSED_SIZE
    num_queries, (height, width) = peer_config(options).num_queries, (length // MASK_STRIDE for length in size)
    coarse = torch.randn(1, num_queries, height // 8, width // 8, device=options.device) * 8
    outputs = MTAClipForSemanticSegmentationOutput(
        class_queries_logits=torch.randn(1, num_queries, options.classes + 1, device=options.device) * 3,
        masks_queries_logits=F.interpolate(coarse, size=(height, width), mode="bicubic"),
    )
    return lambda: processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]


def data(options: Options, side: str) -> Run:
    """Reads and augments drawn scenes as for training, by workers that stay; the peer's are torchvision's own
    transforms, without a crop that looks at the classes.
    """
    prepare(options)
    folder = TemporaryDirectory()
    images, annotations = (Path(folder.name, kind, "train") for kind in ("images", "annotations"))
    for each in (images, annotations):
        each.mkdir(parents=True)
    Path(folder.name, "classes.json").write_text(json.dumps([f"class {index}" for index in range(8)]))
    for index in range(num_data_images(options)):
        image, labels = make_scene(index, *DATA_SIZE)
        image.save(images / f"{index:04}.jpg", quality=90)
        labels.save(annotations / f"{index:04}.png")
    if side == "ours":
        size = {"shortest_edge": DATA_SHORTEST_EDGE, "longest_edge": 4 * DATA_SHORTEST_EDGE}
        augmentation, read = Augmentation((options.size, options.size), size), load_segmentation_dataset(folder.name)
        dataset, collate = SegmentationExamples(read, "train", augmentation, SEED), None
    else:
        dataset = list(zip(sorted(images.iterdir()), sorted(annotations.iterdir()), strict=True))
        collate = partial(_plain_batch, options.size)
    workers = {"num_workers": options.num_workers, "persistent_workers": options.num_workers > 0}
    loader = DataLoader(dataset, options.batch_size, shuffle=True, collate_fn=collate, **workers)
    # The folder lives as long as what reads it.
    return lambda: (folder, sum(len(batch["labels"]) for batch in loader))


def _plain_batch(crop_size: int, files: list[tuple[Path, Path]]) -> dict[str, Tensor]:
    augmentation = v2.Compose(
        [
            v2.RandomResize(DATA_SHORTEST_EDGE // 2, DATA_SHORTEST_EDGE * 2),
            v2.RandomCrop(crop_size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
            v2.RandomHorizontalFlip(),
            v2.RandomPhotometricDistort(),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )
    pairs = [(tv_tensors.Image(Image.open(image)), tv_tensors.Mask(Image.open(labels))) for image, labels in files]
    images, labels = zip(*(augmentation(*pair) for pair in pairs), strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def num_data_images(options: Options) -> int:
    """How many images the workload `data` reads."""
    return SMALL_DATA_IMAGES if options.small else DATA_IMAGES


WORKLOADS = {"train": train, "infer": infer, "text": text, "postprocess": postprocess, "data": data}


if __name__ == "__main__":
    main(sys.argv[1:])
