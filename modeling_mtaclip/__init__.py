# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""MTA-CLIP, language-guided semantic segmentation, for Hugging Face transformers.

Importing the package makes `AutoConfig`, `AutoModel`, `AutoModelForSemanticSegmentation` and `AutoImageProcessor` know
the model type `mtaclip`.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoVideoProcessor,
)
from transformers.utils import is_torchvision_available

from .configuration_mtaclip import MTAClipConfig
from .image_processing_mtaclip import MTAClipImageProcessor, MTAClipImageProcessorPil
from .modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipModel, MTAClipPreTrainedModel


__version__ = "0.1.0"

AutoConfig.register(MTAClipConfig.model_type, MTAClipConfig)
AutoModel.register(MTAClipConfig, MTAClipModel)
AutoModelForSemanticSegmentation.register(MTAClipConfig, MTAClipForSemanticSegmentation)
AutoImageProcessor.register(
    MTAClipConfig, image_processor_classes={"torchvision": MTAClipImageProcessor, "pil": MTAClipImageProcessorPil}
)
# Pipelines look for a video processor as well. Told that there is none, they don't ask on the terminal whether
# they may run a saved folder's code to find one.
if is_torchvision_available():
    AutoVideoProcessor.register(MTAClipConfig, video_processor_classes={})

# `save_pretrained` then stores the code beside the weights, for `trust_remote_code=True`.
MTAClipConfig.register_for_auto_class()
MTAClipModel.register_for_auto_class("AutoModel")
MTAClipForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
MTAClipImageProcessor.register_for_auto_class()
MTAClipImageProcessorPil.register_for_auto_class()

__all__ = [
    "MTAClipConfig",
    "MTAClipForSemanticSegmentation",
    "MTAClipImageProcessor",
    "MTAClipImageProcessorPil",
    "MTAClipModel",
    "MTAClipPreTrainedModel",
]
