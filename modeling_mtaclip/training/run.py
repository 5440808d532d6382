# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A run from options to results: data and model are loaded and checked first, then it trains, evaluates and saves."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, set_seed
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..configuration_mtaclip import MTAClipConfig
from ..conversion import ModelBundle, from_pretrained_parts, load_tokenizer, make_tokenizer, small_text_config
from ..data import (
    Augmentation,
    SegmentationData,
    SegmentationExamples,
    SegmentationStream,
    TrainingCollator,
    load_segmentation_dataset,
)
from ..image_processing_mtaclip import MTAClipImageProcessor
from ..metrics import json_ready
from ..metrics.confusion import gathered
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from .arguments import (
    CITYSCAPES_METRICS,
    CONFIG_FIELDS,
    DataArguments,
    ModelArguments,
    MTAClipTrainingArguments,
    changed_options,
    num_cores,
)
from .checkpoints import checkpoint_to_resume, require_same_model
from .evaluated_images import EvaluatedImage, save_pictures
from .evaluation import categories_of
from .report import best_and_worst, write_report
from .trainer import MTAClipTrainer


logger = logging.get_logger(__name__)

DEFAULT_BACKBONE = "resnet50"
# How many images the report's masks and class texts are from, beside the best and the worst.
NUM_ALIGNED_IMAGES = 12


