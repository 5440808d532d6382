# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The tiny model whose numbers the authors' code computed, as a checkpoint of that code."""

import json
from pathlib import Path
from typing import Any

from modeling_mtaclip import MTAClipForSemanticSegmentation
from modeling_mtaclip.conversion import Checkpoint, build_original, load_checkpoint


# The vocabulary is cut to eleven tokens; this order of the names gives the same tokens.
CLASS_NAMES = ["wall", "building", "sky", "floor", "road", "swimming pool"]


class ReferenceTokenizer:
    """The reference's eleven tokens."""

    bos_token_id, eos_token_id = 9, 10
    words = {"road": 1, "building": 2, "sky": 3, "wall": 4, "pool": 5, "floor": 6, "swimming": 7, "none": 8}  # noqa: RUF012

    def __len__(self) -> int:
        return 11

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [self.words[word] for word in text.lower().split()]}


def load_reference(folder: Path) -> Checkpoint:
    """The reference's weights with its hyper-parameters, where mmengine keeps them."""
    sizes: dict[str, Any] = json.loads((folder / "config.json").read_text())
    decode_head = {
        "transformer_decoder": {
            "layer_cfg": {"self_attn_cfg": {"num_heads": sizes["decoder"]["num_attention_heads"]}}
        },
        "train_cfg": {"num_points": sizes["loss"]["num_points"]},
    }
    text_encoder = {"transformer_heads": sizes["text"]["num_attention_heads"]}
    checkpoint = load_checkpoint(folder / "weights.safetensors")
    checkpoint.class_names = sizes["class_names"]
    checkpoint.run_config = {"model": {"decode_head": decode_head, "text_encoder": text_encoder}}
    return checkpoint


def load_reference_model(folder: Path) -> MTAClipForSemanticSegmentation:
    """Our model with the reference's weights, in evaluation mode."""
    return build_original(load_reference(folder), tokenizer=ReferenceTokenizer()).model
