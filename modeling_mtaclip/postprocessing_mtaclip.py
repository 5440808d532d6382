# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""From class and mask logits of queries to scores and labels of pixels, exactly and in little memory.

The score of class `k` is the sum over the queries of the probability of `k` times the mask probability, where mask
logits are upsampled to the size of the model's input before the sigmoid. Padding is cut off, and the scores are
resized to the size that is asked for. (mmsegmentation and the authors' code do the same.) All this is done in bands of
rows, so that the scores of all classes never exist at once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


# Floats in the largest tensor of a band, 16 MiB: larger ones leave the processor's cache.
BAND_ELEMENTS = 2**22


def semantic_labels(
    class_queries_logits: Tensor,
    masks_queries_logits: Tensor,
    input_size: tuple[int, int],
    valid_size: tuple[int, int] | None = None,
    target_size: tuple[int, int] | None = None,
) -> Tensor:
    """The class with the highest score at each pixel of one image.

    Args:
        class_queries_logits (`Tensor` of shape `(Q, K + 1)`): the last entry is "no object".
        masks_queries_logits (`Tensor` of shape `(Q, h, w)`): usually at a quarter of the input's size.
        input_size (`tuple[int, int]`): height and width of the model's input, padding included.
        valid_size (`tuple[int, int]`, *optional*): the part of it, from the top left, that is no padding; all of it by
            default.
        target_size (`tuple[int, int]`, *optional*): height and width of the result; `valid_size` by default.

    Returns:
        `Tensor` of shape `target_size`, int64, in 0 … K - 1.
    """
    bands = _score_bands(class_queries_logits, masks_queries_logits, input_size, valid_size, target_size)
    return torch.cat([band.argmax(dim=0) for band in bands])


def semantic_scores(
    class_queries_logits: Tensor,
    masks_queries_logits: Tensor,
    input_size: tuple[int, int],
    valid_size: tuple[int, int] | None = None,
    target_size: tuple[int, int] | None = None,
) -> Tensor:
    """The scores of all classes at each pixel of one image, `(K, *target_size)`, float32.

    Arguments as in [`semantic_labels`].
    """
    bands = _score_bands(class_queries_logits, masks_queries_logits, input_size, valid_size, target_size)
    return torch.cat(list(bands), dim=1)


def _score_bands(
    class_queries_logits: Tensor,
    masks_queries_logits: Tensor,
    input_size: tuple[int, int],
    valid_size: tuple[int, int] | None,
    target_size: tuple[int, int] | None,
) -> Iterator[Tensor]:
    """Scores of consecutive bands of rows of the result, `(K, rows, width)`."""
    valid_size = valid_size or input_size
    target_size = target_size or valid_size
    class_probabilities = class_queries_logits.float().softmax(dim=-1)[:, :-1].T.contiguous()
    masks = masks_queries_logits.float()
    depth = max(class_probabilities.shape)
    rows_per_band = max(1, BAND_ELEMENTS // (depth * max(input_size[1], target_size[1])))
    # Of the input, a band needs more rows than of the result where the result is the smaller.
    rows_per_band = max(1, int(rows_per_band * min(1.0, target_size[0] / valid_size[0])))
    for start in range(0, target_size[0], rows_per_band):
        rows = torch.arange(start, min(start + rows_per_band, target_size[0]), device=masks.device)
        if target_size == valid_size:
            yield _input_scores(class_probabilities, masks, rows, input_size, valid_size[1])
            continue
        low, high, share = _source_rows(rows, target_size[0], valid_size[0])
        first, last = int(low[0]), int(high[-1])
        input_rows = torch.arange(first, last + 1, device=masks.device)
        scores = _input_scores(class_probabilities, masks, input_rows, input_size, valid_size[1])
        scores = torch.lerp(scores[:, low - first], scores[:, high - first], share)
        yield _resize_width(scores, target_size[1])


def _input_scores(
    class_probabilities: Tensor, masks: Tensor, rows: Tensor, input_size: tuple[int, int], valid_width: int
) -> Tensor:
    """Scores of some rows of the model's input, `(K, len(rows), valid_width)`."""
    low, high, share = _source_rows(rows, input_size[0], masks.shape[1])
    logits = torch.lerp(masks[:, low], masks[:, high], share)
    probabilities = _resize_width(logits, input_size[1])[..., :valid_width].sigmoid()
    return (class_probabilities @ probabilities.flatten(1)).unflatten(1, (len(rows), valid_width))


def _source_rows(rows: Tensor, size: int, source_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two source rows that bilinear interpolation (align_corners=False) mixes into each row, and their shares."""
    position = ((rows + 0.5) * (source_size / size) - 0.5).clamp(min=0)
    low = position.floor().long().clamp(max=source_size - 1)
    return low, (low + 1).clamp(max=source_size - 1), (position - low)[:, None].float()


def _resize_width(maps: Tensor, width: int) -> Tensor:
    if maps.shape[2] == width:
        return maps
    return F.interpolate(maps[None], size=(maps.shape[1], width), mode="bilinear", align_corners=False)[0]


__all__ = ["semantic_labels", "semantic_scores"]