@dataclass
class Run:
    """A run that is ready to start; each step does what the arguments ask for.

    Attributes:
        trainer ([`MTAClipTrainer`]): with model and data.
        data ([`SegmentationData`]): the data set.
        checkpoint (`str`, *optional*): folder of the checkpoint to resume from.
        metrics (`dict[str, Any]`): what `metrics.json` holds, as far as the run has come.
    """

    trainer: MTAClipTrainer
    data: SegmentationData
    checkpoint: str | None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where everything is saved."""
        return Path(self.trainer.args.output_dir)

    def execute(self) -> dict[str, Any]:
        """Trains, evaluates and saves, and returns what `metrics.json` holds."""
        self.train()
        self.evaluate()
        self.save_results()
        return self.metrics

    def train(self) -> None:
        """Trains and saves the model, image processor and tokenizer."""
        trainer = self.trainer
        if not trainer.args.do_train:
            return
        self.metrics |= trainer.train(resume_from_checkpoint=self.checkpoint).metrics
        self.metrics["num_bad"] = self._count_bad(trainer.train_dataset)
        if trainer.checkpoints.terminated:
            sys.exit("The run was told to stop. Resume it with its options and --resume_from_checkpoint last.")
        # `_internal_call`: else the model would be pushed before it is evaluated.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        self._write_metrics()
        if trainer.is_fsdp_enabled:
            # Whole on every process, where training had it in shards.
            trainer.accelerator.wait_for_everyone()
            trainer.model = type(trainer.model).from_pretrained(self.folder).eval()

    def evaluate(self) -> None:
        """Evaluates the model on the validation images."""
        if not self.trainer.args.do_eval:
            return
        self.metrics |= self.trainer.evaluate()
        scores = self.trainer.scores
        self.metrics |= {f"eval_{name}": value for name, value in scores.details().items()}
        self.metrics["eval_num_bad"] = self._count_bad(self.trainer.eval_dataset)
        self.metrics["classes"] = scores.per_class()

    def save_results(self) -> None:
        """Writes metrics, model card, pictures and report, prints what they say, and pushes to the Hub if asked to."""
        args, trainer = self.trainer.args, self.trainer
        self._write_metrics()
        if args.do_train:
            trainer.create_model_card()
        images = self._shown_images() if args.do_eval else {}
        if trainer.is_world_process_zero():
            if args.do_eval:
                print(_scores_in_words(self.metrics, trainer.scores.warnings()))
                self._save_views(images)
            if args.do_train:
                print(f"Model, image processor, tokenizer and model card: {self.folder}")
            print(f"Metrics: {self.folder / 'metrics.json'}")
        if args.do_train and args.push_to_hub:
            trainer.push_to_hub()

    def _shown_images(self) -> dict[str, EvaluatedImage]:
        """Images for pictures and report by name: some from all over the validation data, for the report also the best
        and the worst. All processes must call this: each predicts a share."""
        args, trainer = self.trainer.args, self.trainer
        number, names = args.num_pictures, set()
        if args.report:
            number = max(number, NUM_ALIGNED_IMAGES)
            names = {score.name for score in chain(*best_and_worst(trainer.scores))}
        examples = _choose(trainer.eval_dataset, number, names, args.process_index, args.world_size)
        shares = gathered([trainer.evaluated_image(example) for example in examples])
        return {image.name: image for image in sorted(chain(*shares), key=lambda image: image.name)}

    def _save_views(self, images: Mapping[str, EvaluatedImage]) -> None:
        args, data = self.trainer.args, self.data
        if args.num_pictures:
            places = np.linspace(0, len(images) - 1, min(args.num_pictures, len(images))).round().astype(int)
            shown = [list(images.values())[place] for place in places]
            save_pictures(self.folder / "pictures", shown, data.class_names, data.palette, data.ignore_index)
            print(f"Pictures: {self.folder / 'pictures'}")
        if args.report:
            write_report(
                self.folder / "report.html",
                title=f"MTA-CLIP: {self.folder.absolute().name}",
                metrics=self.metrics,
                scores=self.trainer.scores,
                palette=data.palette,
                history=self.trainer.state.log_history,
                images=images,
                options=self.trainer.options,
            )
            print(f"Report: {self.folder / 'report.html'}")

    def _count_bad(self, dataset: Dataset) -> int:
        """Examples that turned out to be unusable in any process, which must all call this."""
        # Each example has a place of its own, and counts once however many processes met it.
        return int(torch.stack(gathered(dataset.bad)).any(dim=0).sum())

    def _write_metrics(self) -> None:
        if self.trainer.is_world_process_zero():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(json_ready(self.metrics), indent=2, allow_nan=False)
            (self.folder / "metrics.json").write_text(text)


def prepare_run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: MTAClipTrainingArguments
) -> Run:
    """Loads and checks everything that a run needs; what doesn't fit is a `ValueError`."""
    args = training_arguments
    _check_together(model_arguments, data_arguments, args)
    args.output_dir = args.output_dir.replace("{dataset_name}", Path(data_arguments.dataset_name).name)
    checkpoint = checkpoint_to_resume(args)
    if args.device.type == "cpu":
        torch.set_num_threads(_num_threads(args.num_threads))
    set_seed(args.seed)

    options = _options_of(load_segmentation_dataset, data_arguments, model_arguments)
    data = load_segmentation_dataset(data_arguments.dataset_name, **options)
    wanted = (args.metric_for_best_model or "").removeprefix("eval_")
    if wanted in CITYSCAPES_METRICS and not categories_of(data.class_names):
        raise ValueError(f"`metric_for_best_model` {wanted} is for data sets with categories, like Cityscapes.")
    bundle = _load_bundle(model_arguments, data_arguments, data.class_names, args)
    if checkpoint is not None:
        require_same_model(checkpoint, bundle.model.config)
    checked = _check_data(data, data_arguments, args)
    trainer = MTAClipTrainer(
        model=bundle.model,
        args=args,
        train_dataset=_examples("train", data, data_arguments, args, bundle.image_processor)
        if args.do_train
        else None,
        eval_dataset=_examples("validation", data, data_arguments, args) if args.do_eval else None,
        data_collator=TrainingCollator(len(data.class_names)),
        processing_class=bundle.image_processor,
        tokenizer=bundle.tokenizer,
        options=changed_options(model_arguments, data_arguments, args),
    )
    return Run(trainer, data, checkpoint, {"checked_pixels": checked})


def _check_together(model: ModelArguments, data: DataArguments, training: MTAClipTrainingArguments) -> None:
    """Refuses options of the three kinds that don't fit each other, before anything is read."""
    if data.dataset_name is None:
        raise ValueError(
            "Which data set? Give `--dataset_name`: a folder with images/{train,val}, annotations/{train,val} and "
            "classes.json, ade20k or cityscapes with `--data_dir`, a data set on the Hub, or scenes to try."
        )
    if not (training.do_train or model.model_name_or_path or model.mask2former or model.original_checkpoint):
        raise ValueError("Evaluation without training needs a trained model: give `--model_name_or_path`.")
    if training.do_train:
        try:
            Trainer.get_optimizer_cls_and_kwargs(training)
        except (ImportError, ValueError) as error:
            raise ValueError(f"`optim` {training.optim.value}: {error}") from error
    if data.streaming and training.do_train and training.max_steps <= 0:
        raise ValueError("`streaming` has no known number of images: give `--max_steps`, not `--num_train_epochs`.")


