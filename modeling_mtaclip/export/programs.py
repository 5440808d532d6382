# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A model as a `torch.export` program for batches and images of any size."""

from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers.utils import is_timm_available

from ..modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipForSemanticSegmentationOutput


# What a program gives: the model's own outputs, from which scores of any size can be made, or finished label maps.
OUTPUTS = {"queries": ("logits", "class_queries_logits", "masks_queries_logits"), "labels": ("labels",)}
# The deepest feature map has one pixel for this many of the image, and must be at least two pixels high and wide.
STRIDE = 32
MIN_SIZE = 33


class ExportableModel(nn.Module):
    """A model whose graph holds for images of any size: it pads them itself, as the image processor does.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): a copy is taken, with its text embeddings as constants.
        outputs (`str`, defaults to `"queries"`): `"queries"` for `logits` `(B, K, h, w)`, `class_queries_logits`
            `(B, Q, K + 1)` and `masks_queries_logits` `(B, Q, h, w)`, at a quarter of the padded image's size;
            `"labels"` for the class of each pixel, `labels` `(B, H, W)`, int64.

    Raises:
        ValueError: unknown outputs.
    """

    def __init__(self, model: MTAClipForSemanticSegmentation, outputs: str = "queries") -> None:
        super().__init__()
        if outputs not in OUTPUTS:
            raise ValueError(f"`outputs` must be one of {list(OUTPUTS)}, got {outputs!r}.")
        self.model = model.for_inference()
        self.outputs = outputs
        _fix_paddings(self.model)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Segments `(B, 3, H, W)` normalised images."""
        height, width = pixel_values.shape[-2:]
        # Only divisions of positive numbers: ONNX rounds towards zero.
        padding = [(length + STRIDE - 1) // STRIDE * STRIDE - length for length in (height, width)]
        predicted = self.model(nn.functional.pad(pixel_values, (0, padding[1], 0, padding[0])))
        if self.outputs == "queries":
            return {name: predicted[name] for name in OUTPUTS["queries"]}
        masks = nn.functional.interpolate(
            predicted.masks_queries_logits,
            size=(height + padding[0], width + padding[1]),
            mode="bilinear",
            align_corners=False,
        )
        probabilities = masks[..., :height, :width].sigmoid().flatten(2)
        classes = predicted.class_queries_logits.softmax(dim=-1)[..., :-1].transpose(1, 2)
        return {"labels": (classes @ probabilities).argmax(dim=1).unflatten(-1, (height, width))}


def export_program(model: MTAClipForSemanticSegmentation, outputs: str = "queries") -> ExportedProgram:
    """Exports a model for batches of any size, of images of any size from 33 pixels on.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): on a CPU, in float32; it stays as it is.
        outputs (`str`, defaults to `"queries"`): as in [`ExportableModel`].

    Returns:
        `torch.export.ExportedProgram`: its `module()` turns `pixel_values` into a dictionary of the outputs.

    Raises:
        ValueError: unknown outputs.
    """
    exportable = ExportableModel(model, outputs)
    sizes = {0: Dim("batch"), 2: Dim("height", min=MIN_SIZE), 3: Dim("width", min=MIN_SIZE)}
    with torch.no_grad():
        return torch.export.export(
            exportable,
            (torch.zeros(2, 3, 3 * STRIDE, 4 * STRIDE),),
            dynamic_shapes={"pixel_values": sizes},
            # Conditions on sizes, e.g. for channels-last memory, are checked when the program runs, not proven before.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


class ProgramModel:
    """A saved program with the outputs `"queries"`, called as the model is called.

    It can take the model's place in [`Segmenter`], as its `forward`, and its outputs go to
    `MTAClipImageProcessor.post_process_semantic_segmentation`.

    Args:
        path (`str` or `Path`): what `torch.export.save` wrote.
    """

    def __init__(self, path: str | Path) -> None:
        self.module = torch.export.load(path).module()

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> MTAClipForSemanticSegmentationOutput:
        """Segments `(B, 3, H, W)` normalised images."""
        return MTAClipForSemanticSegmentationOutput(**self.module(pixel_values))


def _fix_paddings(model: nn.Module) -> None:
    """Gives timm's convolutions with TensorFlow's padding, which depends on the image's size, a fixed padding.

    The two are equal for sizes that are multiples of the stride, which all sizes in the padded image are.
    """
    if not is_timm_available():
        return
    from timm.layers.conv2d_same import Conv2dSame

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _with_fixed_padding(child))


def _with_fixed_padding(convolution: nn.Conv2d) -> nn.Sequential:
    # What the kernel covers beyond a stride, the smaller half in front; (left, right, top, bottom).
    beyond = [
        max(dilation * (kernel - 1) + 1 - stride, 0)
        for kernel, stride, dilation in zip(
            convolution.kernel_size, convolution.stride, convolution.dilation, strict=True
        )
    ]
    padding = tuple(chain.from_iterable((total // 2, total - total // 2) for total in reversed(beyond)))
    unpadded = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        dilation=convolution.dilation,
        groups=convolution.groups,
        bias=convolution.bias is not None,
    )
    unpadded.load_state_dict(convolution.state_dict())
    return nn.Sequential(nn.ZeroPad2d(padding), unpadded)


__all__ = ["OUTPUTS", "ExportableModel", "ProgramModel", "export_program"]
