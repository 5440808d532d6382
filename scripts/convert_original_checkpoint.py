#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint of the authors' MTA-CLIP code into a folder for `from_pretrained`.

python scripts/convert_original_checkpoint.py --checkpoint weights.pth --output_dir DIR
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_mtaclip.conversion import build_original, load_checkpoint, parse_python_config


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="weights with the authors' names: .pth or .safetensors")
    parser.add_argument("--output_dir", required=True, help="folder for the model, its image processor and tokenizer")
    parser.add_argument("--tokenizer", help="folder or Hub id of CLIP's tokenizer (openai/clip-vit-base-patch16)")
    parser.add_argument("--class_names", help="JSON file with the list of classes, if the checkpoint has no names")
    parser.add_argument("--config", help="the run's Python file of mmengine, if the checkpoint has no configuration")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    checkpoint = load_checkpoint(options.checkpoint)
    if options.config is not None:
        checkpoint.run_config = parse_python_config(Path(options.config).read_text(encoding="utf-8"))
    names = None if options.class_names is None else json.loads(Path(options.class_names).read_text(encoding="utf-8"))
    bundle = build_original(checkpoint, names, options.tokenizer)
    bundle.save_pretrained(options.output_dir)
    print(bundle.loading_report)
    print(f"Saved in {options.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
