# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A close look at single images: prediction, the masks behind it, and masks and class texts in CLIP's space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..image_processing_mtaclip import MTAClipImageProcessor
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from .findings import make_thumbnail, shrink_labels


@dataclass
class ExaminedImage:
    """An image, its prediction and its masks: the queries whose most probable class, in the image as a whole, is not
    "no object".

    Attributes:
        name (`str`): of the image.
        image (`PIL.Image.Image`): in RGB.
        truth (`np.ndarray` of shape `(height, width)`): int64 label map.
        prediction (`np.ndarray` of shape `(height, width)`): int64 label map.
        classes (`np.ndarray` of shape `(M,)`): int64, the class of each mask, the most probable mask first.
        probabilities (`np.ndarray` of shape `(M,)`): of those classes.
        centres (`np.ndarray` of shape `(M, 2)`): where each mask is surest, as shares (x, y) of the image's size.
        masks (`np.ndarray` of shape `(M, E)`, *optional*): unit vectors in CLIP's space; absent without text branch.
        texts (`np.ndarray` of shape `(C, K + 1, E)`, *optional*): unit vectors of the class texts and "no object".
    """

    name: str
    image: Image.Image
    truth: np.ndarray
    prediction: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    centres: np.ndarray
    masks: np.ndarray | None = None
    texts: np.ndarray | None = None

    @property
    def similarity(self) -> np.ndarray:
        """Cosine of each mask with the most similar text of each class, `(M, K + 1)`."""
        return np.einsum("me,cke->cmk", self.masks, self.texts).max(axis=0)

    def shrunk(self) -> "ExaminedImage":
        """The same with image and label maps of a thumbnail's size."""
        image = make_thumbnail(self.image)
        labels = [shrink_labels(labels, (image.height, image.width)) for labels in (self.truth, self.prediction)]
        return replace(self, image=image, truth=labels[0], prediction=labels[1])


@torch.no_grad()
def examine_image(
    model: MTAClipForSemanticSegmentation,
    image_processor: MTAClipImageProcessor,
    example: Mapping[str, Any],
    prediction: np.ndarray,
) -> ExaminedImage:
    """Looks at the masks that the model finds in an image as a whole.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): in evaluation mode.
        image_processor ([`MTAClipImageProcessor`]): the model's.
        example (`Mapping[str, Any]`): `image` (PIL), `annotation` (label map) and, if it has one, `name`.
        prediction (`np.ndarray` of shape `(height, width)`): its predicted label map.
    """
    image = example["image"]
    embeddings: list[tuple[Tensor, Tensor]] = []
    hook = None
    if model.config.text_branch:
        hook = model.text_head.register_forward_hook(lambda head, inputs, _: embeddings.append(head.embed(*inputs)))
    try:
        pixel_values = image_processor(image, return_tensors="pt").pixel_values
        outputs = model(pixel_values=pixel_values.to(model.device))
    finally:
        if hook is not None:
            hook.remove()
    probabilities, classes = outputs.class_queries_logits[0].float().softmax(dim=-1).max(dim=-1)
    order = probabilities.argsort(descending=True)
    queries = order[classes[order] < model.config.num_labels]
    valid = image_processor(image, return_tensors="pt", do_pad=False).pixel_values.shape[-2:]
    shares = [whole / part for whole, part in zip(pixel_values.shape[-2:], valid, strict=True)]
    examined = ExaminedImage(
        name=example.get("name", ""),
        image=image,
        truth=np.array(example["annotation"], dtype=np.int64),
        prediction=prediction,
        classes=classes[queries].cpu().numpy(),
        probabilities=probabilities[queries].cpu().numpy(),
        centres=_centres(outputs.masks_queries_logits[0, queries].float(), shares),
    )
    if embeddings:
        masks, texts = embeddings[0]  # of the last layer: (1, 1, Q, E), (1, 1, C, K + 1, E)
        examined.masks = masks[0, 0, queries].float().cpu().numpy()
        examined.texts = texts[0, 0].float().cpu().numpy()
    return examined


def _centres(mask_logits: Tensor, shares: Sequence[float]) -> np.ndarray:
    """Where each of `(M, h, w)` mask logits is greatest, as shares `(x, y)` of the part that is no padding."""
    height, width = mask_logits.shape[-2:]
    peak = mask_logits.flatten(1).argmax(dim=1).cpu().numpy()
    rows, columns = np.divmod(peak, width)
    return np.stack(((columns + 0.5) / width * shares[1], (rows + 0.5) / height * shares[0]), axis=1).clip(0, 1)


def principal_components(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two directions in which points differ most (principal component analysis).

    Args:
        points (`np.ndarray` of shape `(n, E)`): at least one.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: coordinates `(n, 2)`, and the share of the variance of each direction `(2,)`.
    """
    centred = points - points.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    variances = values**2
    coordinates = np.zeros((len(points), 2))
    coordinates[:, : len(values)] = (left * values)[:, :2]
    shares = np.zeros(2)
    shares[: len(values)] = (variances / max(variances.sum(), np.finfo(float).tiny))[:2]
    return coordinates, shares


__all__ = ["ExaminedImage", "examine_image", "principal_components"]