def _options_of(function: Callable, *arguments: Any) -> dict[str, Any]:
    """The options that have the names of a function's parameters."""
    names = inspect.signature(function).parameters
    return {name: value for each in arguments for name, value in vars(each).items() if name in names}


def _check_data(
    data: SegmentationData, arguments: DataArguments, training: MTAClipTrainingArguments
) -> dict[str, dict[str, int]]:
    """Pixels of each class in what was checked of each split that the run uses."""
    how, checked = arguments.check_data, {}
    if training.do_eval:
        checked["validation"] = data.check("validation", how, max_samples=arguments.max_eval_samples)
    if training.do_train:
        checked["train"] = data.check("train", how, arguments.max_bad_share, arguments.max_train_samples)
    return {split: dict(zip(data.class_names, pixels.tolist(), strict=True)) for split, pixels in checked.items()}


def _examples(
    split: str,
    data: SegmentationData,
    arguments: DataArguments,
    training: MTAClipTrainingArguments,
    image_processor: MTAClipImageProcessor | None = None,
) -> SegmentationExamples | SegmentationStream:
    """Examples of a split, augmented and normalized as of the image processor if there is one."""
    options: dict[str, Any] = {"max_samples": arguments.max_eval_samples}
    if image_processor is not None:
        statistics = {"image_mean": image_processor.image_mean, "image_std": image_processor.image_std}
        augmentation = Augmentation(size=arguments.size, **statistics, **_options_of(Augmentation, arguments))
        seed = training.seed if training.data_seed is None else training.data_seed
        options = {"augmentation": augmentation, "seed": seed, "max_samples": arguments.max_train_samples}
        options["max_bad_share"] = arguments.max_bad_share
    if arguments.streaming:
        return SegmentationStream(data, split, rank=training.process_index, world_size=training.world_size, **options)
    return SegmentationExamples(data, split, **options)


def _load_bundle(
    model: ModelArguments, data: DataArguments, class_names: list[str], training: MTAClipTrainingArguments
) -> ModelBundle:
    if model.model_name_or_path is not None:
        # The size with which a model was trained is part of it, unless it is trained anew.
        size = data.size if training.do_train else None
        hub_options = {"token": model.token, "cache_dir": model.cache_dir, "revision": model.model_revision}
        return load_model(model.model_name_or_path, class_names, training.do_train, size, **hub_options)
    bundle = build_model(model, class_names, data.size)
    report = bundle.loading_report
    new = [*report.new, *report.new_classes] if report else []
    if new and not training.do_train:
        raise ValueError(
            f"Evaluation without training needs a trained model, but {len(new)} weights or classes are new, e.g. "
            f"{new[:3]}. Train first; `--text_branch False` makes a model of a Mask2Former alone."
        )
    if report and report.loaded and training.process_index == 0:
        print(report, flush=True)
    return bundle


def build_model(
    arguments: ModelArguments, class_names: Sequence[str], size: dict[str, int] | None = None
) -> ModelBundle:
    """Builds a new model for the classes with the weights that the arguments name, in training mode."""
    gives_sizes = arguments.mask2former is not None or arguments.original_checkpoint is not None
    # Defaults, which are those of the config, must not override the sizes of a source.
    fields = {name: value for name, value in changed_options(arguments).items() if name in CONFIG_FIELDS}
    tokenizer = arguments.tokenizer
    if arguments.text_branch and arguments.text_encoder is None and arguments.original_checkpoint is None:
        logger.warning(
            "No `--text_encoder` was given: the run uses a small text encoder with random weights, to which class "
            "names mean nothing. Give a CLIP model, e.g. --text_encoder openai/clip-vit-base-patch16, for real use."
        )
        tokenizer = make_tokenizer([*class_names, MTAClipConfig.no_object_name])
        fields["text_config"] = small_text_config(tokenizer, arguments.text_hidden_size, arguments.text_layers)
    bundle = from_pretrained_parts(
        class_names,
        text_encoder=arguments.text_encoder,
        tokenizer=tokenizer,
        backbone=arguments.backbone or (None if gives_sizes else DEFAULT_BACKBONE),
        backbone_config=arguments.backbone_config or None,
        backbone_weights=arguments.backbone_weights,
        mask2former=arguments.mask2former,
        original=arguments.original_checkpoint,
        **fields | arguments.model_config,
    )
    processor = bundle.image_processor
    processor.image_mean = arguments.image_mean or processor.image_mean
    processor.image_std = arguments.image_std or processor.image_std
    processor.do_resize, processor.size = size is not None, size or processor.size
    bundle.model.train()
    return bundle


