# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Models as graphs for other runtimes: `torch.export` programs and ONNX files, and their comparison with the model."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers.image_utils import ImageInput

from .deformable_attention_mtaclip import MultiScaleDeformableAttention
from .image_processing_mtaclip import MTAClipImageProcessor
from .inference import Segmenter
from .modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipForSemanticSegmentationOutput


# What a program gives: the model's own outputs, from which scores of any size can be made, or finished label maps.
OUTPUTS = {"queries": ("logits", "class_queries_logits", "masks_queries_logits"), "labels": ("labels",)}
# The deepest feature map has one pixel for this many of the image, and must be at least two pixels high and wide.
STRIDE = 32
MIN_SIZE = 33
# GridSample, from which the deformable attention is made, has its present form since opset 20.
OPSET = 20
AXES = {0: "batch", 2: "height", 3: "width"}


class ExportableModel(nn.Module):
    """A copy of a model, in float32 on the CPU and with its text embeddings as constants, whose graph holds for images
    of any size: it pads them itself, as the image processor does. For the outputs see [`export_program`]."""

    def __init__(self, model: MTAClipForSemanticSegmentation, outputs: str = "queries") -> None:
        super().__init__()
        if outputs not in OUTPUTS:
            raise ValueError(f"`outputs` must be one of {list(OUTPUTS)}, got {outputs!r}.")
        if model.model.backbone is None:
            raise ValueError("A model without backbone (`backbone_config` is None) takes no images to export it for.")
        self.model = model.for_inference().float().cpu()
        self.outputs = outputs
        _make_traceable(self.model)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Segments `(B, C, H, W)` normalized images."""
        height, width = pixel_values.shape[-2:]
        # Only divisions of positive numbers: ONNX rounds toward zero.
        padding = [(length + STRIDE - 1) // STRIDE * STRIDE - length for length in (height, width)]
        predicted = self.model(nn.functional.pad(pixel_values, (0, padding[1], 0, padding[0])))
        if self.outputs == "queries":
            return {name: predicted[name] for name in OUTPUTS["queries"]}
        padded = (height + padding[0], width + padding[1])
        masks = nn.functional.interpolate(
            predicted.masks_queries_logits, size=padded, mode="bilinear", align_corners=False
        )
        classes = predicted.class_queries_logits.softmax(dim=-1)[..., :-1].transpose(1, 2)
        labels = (classes @ masks.sigmoid().flatten(2)).argmax(dim=1).unflatten(-1, padded)
        # Not by slices: whether they are one piece of memory depends on the size.
        rows, columns = (torch.arange(length, device=labels.device) for length in (height, width))
        return {"labels": labels.index_select(1, rows).index_select(2, columns)}


def export_program(
    model: MTAClipForSemanticSegmentation, outputs: str = "queries", image_size: tuple[int, int] | None = None
) -> ExportedProgram:
    """Exports a model for batches of any size.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): it stays as it is; the program is in float32, for the CPU.
        outputs (`str`, defaults to `"queries"`): `"queries"` for `logits` `(B, K, h, w)`, `class_queries_logits`
            `(B, Q, K + 1)` and `masks_queries_logits` `(B, Q, h, w)`, at a quarter of the padded image's size;
            `"labels"` for the class of each pixel, `labels` `(B, H, W)`, int64.
        image_size (`tuple[int, int]`, *optional*): the only height and width that the program takes, multiples of 32;
            by default it takes all from 33 pixels on. Backbones with shifted windows (Swin) need it.

    Returns:
        `torch.export.ExportedProgram`: its `module()` turns `pixel_values` into a dictionary of the outputs.

    Raises:
        ValueError: unknown outputs, an image size that can't be, or a model that can't be exported.
    """
    exportable = ExportableModel(model, outputs)
    if image_size is None and any(hasattr(module, "shift_size") for module in exportable.modules()):
        raise ValueError(
            "The backbone has shifted windows (Swin), whose graph depends on the size of the image: export it for one "
            "`image_size` (height and width, multiples of 32)."
        )
    if image_size is not None and (min(image_size) < MIN_SIZE or any(length % STRIDE for length in image_size)):
        raise ValueError(f"`image_size` must be a height and width of 64, 96, 128, … pixels, got {tuple(image_size)}.")
    batch, free = {0: Dim("batch")}, {2: Dim("height", min=MIN_SIZE), 3: Dim("width", min=MIN_SIZE)}
    images = torch.zeros(2, model.config.backbone_config.num_channels, *(image_size or (3 * STRIDE, 4 * STRIDE)))
    with torch.no_grad():
        return torch.export.export(
            exportable,
            (images,),
            dynamic_shapes={"pixel_values": batch | ({} if image_size else free)},
            # Conditions on sizes, e.g. for channels-last memory, are checked when the program runs, not proven before.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


class ProgramModel:
    """A program with the outputs `"queries"` that `torch.export.save` wrote, called as the model is called.

    It can take the model's place as the `forward` of [`Segmenter`]; the image processor post-processes its outputs.
    """

    def __init__(self, path: str | Path) -> None:
        self.module = torch.export.load(path).module()

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> MTAClipForSemanticSegmentationOutput:
        """Segments `(B, C, H, W)` normalized images."""
        return MTAClipForSemanticSegmentationOutput(**self.module(pixel_values))


def export_onnx(
    model: MTAClipForSemanticSegmentation,
    path: str | Path,
    outputs: str = "queries",
    image_size: tuple[int, int] | None = None,
) -> None:
    """Writes a model as an ONNX file, for batches of any size. Its metadata hold the class names as JSON, `id2label`.

    Args:
        model, outputs, image_size: as for [`export_program`].
        path (`str` or `Path`): the file; weights above 2 GB go into a second one beside it.

    Raises:
        ImportError: onnx and onnxscript are not installed.
        ValueError: as [`export_program`].
    """
    onnx_program = torch.onnx.export(
        export_program(model, outputs, image_size),
        input_names=["pixel_values"],
        output_names=list(OUTPUTS[outputs]),
        opset_version=OPSET,
        dynamic_shapes={"pixel_values": AXES if image_size is None else {0: "batch"}},
        verbose=False,
    )
    onnx_program.model.metadata_props["id2label"] = json.dumps(model.config.id2label)
    onnx_program.save(path)


def quantize_onnx(path: str | Path, int8_path: str | Path) -> None:
    """Writes an ONNX file anew with int8 weights in its matrix products; their inputs become uint8 when it runs.

    The weights have 7 bits (-64 … 64, a scale for each column): x86 processors without VNNI add two products of 8 bits
    in 16, which more bits would overflow. 2 * 255 * 64 fits, so that the file is right on every processor.

    Convolutions stay as they are: without known ranges of their inputs, int8 makes them slower.

    Args:
        path, int8_path (`str` or `Path`): the file that [`export_onnx`] wrote, and the new one.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
    quantize_dynamic(path, int8_path, op_types_to_quantize=["MatMul"], **options)


