#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint of the authors' MTA-CLIP code into a folder for `from_pretrained`.

python scripts/convert_original_checkpoint.py --checkpoint weights.pth --config config.json --output_dir DIR
"""

import argparse
import json
import sys
from pathlib import Path

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.conversion import config_from_original, convert_original_state_dict, load_original_weights


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="weights with the authors' names: .safetensors or .pth")
    parser.add_argument("--config", required=True, help="JSON file with the run's hyper-parameters and token ids")
    parser.add_argument("--output_dir", required=True, help="folder for the converted model and its image processor")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    config = config_from_original(json.loads(Path(arguments.config).read_text()))
    state_dict, report = convert_original_state_dict(load_original_weights(arguments.checkpoint), config)
    model = MTAClipForSemanticSegmentation(config)
    missing = sorted(model.state_dict().keys() - state_dict.keys())
    if missing:
        raise ValueError(f"The checkpoint lacks the tensors for {missing}.")
    model.load_state_dict(state_dict)
    model.save_pretrained(arguments.output_dir)
    MTAClipImageProcessor().save_pretrained(arguments.output_dir)
    print(report)
    print(f"Saved in {arguments.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
