# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A model as an ONNX file, and such a file in ONNX Runtime in place of the model."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ..deformable_attention_mtaclip import attend_by_grid_sample
from ..modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipForSemanticSegmentationOutput
from .programs import OUTPUTS, export_program


# GridSample, from which the deformable attention is made, has its present form since opset 20.
OPSET = 20
AXES = {0: "batch", 2: "height", 3: "width"}
INT8_OPERATORS = ("MatMul", "Gemm")


def export_onnx(model: MTAClipForSemanticSegmentation, path: str | Path, outputs: str = "queries") -> None:
    """Writes a model as an ONNX file, for batches of any size, of images of any size from 33 pixels on.

    The file's metadata hold the class names as JSON, `id2label`.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): on a CPU, in float32; it stays as it is.
        path (`str` or `Path`): the file; weights above 2 GB go into a second one beside it.
        outputs (`str`, defaults to `"queries"`): `"queries"` for `logits`, `class_queries_logits` and
            `masks_queries_logits` at a quarter of the size, `"labels"` for the class of each pixel.

    Raises:
        ImportError: onnx and onnxscript are not installed.
        ValueError: unknown outputs.
    """
    # ONNX has GridSample, but no operator of ours.
    decompositions = {torch.ops.mtaclip.deformable_attention.default: attend_by_grid_sample}
    program = export_program(model, outputs).run_decompositions(decompositions)
    onnx_program = torch.onnx.export(
        program,
        input_names=["pixel_values"],
        output_names=list(OUTPUTS[outputs]),
        opset_version=OPSET,
        dynamic_shapes={"pixel_values": AXES},
        verbose=False,
    )
    onnx_program.model.metadata_props["id2label"] = json.dumps(model.config.id2label)
    onnx_program.save(path)


def quantize_onnx(path: str | Path, int8_path: str | Path) -> None:
    """Writes an ONNX file anew with int8 weights in its matrix products; their inputs become int8 when it runs.

    Convolutions stay as they are: without known ranges of their inputs, int8 makes them slower.

    Args:
        path, int8_path (`str` or `Path`): the file that [`export_onnx`] wrote, and the new one.

    Raises:
        ImportError: onnxruntime and onnx are not installed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, int8_path, op_types_to_quantize=list(INT8_OPERATORS), weight_type=QuantType.QInt8)


class OnnxModel:
    """An ONNX file with the outputs `"queries"`, called as the model is called.

    It can take the model's place in [`Segmenter`], as its `forward`, and its outputs go to
    `MTAClipImageProcessor.post_process_semantic_segmentation`.

    Args:
        path (`str` or `Path`): the file.
        num_threads (`int`, *optional*): threads of an operator; ONNX Runtime's choice by default.

    Raises:
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, num_threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, pixel_values: Tensor) -> MTAClipForSemanticSegmentationOutput:
        """Segments `(B, 3, H, W)` normalised images."""
        names = OUTPUTS["queries"]
        arrays = self.session.run(list(names), {"pixel_values": pixel_values.numpy(force=True)})
        return MTAClipForSemanticSegmentationOutput(
            **{name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
        )


__all__ = ["OPSET", "OnnxModel", "export_onnx", "quantize_onnx"]