class OnnxModel:
    """An ONNX file with the outputs `"queries"` in ONNX Runtime, called as the model is called; see [`ProgramModel`].

    Args:
        path (`str` or `Path`): the file.
        num_threads (`int`, *optional*): threads of an operator; ONNX Runtime's choice by default.
    """

    def __init__(self, path: str | Path, num_threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, pixel_values: Tensor) -> MTAClipForSemanticSegmentationOutput:
        """Segments `(B, 3, H, W)` normalized images."""
        names = OUTPUTS["queries"]
        arrays = self.session.run(list(names), {"pixel_values": pixel_values.numpy(force=True)})
        return MTAClipForSemanticSegmentationOutput(**dict(zip(names, map(torch.from_numpy, arrays), strict=True)))


@dataclass
class Comparison:
    """Two predictions of some images: the share of all pixels with the same class, and the largest difference of any
    class's score at any pixel. The scores of a pixel are sums of products of probabilities."""

    num_images: int
    equal_pixels: float
    max_score_difference: float


def compare_with_model(
    forward: Callable[[Tensor], Any],
    model: MTAClipForSemanticSegmentation,
    image_processor: MTAClipImageProcessor,
    images: Iterable[ImageInput],
) -> Comparison:
    """Predicts images with a model and with an exported one, at their own sizes.

    Args:
        forward (`Callable`): the exported model, e.g. an [`OnnxModel`]: from `pixel_values` to the model's outputs.
        model, image_processor: what was exported, and its image processor.
        images (`Iterable[ImageInput]`): paths too; none are a `ValueError`.
    """
    segmenters = [Segmenter(model, image_processor), Segmenter(model, image_processor, forward=forward)]
    count, equal, total, difference = 0, 0, 0, 0.0
    for image in images:
        expected, actual = (segmenter.scores(image) for segmenter in segmenters)
        same = expected.argmax(dim=0) == actual.argmax(dim=0)
        count, equal, total = count + 1, equal + int(same.sum()), total + same.numel()
        difference = max(difference, (expected - actual).abs().max().item())
    if not count:
        raise ValueError("There are no images to compare predictions on: give at least one.")
    return Comparison(count, equal / total, difference)


def _make_traceable(model: MTAClipForSemanticSegmentation) -> None:
    """Chooses forms of layers, with the same results, that other runtimes know and that don't depend on sizes."""
    if hasattr(model.model.backbone, "set_attn_implementation"):
        model.model.backbone.set_attn_implementation("eager")
    for module in model.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.forward = module.attend_on_accelerators
        elif hasattr(module, "fused_attn"):
            module.fused_attn = False
        elif type(module).__name__ == "Conv2dSame":
            module.forward = partial(_convolve, module)


def _convolve(layer: nn.Conv2d, maps: Tensor) -> Tensor:
    """timm's convolution with TensorFlow's padding, for maps whose sizes are multiples of the stride, as here."""
    # What the kernel covers beyond a stride, the smaller half in front.
    sizes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    down, right = (max(dilation * (kernel - 1) + 1 - stride, 0) for kernel, stride, dilation in sizes)
    padded = nn.functional.pad(maps, (right // 2, right - right // 2, down // 2, down - down // 2))
    return nn.functional.conv2d(padded, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


__all__ = [
    "OUTPUTS",
    "Comparison",
    "ExportableModel",
    "OnnxModel",
    "ProgramModel",
    "compare_with_model",
    "export_onnx",
    "export_program",
    "quantize_onnx",
]
