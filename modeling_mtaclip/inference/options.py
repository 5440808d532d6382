# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""How images are predicted: whole or by sliding windows, and with which test-time augmentation."""

from collections.abc import Sequence
from dataclasses import dataclass


MODES = ("whole", "slide")
# The paper's for ADE20K.
WINDOW, STRIDE = (512, 512), (341, 341)
TTA_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class InferenceOptions:
    """How images are predicted.

    Attributes:
        mode (`str`, defaults to `"whole"`): `"whole"` predicts an image at once, `"slide"` by overlapping windows.
        window (`tuple[int, int]`, defaults to `(512, 512)`): height and width of a window in pixels of the prepared
            image; a smaller image is one window.
        stride (`tuple[int, int]`, defaults to `(341, 341)`): from one window to the next, at most `window`.
        scales (`tuple[float, ...]`, defaults to `(1.0,)`): sizes at which an image is predicted, as multiples of the
            size that the image processor gives it.
        flip (`bool`, defaults to `False`): whether the mirrored image is predicted too.
        batch_size (`int`, defaults to 1): images or windows of one size that share a forward pass.

    Raises:
        ValueError: an unknown mode, or sizes that are out of range.
    """

    mode: str = "whole"
    window: tuple[int, int] = WINDOW
    stride: tuple[int, int] = STRIDE
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"The inference mode must be one of {MODES}, got {self.mode!r}.")
        for name in ("window", "stride"):
            value = getattr(self, name)
            if len(value) != 2 or min(value) < 1:
                raise ValueError(f"`{name}` must be a positive height and width, got {value}.")
        if any(stride > window for stride, window in zip(self.stride, self.window, strict=True)):
            raise ValueError(
                f"`stride` {self.stride} must not exceed `window` {self.window}: pixels would be left out."
            )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"`scales` must be positive factors, got {self.scales}.")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be positive, got {self.batch_size}.")

    @classmethod
    def from_arguments(
        cls,
        mode: str = "whole",
        window: Sequence[int] = WINDOW,
        stride: Sequence[int] = STRIDE,
        tta: bool = False,
        batch_size: int = 1,
    ) -> "InferenceOptions":
        """Options as command lines give them: one number stands for height and width, and `tta` for the test-time
        augmentation of the paper, scales 0.5 … 1.75 and mirrored."""
        augmentation = {"scales": TTA_SCALES, "flip": True} if tta else {}
        window, stride = (tuple(each) * 2 if len(each) == 1 else tuple(each) for each in (window, stride))
        return cls(mode, window, stride, batch_size=batch_size, **augmentation)


__all__ = ["MODES", "STRIDE", "TTA_SCALES", "WINDOW", "InferenceOptions"]
