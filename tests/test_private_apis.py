# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Every part of other libraries that this package uses and that they don't promise to keep.

When a new version moves one, the test of its row fails and names the file to mend.
"""

import importlib
import inspect
import re

import pytest
from transformers import SwinConfig


# The file that uses a part and what for; where the part is, and the parameters by which it is called, if any.
PRIVATE_APIS = """
deformable_attention_mtaclip.py: gradients of shares where PyTorch has no MKL
    torch.ops.aten._embedding_bag_per_sample_weights_backward
modeling_mtaclip.py: builds the text encoder
    transformers.PreTrainedModel._from_config(config)
modeling_mtaclip.py: new weights
    transformers.PreTrainedModel._init_weights(self, module)
modeling_mtaclip.py: whether code is saved beside weights
    transformers.PreTrainedModel._auto_class
modeling_mtaclip.py: what new weights are made by
    transformers.PreTrainedModel.is_custom_code
modeling_mtaclip.py: which attention function runs
    transformers.PreTrainedConfig._attn_implementation
modeling_mtaclip.py: pipelines look supported models up here
    transformers.models.auto.modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
modeling_mtaclip.py: attention that gives its weights
    CLIP.eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout)
modeling_mtaclip.py, backbone_mtaclip.py: runs CLIP's layers on prompts and patches
    CLIP.CLIPEncoder.forward(self, inputs_embeds, attention_mask)
backbone_mtaclip.py: overridden for the authors' bilinear table of positions
    CLIP.CLIPVisionEmbeddings.interpolate_pos_encoding(self, embeddings, height, width)
backbone_mtaclip.py: stages of CLIP's encoders
    transformers.backbone_utils.BackboneConfigMixin.set_output_features_output_indices(self, out_features, out_indices)
image_processing_common_mtaclip.py: overridden to refuse options without effect
    PROCESSOR._standardize_kwargs(size, crop_size, pad_size, default_to_square)
image_processing_common_mtaclip.py: overridden for label maps; gets all positional arguments and all settings
    PROCESSOR._preprocess_image_like_inputs(images, args, kwargs)
metrics/mean_iou.py: overridden: scripts call it
    evaluate.Metric._compute(predictions, references)
metrics/mean_iou.py: overridden: nothing is stored
    evaluate.Metric._build_data_dir
training/trainer.py: saves before an error
    transformers.Trainer._save_checkpoint(model, trial)
training/trainer.py: is told not to push
    transformers.Trainer.save_model(_internal_call)
export/programs.py: its padding depends on sizes; known by its name
    timm.layers.Conv2dSame(padding)
"""
SHORT = {"CLIP": "transformers.models.clip.modeling_clip"}
SHORT["PROCESSOR"] = "transformers.image_processing_utils.BaseImageProcessor"
ROWS = re.findall(r"^(\S.*?): (.*)\n    (\w+)\.([\w.]+)\(?(.*?)\)?$", PRIVATE_APIS, flags=re.MULTILINE)


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


@pytest.mark.parametrize(("file", "purpose", "home", "name", "parameters"), ROWS, ids=[row[3] for row in ROWS])
def test_private_part_is_where_it_was(file, purpose, home, name, parameters):
    path = f"{SHORT.get(home, home)}.{name}"
    try:
        part = find(path)
    except (AttributeError, ModuleNotFoundError):
        pytest.fail(f"{path} is gone in this version of {path.partition('.')[0]}: {file} uses it ({purpose}).")
    missing = set(parameters.split(", ")) - inspect.signature(part).parameters.keys() if parameters else set()
    assert not missing, f"{path} has no parameters {sorted(missing)} any more: {file} uses it ({purpose})."


@pytest.mark.parametrize(
    ("layer", "arguments", "attribute"),
    [
        # Attention that other runtimes know; backbones with shifted windows are known by the other.
        ("timm.models.vision_transformer.Attention", (8,), "fused_attn"),
        ("timm.models.swin_transformer.SwinTransformerBlock", (8, (14, 14)), "shift_size"),
        ("transformers.models.swin.modeling_swin.SwinLayer", (SwinConfig(), 96, (14, 14), 3), "shift_size"),
    ],
)
def test_private_attribute_is_where_it_was(layer, arguments, attribute):
    message = f"{layer} has no {attribute} any more: export/programs.py uses it."
    assert hasattr(find(layer)(*arguments), attribute), message
