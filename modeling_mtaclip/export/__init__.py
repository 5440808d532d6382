# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Models as graphs for other runtimes: `torch.export` programs and ONNX files, and their comparison with the model."""

from .onnx_files import OnnxModel, export_onnx, quantize_onnx
from .programs import Comparison, ProgramModel, compare_with_model, export_program


__all__ = [
    "Comparison",
    "OnnxModel",
    "ProgramModel",
    "compare_with_model",
    "export_onnx",
    "export_program",
    "quantize_onnx",
]
