# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of an image that is predicted by overlapping windows, in the memory of two rows of windows.

Windows lie on a grid; the last one of a row and of a column is moved back to the image's border. The score of a pixel
is the mean of the scores that its windows give it. (mmsegmentation's `slide_inference`, which the authors use, does so
too.) Windows are predicted when their rows are asked for, and only their logits are kept, until the rows are passed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..postprocessing_mtaclip import QueryScores


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side of an image.

    Args:
        length (`int`): of the side.
        window (`int`): length of a window; the only one starts at 0 if it is not smaller than the side.
        stride (`int`): from one window to the next, except to the last one, which ends at the border.
    """
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


class SlidingScores:
    """The scores of one image, made for some rows at a time, from the first row to the last.

    Whole-image prediction is the case of a single window.

    Args:
        image (`Tensor` of shape `(3, h, w)`): the prepared image, without padding.
        predict (`Callable[[Sequence[Tensor]], list[QueryScores]]`): gives the scores of windows `(3, h', w')`.
        window, stride (`tuple[int, int]`): height and width.
        mirrored (`bool`): whether the windows show the mirrored image; the scores are mirrored back.
        depth (`int`): the greater of the number of classes and of queries.
        device (`torch.device`): of the scores.

    Attributes:
        size, floats_per_row, device: as those of [`QueryScores`].
    """

    def __init__(
        self,
        image: Tensor,
        predict: Callable[[Sequence[Tensor]], list[QueryScores]],
        window: tuple[int, int],
        stride: tuple[int, int],
        mirrored: bool,
        depth: int,
        device: torch.device,
    ) -> None:
        self.image, self.predict, self.mirrored, self.device = image, predict, mirrored, device
        self.size = tuple(image.shape[-2:])
        self.window = tuple(min(lengths) for lengths in zip(window, self.size, strict=True))
        self.floats_per_row = depth * self.size[1]
        tops, self.lefts = (window_starts(*lengths) for lengths in zip(self.size, self.window, stride, strict=True))
        self.waiting_tops = tops
        self.predicted: dict[int, list[QueryScores]] = {}

    def next_windows(self) -> list[Tensor]:
        """The next row of windows to predict, from left to right."""
        top = self.waiting_tops[0]
        rows = self.image[:, top : top + self.window[0]]
        rows = rows.flip(-1) if self.mirrored else rows
        return [rows[..., left : left + self.window[1]] for left in self.lefts]

    def add(self, scores: list[QueryScores]) -> None:
        """Keeps the scores of the windows that `next_windows` gave."""
        self.predicted[self.waiting_tops.pop(0)] = scores

    def read(self, start: int, stop: int) -> Tensor:
        """Scores of the rows `start` … `stop - 1`, `(K, stop - start, width)`, float32.

        `start` must not be smaller than in an earlier call.
        """
        while self.waiting_tops and self.waiting_tops[0] < stop:
            self.add(self.predict(self.next_windows()))
        self.predicted = {top: row for top, row in self.predicted.items() if top + self.window[0] > start}
        if len(self.predicted) == len(self.lefts) == 1:
            ((top, (scores,)),) = self.predicted.items()
            means = scores.read(start - top, stop - top)
        else:
            means = self._means(start, stop)
        return means.flip(-1) if self.mirrored else means

    def _means(self, start: int, stop: int) -> Tensor:
        sums, counts = None, torch.zeros(stop - start, self.size[1])
        for top, row in self.predicted.items():
            first, last = max(start, top), min(stop, top + self.window[0])
            if first >= last:
                continue
            for left, scores in zip(self.lefts, row, strict=True):
                part = scores.read(first - top, last - top)
                if sums is None:
                    sums = part.new_zeros(len(part), stop - start, self.size[1])
                rows, columns = slice(first - start, last - start), slice(left, left + self.window[1])
                sums[:, rows, columns] += part
                counts[rows, columns] += 1
        return sums.div_(counts.to(self.device, non_blocking=True))


__all__ = ["SlidingScores", "window_starts"]
