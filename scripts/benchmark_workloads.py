# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What `benchmark.py` runs, ours and the peer's: each workload makes models and inputs and returns what is measured.

Both models have the same backbone, pixel decoder and decoder and random weights; ours has the text branch on top.
"""

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import (
    CLIPTextConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from modeling_mtaclip import MTAClipConfig, MTAClipForSemanticSegmentation, MTAClipImageProcessor, MTAClipModel
from modeling_mtaclip.conversion import fields_from_mask2former
from modeling_mtaclip.data import Augmentation, SegmentationExamples, load_segmentation_dataset
from modeling_mtaclip.loss_mtaclip import classes_of_images
from modeling_mtaclip.modeling_mtaclip import MTAClipForSemanticSegmentationOutput


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

SEED = 0

Run = Callable[[], Any]


def prepare(options: argparse.Namespace) -> None:
    """Makes this process measure under the options."""
    logging.set_verbosity_error()
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(SEED)


def _autocast(options: argparse.Namespace) -> torch.autocast:
    enabled = options.dtype != "float32"
    return torch.autocast(torch.device(options.device).type, getattr(torch, options.dtype), enabled=enabled)


def peer_config(options: argparse.Namespace) -> Mask2FormerConfig:
    """Mask2Former with a ResNet-50."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(out_features=stages, **(SMALL_BACKBONE if options.small else {}))
    return Mask2FormerConfig(
        backbone_config=backbone, num_labels=options.classes, **(SMALL_HEAD if options.small else {})
    )


def our_config(options: argparse.Namespace) -> MTAClipConfig:
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


def make_model(options: argparse.Namespace, side: str) -> nn.Module:
    prepare(options)
    if side == "ours":
        return MTAClipForSemanticSegmentation(our_config(options)).to(options.device)
    return Mask2FormerForUniversalSegmentation(peer_config(options)).to(options.device)


def random_images(options: argparse.Namespace) -> Tensor:
    return torch.randn(options.batch_size, 3, options.size, options.size, device=options.device)


def random_labels(options: argparse.Namespace) -> Tensor:
    """Label maps `(B, size, size)` with rectangles of up to eight classes."""
    classes = torch.rand(options.batch_size, options.classes).argsort(dim=1)[:, :CLASSES_PER_IMAGE]
    cells = torch.randint(classes.shape[1], (options.batch_size, GRID**2))
    grid = classes.gather(1, cells).view(-1, 1, GRID, GRID).float()
    return F.interpolate(grid, size=(options.size, options.size))[:, 0].long().to(options.device)


def train(options: argparse.Namespace, side: str) -> Run:
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


def _training_step(model: nn.Module, forward: Callable[[], Tensor], options: argparse.Namespace) -> Run:
    def step() -> None:
        with _autocast(options):
            loss = forward()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def infer(options: argparse.Namespace, side: str) -> Run:
    """Forward pass; ours with its text embeddings as constants."""
    model, images = make_model(options, side).eval(), random_images(options)
    model = model.for_inference() if side == "ours" else model

    def forward() -> Any:
        with torch.inference_mode(), _autocast(options):
            return model(pixel_values=images)

    return forward


def text(options: argparse.Namespace, side: str) -> Run:
    """Encodes all names in all contexts, and goes back: behind shared prefixes, and as one batch of padded prompts."""
    prepare(options)
    model = MTAClipModel(our_config(options)).text_model.to(options.device).train()
    encode = model if side == "ours" else lambda: padded_text_embeddings(model)
    return _training_step(model, lambda: encode().square().sum(), options)


def padded_text_embeddings(model: nn.Module) -> Tensor:
    """Embeddings `(C, K + 1, E)` from a padded batch with a sequence for each name and context."""
    config, clip, device = model.config, model.text_encoder.text_model, model.contexts.device
    names = [
        [*config.class_token_ids[name], config.prompt_end_token_id] for name in config.class_names_with_no_object()
    ]
    lengths = torch.tensor([len(name) for name in names], device=device)
    ids = nn.utils.rnn.pad_sequence([torch.tensor(name, device=device) for name in names], batch_first=True)
    embed, shape = clip.embeddings.token_embedding, (len(model.contexts), len(names))
    start = embed(torch.tensor(config.prompt_start_token_id, device=device)).expand(*shape, 1, -1)
    contexts = model.contexts[:, None].expand(*shape, -1, -1)
    prompts = torch.cat((start, contexts, embed(ids).expand(*shape, -1, -1)), dim=2).flatten(0, 1)
    states = clip.embeddings(inputs_embeds=prompts)
    states = clip.encoder(inputs_embeds=states, attention_mask=None, is_causal=True).last_hidden_state
    ends = (lengths + config.prompt_length).repeat(shape[0])
    ended = clip.final_layer_norm(states)[torch.arange(len(ends), device=device), ends]
    return model.text_encoder.text_projection(ended).unflatten(0, shape)


