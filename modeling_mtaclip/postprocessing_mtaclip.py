# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""From class and mask logits of queries to scores and labels of pixels, exactly and in little memory.

The score of class `k` is the sum over the queries of the probability of `k` times the mask probability, where mask
logits are upsampled to the size of the model's input before the sigmoid. Padding is cut off, and the scores are
resized to the size that is asked for. (mmsegmentation and the authors' code do the same.) All this is done in bands of
rows, so that the scores of all classes never exist at once.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


# Floats in the largest tensor of a band: 8 MiB on CPUs, since larger ones leave the processor's cache; 256 MiB on
# other devices, where few large steps are faster than many small ones.
BAND_ELEMENTS, DEVICE_BAND_ELEMENTS = 2**21, 2**26


class QueryScores:
    """The scores that one forward pass gives to the pixels of its input, made for some rows at a time.

    Args:
        class_queries_logits (`Tensor` of shape `(Q, K + 1)`): the last entry is "no object".
        masks_queries_logits (`Tensor` of shape `(Q, h, w)`): usually at a quarter of the input's size.
        input_size (`tuple[int, int]`): height and width of the model's input, padding included.
        valid_size (`tuple[int, int]`, *optional*): the part of it, from the top left, that is no padding; all of it by
            default.

    Attributes:
        size (`tuple[int, int]`): height and width of the scores, without padding.
        floats_per_row (`int`): roughly the memory that one row needs while it is made.
    """

    def __init__(
        self,
        class_queries_logits: Tensor,
        masks_queries_logits: Tensor,
        input_size: tuple[int, int],
        valid_size: tuple[int, int] | None = None,
    ) -> None:
        self.class_probabilities = class_queries_logits.float().softmax(dim=-1)[:, :-1].T.contiguous()
        self.masks = masks_queries_logits
        self.input_size = input_size
        self.size = valid_size or input_size
        self.floats_per_row = max(self.class_probabilities.shape) * input_size[1]
        self.device = masks_queries_logits.device

    def read(self, start: int, stop: int) -> Tensor:
        """Scores of the rows `start` … `stop - 1`, `(K, stop - start, width)`, float32."""
        low, high, share = _source_rows(start, stop, self.input_size[0], self.masks.shape[1], self.device)
        logits = torch.lerp(*(self.masks.index_select(1, rows).float() for rows in (low, high)), share)
        probabilities = _resize_width(logits, self.input_size[1])[..., : self.size[1]].sigmoid_()
        return (self.class_probabilities @ probabilities.flatten(1)).unflatten(1, (stop - start, self.size[1]))


def semantic_labels(source: QueryScores, target_size: tuple[int, int] | None = None) -> Tensor:
    """The class with the highest score at each pixel of one image, int64 `(height, width)`; `target_size` is by
    default that of the scores."""
    size = target_size or source.size
    labels = torch.empty(size, dtype=torch.int64, device=source.device)
    for start, stop in row_bands([source], size):
        # Over the first dimension, `max` is three times as fast on CPUs as `argmax`.
        labels[start:stop] = resized_scores(source, size, start, stop).max(dim=0).indices
    return labels


def semantic_scores(source: QueryScores, target_size: tuple[int, int] | None = None) -> Tensor:
    """The scores of all classes at each pixel of one image, `(K, height, width)`, float32; see [`semantic_labels`]."""
    size = target_size or source.size
    scores = torch.empty(len(source.class_probabilities), *size, dtype=torch.float32, device=source.device)
    for start, stop in row_bands([source], size):
        scores[:, start:stop] = resized_scores(source, size, start, stop)
    return scores


def row_bands(sources: Sequence[QueryScores], target_size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of bands of the result, of height and width `target_size`, that are small enough
    to be made at once from sources, [`QueryScores`] or others with its attributes and `read`."""
    rows_per_band = target_size[0]
    for source in sources:
        elements = BAND_ELEMENTS if source.device.type == "cpu" else DEVICE_BAND_ELEMENTS
        floats_per_row = max(source.floats_per_row, source.floats_per_row // source.size[1] * target_size[1])
        # A band needs more rows of the source than it has itself where the result is the smaller.
        rows = elements // floats_per_row * min(1.0, target_size[0] / source.size[0])
        rows_per_band = max(1, min(rows_per_band, int(rows)))
    for start in range(0, target_size[0], rows_per_band):
        yield start, min(start + rows_per_band, target_size[0])


def resized_scores(source: QueryScores, target_size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Rows `start` … `stop - 1` of the scores of a source (see [`row_bands`]) that are resized (bilinear) to
    `target_size`: `(K, stop - start, width)`."""
    if target_size == source.size:
        return source.read(start, stop)
    low, high, share = _source_rows(start, stop, target_size[0], source.size[0])
    first, last = int(low[0]), int(high[-1])
    scores = source.read(first, last + 1)
    low, high, share = (each.to(source.device, non_blocking=True) for each in (low - first, high - first, share))
    return _resize_width(torch.lerp(scores.index_select(1, low), scores.index_select(1, high), share), target_size[1])


def _source_rows(
    start: int, stop: int, size: int, source_size: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The two source rows that bilinear interpolation (align_corners=False) mixes into each row, and their shares."""
    position = ((torch.arange(start, stop) + 0.5) * (source_size / size) - 0.5).clamp(min=0)
    low = position.floor().long().clamp(max=source_size - 1)
    high = (low + 1).clamp(max=source_size - 1)
    share = (position - low)[:, None].float()
    return tuple(each.to(device, non_blocking=True) for each in (low, high, share))


def _resize_width(maps: Tensor, width: int) -> Tensor:
    if maps.shape[2] == width:
        return maps
    if maps.device.type == "cpu":
        return F.interpolate(maps, size=width, mode="linear", align_corners=False)
    # The same values. CUDA's linear kernel has no more threads than columns, and was 20 times slower.
    return F.interpolate(maps[None], size=(maps.shape[1], width), mode="bilinear", align_corners=False)[0]


__all__ = ["QueryScores", "resized_scores", "row_bands", "semantic_labels", "semantic_scores"]