def load_model(
    name_or_path: str, class_names: Sequence[str], adapt: bool, size: dict[str, int] | None = None, **hub_options: Any
) -> ModelBundle:
    """Loads a saved model with its image processor and tokenizer; to train it, with the given classes and size."""
    try:
        model = MTAClipForSemanticSegmentation.from_pretrained(name_or_path, **hub_options)
        processor = MTAClipImageProcessor.from_pretrained(name_or_path, **hub_options)
    except (OSError, TypeError) as error:
        raise ValueError(f"No MTA-CLIP model could be loaded from {name_or_path!r}: {error}") from error
    if size is not None:
        processor.do_resize, processor.size = True, size
    tokenizer = None
    with suppress(ValueError):  # a model without text branch has none
        tokenizer = load_tokenizer(name_or_path, **hub_options)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if names != list(class_names):
        if not adapt:
            raise ValueError(
                f"The model in {name_or_path!r} has the classes {names}, but the data set has {list(class_names)}: "
                "it can't be evaluated on them. Choose the data set it was trained on, or train it on this one."
            )
        model = model.with_classes(class_names, tokenizer)
    model.train(adapt)
    return ModelBundle(model, processor, tokenizer)


def _num_threads(wanted: int | None) -> int:
    """Threads for this process; `accelerate launch` and `torchrun` leave it with one, however many cores there are."""
    if wanted is not None:
        return wanted
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return torch.get_num_threads()
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _choose(
    dataset: Dataset, number: int, names: set[str], process_index: int, num_processes: int
) -> Iterator[Mapping[str, Any]]:
    """This process's share of the usable examples that have these names, and of so many others from all over a data
    set, or the first of a stream."""
    if has_length(dataset):
        spread = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).astype(int).tolist()
        # Where the column is there, no image is read for it.
        rows = dataset.dataset
        all_names = rows["name"] if "name" in rows.column_names else (row["name"] for row in rows)
        named = [index for index, name in enumerate(all_names) if name in names]
        for index in sorted({*spread, *named})[process_index::num_processes]:
            # Unusable ones have been named by the evaluation.
            with suppress(ValueError):
                yield dataset[index]
        return
    for place, example in enumerate(dataset):
        if place < number / num_processes or example["name"] in names:
            yield example
        elif not names:
            return


def _scores_in_words(metrics: Mapping[str, Any], warnings: Sequence[str]) -> str:
    """The scores, and why they say less than they seem to."""
    classes, annotated = metrics["classes"], metrics["eval_num_annotated_classes"]
    lines = [f"{name:>24}  IoU {each['iou']:.4f}" for name, each in classes.items() if each["iou"] is not None]
    if annotated > 1:
        lines.append(
            f"{f'mean of {annotated}':>24}  IoU {metrics['eval_mean_iou']:.4f} (constant prediction: "
            f"{metrics['eval_constant_mean_iou']:.4f}), pixel accuracy {metrics['eval_overall_accuracy']:.4f}"
        )
    else:
        lines.append(
            f"NO MEANINGFUL SCORE: only {annotated} of {len(classes)} classes is annotated in the validation images. "
            "Look at the label maps and the list of classes."
        )
    if metrics["eval_num_bad"]:
        warnings = [*warnings, f"{metrics['eval_num_bad']} images could not be used; warnings above name them."]
    return "\n".join(["", *lines, *(f"Note: {warning}" for warning in warnings)])


__all__ = ["Run", "prepare_run"]