def postprocess(options: argparse.Namespace, side: str) -> Run:
    """Label map of one image by our image processor, and by Mask2Former's."""
    processor = MTAClipImageProcessor(do_resize=False) if side == "ours" else Mask2FormerImageProcessor()
    outputs, size = random_outputs(options)
    return lambda: processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]


def exact(options: argparse.Namespace, side: str) -> Run:
    """Label map of one image by our image processor, and by the formula written down plainly."""
    if side == "ours":
        return postprocess(options, side)
    outputs, size = random_outputs(options)

    def label_map() -> Tensor:
        masks = F.interpolate(outputs.masks_queries_logits, size=size, mode="bilinear").sigmoid()
        classes = outputs.class_queries_logits.softmax(dim=-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", classes, masks)[0].argmax(dim=0)

    return label_map


def random_outputs(options: argparse.Namespace) -> tuple[MTAClipForSemanticSegmentationOutput, tuple[int, int]]:
    """Logits of one image, with smooth masks, and the image's size."""
    prepare(options)
    size = SMALL_POSTPROCESSED_SIZE if options.small else POSTPROCESSED_SIZE
    num_queries, (height, width) = peer_config(options).num_queries, (length // MASK_STRIDE for length in size)
    coarse = torch.randn(1, num_queries, height // 8, width // 8, device=options.device) * 8
    masks = F.interpolate(coarse, size=(height, width), mode="bicubic")
    classes = torch.randn(1, num_queries, options.classes + 1, device=options.device) * 3
    return MTAClipForSemanticSegmentationOutput(class_queries_logits=classes, masks_queries_logits=masks), size


def data(options: argparse.Namespace, side: str) -> Run:
    """Reads and augments all images of a folder as for training, by workers that stay; the peer's are torchvision's
    own transforms, without a crop that looks at the classes.
    """
    prepare(options)
    folder = TemporaryDirectory()
    _write_images(Path(folder.name), options)
    if side == "ours":
        size = {"shortest_edge": DATA_SHORTEST_EDGE, "longest_edge": 4 * DATA_SHORTEST_EDGE}
        augmentation, read = Augmentation((options.size, options.size), size), load_segmentation_dataset(folder.name)
        dataset, collate = SegmentationExamples(read, "train", augmentation, SEED), None
    else:
        kinds = [sorted(Path(folder.name, kind, "train").iterdir()) for kind in ("images", "annotations")]
        dataset, collate = list(zip(*kinds, strict=True)), partial(_plain_batch, _plain_augmentation(options.size))
    workers = {"num_workers": options.num_workers, "persistent_workers": options.num_workers > 0}
    loader = DataLoader(dataset, options.batch_size, shuffle=True, collate_fn=collate, **workers)
    # The folder lives as long as what reads it.
    return lambda: (folder, sum(len(batch["labels"]) for batch in loader))


def _plain_augmentation(crop_size: int) -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomResize(DATA_SHORTEST_EDGE // 2, DATA_SHORTEST_EDGE * 2),
            v2.RandomCrop(crop_size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
            v2.RandomHorizontalFlip(),
            v2.RandomPhotometricDistort(),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )


def _plain_batch(augmentation: v2.Transform, files: list[tuple[Path, Path]]) -> dict[str, Tensor]:
    pairs = [(tv_tensors.Image(Image.open(image)), tv_tensors.Mask(Image.open(labels))) for image, labels in files]
    images, labels = zip(*(augmentation(*pair) for pair in pairs), strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def num_data_images(options: argparse.Namespace) -> int:
    """How many images the workload `data` reads."""
    return SMALL_DATA_IMAGES if options.small else DATA_IMAGES


def _write_images(folder: Path, options: argparse.Namespace) -> None:
    generator, size = np.random.default_rng(SEED), DATA_SIZE[::-1]
    (folder / "classes.json").write_text(json.dumps([f"class {index}" for index in range(options.classes)]))
    for split, number in (("train", num_data_images(options)), ("val", 1)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(number):
            coarse = Image.fromarray(generator.integers(0, 256, (32, 43, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
            pixels = (smooth + generator.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{index:04}.jpg", quality=90)
            labels = Image.fromarray(generator.integers(0, options.classes, (8, 11), dtype=np.uint8))
            labels = labels.resize(size, Image.Resampling.NEAREST)
            labels.save(folder / "annotations" / split / f"{index:04}.png")


WORKLOADS = {
    "train": train,
    "infer": infer,
    "text": text,
    "postprocess": postprocess,
    "exact": exact,
    "data": data,
}
