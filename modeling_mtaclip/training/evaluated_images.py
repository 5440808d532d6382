# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Single images to be shown: what a model predicts for them, how their masks are aligned with the class texts, and
which prompt contexts win."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from ..visualization import Color, colorize, compare


THUMBNAIL_SIZE = 480


@dataclass
class MaskAlignment:
    """Unit vectors in CLIP's space: of an image's `masks` `(M, E)`, the most probable first, with their `classes`
    `(M,)`, and of the `texts` `(C, K + 1, E)` of classes and "no object" in each context. What a mask is,
    [`winning_contexts`] says."""

    classes: np.ndarray
    masks: np.ndarray
    texts: np.ndarray


@dataclass
class EvaluatedImage:
    """An image with ground truth and prediction. It becomes an upright thumbnail in RGB, its label maps (integer
    arrays or tensors `(height, width)`) int64 arrays of the thumbnail's size. `alignment` is absent without text."""

    name: str
    image: Image.Image
    ground_truth: np.ndarray
    prediction: np.ndarray
    alignment: MaskAlignment | None = None

    def __post_init__(self) -> None:
        self.image = ImageOps.exif_transpose(self.image).convert("RGB")
        self.image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), reducing_gap=2.0)
        self.ground_truth, self.prediction = map(self._shrink, (self.ground_truth, self.prediction))

    def _shrink(self, labels: Any) -> np.ndarray:
        """A label map of the thumbnail's size: each pixel has the label at its center."""
        labels = Image.fromarray(np.asarray(labels, dtype=np.int32))
        return np.array(labels.resize(self.image.size, Image.Resampling.NEAREST), dtype=np.int64)


def winning_contexts(class_queries_logits: Tensor, mask_text_similarity: Tensor) -> np.ndarray:
    """Counts which prompt context is the most similar one to the masks of each class.

    A mask is a query whose most probable class is not "no object"; its winning context is the one in which the text of
    that class is most similar to it, as in the contrastive loss (Sec. 3.4).

    Args:
        class_queries_logits (`Tensor` of shape `(B, Q, K + 1)`): of the model's output; more queries may follow.
        mask_text_similarity (`Tensor` of shape `(B, C, Q, K + 1)`): of the model's output.

    Returns:
        `np.ndarray` of shape `(K, C + 1)`: int64, the masks of each class that each context won, and in the last
            column those whose most similar of all texts is one of the class.
    """
    _, num_contexts, num_queries, num_texts = mask_text_similarity.shape
    classes = class_queries_logits[:, :num_queries].argmax(dim=-1)
    own_similarity = mask_text_similarity.take_along_dim(classes[:, None, :, None], dim=-1)[..., 0]
    wins = F.one_hot(own_similarity.argmax(dim=1), num_contexts)
    agrees = mask_text_similarity.amax(dim=1).argmax(dim=-1) == classes
    columns = torch.cat((wins, agrees[..., None]), dim=-1).flatten(0, 1).float()
    table = F.one_hot(classes, num_texts).flatten(0, 1).float().T @ columns
    return table[:-1].long().cpu().numpy()


@torch.no_grad()
def align_masks(
    model: MTAClipForSemanticSegmentation, image_processor: MTAClipImageProcessor, image: Image.Image
) -> MaskAlignment | None:
    """Compares the masks that a model (in evaluation mode) finds in an image as a whole with the class texts; `None`
    for a model without text branch."""
    if not model.config.text_branch:
        return None
    embeddings: list[tuple[Tensor, Tensor]] = []
    hook = model.text_head.register_forward_hook(lambda head, inputs, output: embeddings.append(output))
    try:
        pixel_values = image_processor(image, return_tensors="pt").pixel_values
        outputs = model(pixel_values=pixel_values.to(model.device))
    finally:
        hook.remove()
    class_logits = outputs.class_queries_logits[0, : model.config.num_queries]
    probabilities, classes = class_logits.float().softmax(dim=-1).max(dim=-1)
    order = probabilities.argsort(descending=True)
    queries = order[classes[order] < model.config.num_labels]
    masks, texts = embeddings[0]  # of the last layer: (1, 1, Q, E), (1, 1, C, K + 1, E)
    return MaskAlignment(
        classes[queries].cpu().numpy(), masks[0, 0, queries].float().cpu().numpy(), texts[0, 0].float().cpu().numpy()
    )


def save_pictures(
    folder: str | Path,
    images: Sequence[EvaluatedImage],
    class_names: Sequence[str],
    palette: Sequence[Color],
    ignore_index: int = 255,
) -> None:
    """Draws image, ground truth and prediction side by side, small ones enlarged, in files `000_name.png`,
    `001_name.png`, … Pictures with such names that an earlier run left in the folder are removed first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9]_*.png"):
        old.unlink()
    for place, image in enumerate(images):
        label_maps = [image.ground_truth, image.prediction]
        pictures = [image.image, *(colorize(labels, palette, ignore_index) for labels in label_maps)]
        factor = max(1, THUMBNAIL_SIZE // max(image.image.size))
        size = (factor * image.image.width, factor * image.image.height)
        enlarged = [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
        panels = list(zip(("image", "ground truth", "prediction"), enlarged, strict=True))
        picture = compare(panels, class_names, palette, label_maps, ignore_index=ignore_index)
        stem = re.sub(r"[^\w.-]+", "_", Path(image.name).stem)[:80]
        picture.save(folder / f"{place:03}_{stem}.png")


__all__ = ["EvaluatedImage", "MaskAlignment", "align_masks", "save_pictures", "winning_contexts"]
