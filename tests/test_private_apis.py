# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Every part of other libraries that this package uses and that they don't promise to keep.

When a new version moves one, the test of its row fails and names the file to mend. One row for each part: where it is,
which file uses it, what for, and the parameters by which it is called, if any.
"""

import importlib
import inspect

import pytest
from transformers import SwinConfig


PRIVATE_APIS = [
    # Part, file that uses it, what for, parameters that it must have.
    (
        "torch.ops.aten._embedding_bag_per_sample_weights_backward",
        "deformable_attention_mtaclip.py",
        "gradients of shares where PyTorch has no MKL",
        [],
    ),
    ("transformers.PreTrainedModel._from_config", "modeling_mtaclip.py", "builds the text encoder", ["config"]),
    ("transformers.PreTrainedModel._init_weights", "modeling_mtaclip.py", "new weights", ["self", "module"]),
    ("transformers.PreTrainedModel._auto_class", "modeling_mtaclip.py", "whether code is saved beside weights", []),
    (
        "transformers.PreTrainedConfig._attn_implementation",
        "modeling_mtaclip.py",
        "which attention function runs",
        [],
    ),
    (
        "transformers.models.auto.modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
        "modeling_mtaclip.py",
        "pipelines look supported models up here",
        [],
    ),
    (
        "transformers.models.clip.modeling_clip.eager_attention_forward",
        "modeling_mtaclip.py",
        "attention that gives its weights",
        ["module", "query", "key", "value", "attention_mask", "scaling", "dropout"],
    ),
    ("transformers.PreTrainedModel.is_custom_code", "modeling_mtaclip.py", "what new weights are made by", []),
    (
        "transformers.models.clip.modeling_clip.CLIPEncoder.forward",
        "modeling_mtaclip.py, backbone_mtaclip.py",
        "runs CLIP's layers on prompts and patches",
        ["self", "inputs_embeds", "attention_mask"],
    ),
    (
        "transformers.models.clip.modeling_clip.CLIPVisionEmbeddings.interpolate_pos_encoding",
        "backbone_mtaclip.py",
        "overridden for the authors' bilinear table of positions",
        ["self", "embeddings", "height", "width"],
    ),
    (
        "transformers.backbone_utils.BackboneConfigMixin.set_output_features_output_indices",
        "backbone_mtaclip.py",
        "stages of CLIP's encoders",
        ["self", "out_features", "out_indices"],
    ),
    (
        "transformers.image_processing_utils.BaseImageProcessor._standardize_kwargs",
        "image_processing_common_mtaclip.py",
        "overridden to refuse options without effect",
        ["size", "crop_size", "pad_size", "default_to_square"],
    ),
    (
        "transformers.image_processing_utils.BaseImageProcessor._preprocess_image_like_inputs",
        "image_processing_common_mtaclip.py",
        "overridden for label maps; gets all positional arguments of `preprocess` and all settings",
        ["images", "args", "kwargs"],
    ),
    (
        "torchvision.transforms.v2.Transform._transformed_types",
        "data/augmentation.py",
        "the distortion changes images alone",
        [],
    ),
    ("evaluate.Metric._compute", "metrics/mean_iou.py", "overridden: scripts call it", ["predictions", "references"]),
    ("transformers.Trainer._save_checkpoint", "training/trainer.py", "saves before an error", ["model", "trial"]),
    ("transformers.Trainer.save_model", "training/trainer.py", "is told not to push", ["_internal_call"]),
    ("timm.layers.Conv2dSame", "export/programs.py", "its padding depends on sizes; known by its name", ["padding"]),
    ("evaluate.Metric._build_data_dir", "metrics/mean_iou.py", "overridden: nothing is stored", []),
]


def find(path):
    """A part by its dotted path: the longest importable module, then attributes."""
    names = path.split(".")
    for length in range(len(names), 0, -1):
        try:
            part = importlib.import_module(".".join(names[:length]))
        except ModuleNotFoundError:
            continue
        for name in names[length:]:
            part = getattr(part, name)
        return part
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize(("path", "file", "purpose", "parameters"), PRIVATE_APIS, ids=[row[0] for row in PRIVATE_APIS])
def test_private_part_is_where_it_was(path, file, purpose, parameters):
    try:
        part = find(path)
    except (AttributeError, ModuleNotFoundError):
        pytest.fail(f"{path} is gone in this version of {path.partition('.')[0]}: {file} uses it ({purpose}).")
    missing = set(parameters) - inspect.signature(part).parameters.keys() if parameters else set()
    assert not missing, f"{path} has no parameters {sorted(missing)} any more: {file} uses it ({purpose})."


@pytest.mark.parametrize(
    ("make_layer", "attribute", "purpose"),
    [
        (
            lambda: find("timm.models.vision_transformer.Attention")(8),
            "fused_attn",
            "attention that other runtimes know",
        ),
        (
            lambda: find("timm.models.swin_transformer.SwinTransformerBlock")(8, (14, 14)),
            "shift_size",
            "backbones with shifted windows are known by it",
        ),
        (
            lambda: find("transformers.models.swin.modeling_swin.SwinLayer")(SwinConfig(), 96, (14, 14), 3),
            "shift_size",
            "backbones with shifted windows are known by it",
        ),
    ],
)
def test_private_attribute_is_where_it_was(make_layer, attribute, purpose):
    layer = make_layer()
    assert hasattr(layer, attribute), f"{type(layer)} has no {attribute}: export/programs.py uses it ({purpose})."
