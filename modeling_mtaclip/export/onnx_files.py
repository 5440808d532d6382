# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A model as an ONNX file, and such a file in ONNX Runtime in place of the model."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ..modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipForSemanticSegmentationOutput
from .programs import OUTPUTS, export_program


# GridSample, from which the deformable attention is made, has its present form since opset 20.
OPSET = 20
AXES = {0: "batch", 2: "height", 3: "width"}


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


__all__ = ["OPSET", "OnnxModel", "export_onnx", "quantize_onnx"]
