# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation notices beside its figures: the best and worst images, and which prompt contexts are used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, distributed

from ..metrics.per_image import ImageScore


THUMBNAIL_SIZE = 480


def make_thumbnail(image: Image.Image) -> Image.Image:
    """The image in RGB, its longer side at most `THUMBNAIL_SIZE`."""
    image = image.convert("RGB")
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), reducing_gap=2.0)
    return image


def shrink_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map of another size `(height, width)`: each pixel has the label at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


@dataclass
class KeptImage:
    """An image with truth and prediction, small enough to be shown.

    Attributes:
        name (`str`): of the image.
        mean_iou (`float`): over the classes that are annotated or predicted in it.
        image (`PIL.Image.Image`): thumbnail.
        truth (`np.ndarray` of shape `(height, width)`): label map of the thumbnail's size.
        prediction (`np.ndarray` of shape `(height, width)`): predicted label map of the thumbnail's size.
    """

    name: str
    mean_iou: float
    image: Image.Image
    truth: np.ndarray
    prediction: np.ndarray


class BestAndWorst:
    """Keeps the images with the highest and lowest mean IoU, however many are evaluated.

    Args:
        number (`int`, defaults to 4): how many of each.

    Attributes:
        best (`list[KeptImage]`): the best first; after `finish`, of all processes.
        worst (`list[KeptImage]`): the worst first; no image is in both.
    """

    def __init__(self, number: int = 4) -> None:
        self.number = number
        self.best: list[KeptImage] = []
        self.worst: list[KeptImage] = []
        self._kept: dict[str, KeptImage] = {}

    def add(self, score: ImageScore, thumbnail: Image.Image, truth: Tensor, prediction: Tensor) -> None:
        """Keeps an image as long as it is among the best or worst of this process."""
        if np.isnan(score.mean_iou):
            return
        order = self._ordered()
        if len(order) == 2 * self.number and order[self.number - 1] < _key(score) < order[self.number]:
            return
        size = (thumbnail.height, thumbnail.width)
        labels = [shrink_labels(labels.cpu().numpy(), size) for labels in (truth, prediction)]
        self._kept[score.name] = KeptImage(score.name, score.mean_iou, thumbnail, *labels)
        if len(self._kept) > 2 * self.number:
            del self._kept[self._ordered()[self.number][1]]

    def _ordered(self) -> list[tuple[float, str]]:
        return sorted(_key(image) for image in self._kept.values())

    def finish(self, scores: Sequence[ImageScore]) -> None:
        """Brings the best and worst of all processes together.

        Args:
            scores (`Sequence[ImageScore]`): of all images of all processes, the worst first.
        """
        names = [score.name for score in scores if not np.isnan(score.mean_iou)]
        num_best, num_worst = min(self.number, (len(names) + 1) // 2), min(self.number, len(names) // 2)
        worst, best = names[:num_worst], names[::-1][:num_best]
        chosen = {name: self._kept[name] for name in (*worst, *best) if name in self._kept}
        everywhere = {name: image for share in _from_all_processes(chosen) for name, image in share.items()}
        self.worst = [everywhere[name] for name in worst if name in everywhere]
        self.best = [everywhere[name] for name in best if name in everywhere]


class ContextUsage:
    """Which prompt context is the most similar one to the masks of each class.

    A mask is a query whose most probable class is not "no object"; the winning context of a mask is the one in which
    the text of that class is most similar to the mask, as in the contrastive loss (Sec. 3.4).

    Args:
        num_labels (`int`): number of classes, K.

    Attributes:
        counts (`np.ndarray` of shape `(K, C)`): int64, masks of each class that each context won; after `finish`, of
            all processes. Without text branch, C is 0.
        agreeing (`np.ndarray` of shape `(K,)`): int64, masks of each class whose most similar text, over all classes,
            "no object" and contexts, is a text of the class.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.counts = np.zeros((num_labels, 0), dtype=np.int64)
        self.agreeing = np.zeros(num_labels, dtype=np.int64)
        self._table: Tensor | None = None

    def add(self, class_queries_logits: Tensor, mask_text_similarity: Tensor | None) -> None:
        """Counts the masks of a batch.

        Args:
            class_queries_logits (`Tensor` of shape `(B, Q, K + 1)`): the last entry is "no object".
            mask_text_similarity (`Tensor` of shape `(B, C, Q, K + 1)`, *optional*): absent without text branch.
        """
        if mask_text_similarity is None:
            return
        num_contexts = mask_text_similarity.shape[1]
        classes = class_queries_logits.argmax(dim=-1)
        index = classes[:, None, :, None].expand(-1, num_contexts, -1, 1)
        winners = mask_text_similarity.gather(-1, index)[..., 0].argmax(dim=1)
        agrees = mask_text_similarity.amax(dim=1).argmax(dim=-1) == classes
        if self._table is None:
            self._table = torch.zeros(self.num_labels + 1, num_contexts + 1, dtype=torch.long, device=classes.device)
        self._table.index_put_((classes, winners), torch.ones_like(classes), accumulate=True)
        self._table[:, -1].index_add_(0, classes.flatten(), agrees.flatten().long())

    def finish(self) -> None:
        """Adds up the counts of all processes, which must all call this."""
        tables = _from_all_processes(None if self._table is None else self._table.cpu().numpy())
        tables = [table for table in tables if table is not None]
        if tables:
            total = sum(tables)[: self.num_labels]
            self.counts, self.agreeing = total[:, :-1], total[:, -1]

    def entropies(self) -> np.ndarray:
        """Entropy of each class's winning contexts in bits, `(K,)`: 0 if one always wins, log2 C if all win equally
        often, NaN for classes without masks."""
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = self.counts / self.counts.sum(axis=1, keepdims=True)
            terms = np.where(shares == 0, 0.0, -shares * np.log2(shares))
        return terms.sum(axis=1) + 0.0 if self.counts.shape[1] else np.full(self.num_labels, np.nan)


def _key(image: KeptImage | ImageScore) -> tuple[float, str]:
    return image.mean_iou, image.name


def _from_all_processes(value: Any) -> list[Any]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


__all__ = ["BestAndWorst", "ContextUsage", "KeptImage", "make_thumbnail", "shrink_labels"]
