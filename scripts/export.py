#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports a trained model: without its text encoder, as a `torch.export` program, or as an ONNX file.

python scripts/export.py --model_name_or_path outputs/scenes --format onnx --output_dir outputs/onnx --check a.jpg

Writes `model.onnx`, `model.int8.onnx` or `model.pt2` and the image processor, or for `--format inference` a folder for
`from_pretrained`. With `--check`, compares its predictions with the model's and fails where too many differ.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.export import (
    OnnxModel,
    ProgramModel,
    compare_with_model,
    export_onnx,
    export_program,
    quantize_onnx,
)


# Below this share of pixels with the same class, an exported model counts as broken.
MIN_EQUAL_PIXELS = {"inference": 1, "torch": 0.999, "onnx": 0.999, "onnx-int8": 0.99}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="folder or Hub id of a trained model")
    parser.add_argument("--format", required=True, choices=list(MIN_EQUAL_PIXELS))
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for what is exported")
    parser.add_argument(
        "--outputs",
        default="queries",
        choices=["queries", "labels"],
        help="of the graph: class and mask logits of the queries, from which scores of any size are made (default), "
        "or the class of each pixel",
    )
    parser.add_argument(
        "--image_size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="the only size of images that the graph takes; default: any. Backbones with shifted windows need it",
    )
    parser.add_argument("--check", nargs="+", default=[], help="images to compare predictions on")
    arguments = parser.parse_args()
    if arguments.check and arguments.outputs == "labels" and arguments.format != "inference":
        parser.error("--check compares scores, which --outputs labels does not give: check --outputs queries")
    return arguments


def export(arguments: argparse.Namespace, model: MTAClipForSemanticSegmentation) -> Callable[[torch.Tensor], Any]:
    """Writes the files; returns the exported model as it is loaded from them."""
    folder, graph = arguments.output_dir, (arguments.outputs, arguments.image_size)
    if arguments.format == "inference":
        model.save_for_inference(folder)
        return MTAClipForSemanticSegmentation.from_pretrained(folder)
    if arguments.format == "torch":
        torch.export.save(export_program(model, *graph), folder / "model.pt2")
        return ProgramModel(folder / "model.pt2")
    export_onnx(model, folder / "model.onnx", *graph)
    if arguments.format == "onnx":
        return OnnxModel(folder / "model.onnx")
    quantize_onnx(folder / "model.onnx", folder / "model.int8.onnx")
    return OnnxModel(folder / "model.int8.onnx")


def main() -> int:
    arguments = parse_arguments()
    try:
        model = MTAClipForSemanticSegmentation.from_pretrained(arguments.model_name_or_path)
        processor = MTAClipImageProcessor.from_pretrained(arguments.model_name_or_path)
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        exported = export(arguments, model)
        processor.save_pretrained(arguments.output_dir)
        for path in sorted(arguments.output_dir.glob("model.*")):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        if not arguments.check:
            return 0
        result = compare_with_model(exported, model, processor, arguments.check)
    except (ValueError, ImportError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    print(
        f"{result.num_images} images: {result.equal_pixels:.4%} of the pixels have the same class, "
        f"scores differ by at most {result.max_score_difference:.1e}"
    )
    return 0 if result.equal_pixels >= MIN_EQUAL_PIXELS[arguments.format] else 1


if __name__ == "__main__":
    sys.exit(main())
