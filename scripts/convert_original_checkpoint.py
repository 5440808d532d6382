#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint of the authors' MTA-CLIP code into a folder for `from_pretrained`.

python scripts/convert_original_checkpoint.py --checkpoint weights.pth --output_dir DIR
"""

import argparse
import json
import sys
from pathlib import Path

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.conversion import (
    ModelParts,
    build_original,
    config_from_original,
    from_pretrained_parts,
    load_checkpoint,
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="weights with the authors' names: .pth or .safetensors")
    parser.add_argument("--output_dir", required=True, help="folder for the model, its image processor and tokenizer")
    parser.add_argument("--tokenizer", help="folder or Hub id of CLIP's tokenizer (openai/clip-vit-base-patch16)")
    parser.add_argument("--class_names", help="JSON file with the list of classes, if the checkpoint has no names")
    parser.add_argument(
        "--config", help="JSON file with hyper-parameters, names and token ids, which the checkpoint else tells"
    )
    return parser.parse_args()


def convert(arguments: argparse.Namespace) -> ModelParts:
    if arguments.config is None:
        names = None if arguments.class_names is None else json.loads(Path(arguments.class_names).read_text())
        return from_pretrained_parts(names, original=arguments.checkpoint, tokenizer=arguments.tokenizer)
    config = config_from_original(json.loads(Path(arguments.config).read_text()))
    names = config.class_names_with_no_object()[:-1]
    model, account = build_original(load_checkpoint(arguments.checkpoint), config, names)
    return ModelParts(model, MTAClipImageProcessor(), None, account)


def main() -> None:
    arguments = parse_arguments()
    parts = convert(arguments)
    parts.save_pretrained(arguments.output_dir)
    print(parts.account)
    print(f"Saved in {arguments.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
