# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A run from options to results: everything is loaded and checked first, then trained, evaluated and saved."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import set_seed
from transformers.trainer_utils import has_length

from ..conversion import LoadingReport
from ..data import (
    Augmentation,
    EvaluationExamples,
    EvaluationStream,
    SegmentationData,
    TrainingCollator,
    TrainingExamples,
    TrainingStream,
    load_segmentation_dataset,
)
from ..image_processing_mtaclip import MTAClipImageProcessor
from .arguments import DataArguments, ModelArguments, MTAClipTrainingArguments, changed_options
from .building import ModelBundle, build_model, load_model
from .checkpoints import checkpoint_to_resume
from .evaluated_images import EvaluatedImage, save_pictures
from .report import score_warnings, write_report
from .trainer import MTAClipTrainer


# How many images the report's masks and class texts are from.
NUM_ALIGNED_IMAGES = 12


@dataclass
class Run:
    """A run that is ready to start.

    Attributes:
        trainer ([`MTAClipTrainer`]): with model and data.
        data ([`SegmentationData`]): the data set.
        checkpoint (`str`, *optional*): folder of the checkpoint to go on from.
        checked_pixels (`dict[str, dict[str, int]]`): pixels of each class in what was checked of each split.
    """

    trainer: MTAClipTrainer
    data: SegmentationData
    checkpoint: str | None
    checked_pixels: dict[str, dict[str, int]] = field(default_factory=dict)

    def execute(self) -> dict[str, Any]:
        """Trains, evaluates and saves, as the arguments say.

        Returns:
            `dict[str, Any]`: what `metrics.json` holds.
        """
        args = self.trainer.args
        metrics: dict[str, Any] = {"checked_pixels": self.checked_pixels}
        if args.do_train:
            metrics |= self.trainer.train(resume_from_checkpoint=self.checkpoint).metrics
            metrics["num_bad"] = self._count_bad()
            if self.trainer.termination.terminated:
                sys.exit("The run was told to stop. Go on with its options and --resume_from_checkpoint last.")
            # Not `save_model()`, which would push the model before it is evaluated.
            self.trainer.save_model(_internal_call=True)
            self.trainer.save_state()
            if self.trainer.is_fsdp_enabled:
                self.trainer.use_saved_model()
        if args.do_eval:
            metrics |= self.trainer.evaluate()
            metrics |= {f"eval_{name}": value for name, value in self.trainer.scores.details().items()}
            metrics["classes"] = self.trainer.scores.per_class()
        if args.do_train:
            self.trainer.create_model_card()
        if self.trainer.is_world_process_zero():
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
        # All processes predict the same images: one that shares the model's weights with others can't do it alone.
        images = self._evaluated_images() if args.do_eval else []
        if self.trainer.is_world_process_zero():
            self._report(metrics, images)
        if args.do_train and args.push_to_hub:
            self.trainer.push_to_hub()
        return metrics

    def _count_bad(self) -> int:
        """Training examples that turned out to be unusable in any process, which must all call this."""
        dataset = self.trainer.train_dataset
        bad = self.trainer.accelerator.reduce(dataset.bad.long().to(self.trainer.args.device))
        # Each example has a place of its own, and counts once however many processes met it.
        return int((bad > 0).sum())

    def _report(self, metrics: dict[str, Any], images: list[EvaluatedImage]) -> None:
        folder = Path(self.trainer.args.output_dir)
        print()
        if "classes" in metrics:
            for name, figures in metrics["classes"].items():
                if figures["iou"] is not None:
                    print(f"{name:>24}  IoU {figures['iou']:.4f}")
            print(
                f"{'mean':>24}  IoU {metrics['eval_mean_iou']:.4f} (constant prediction: "
                f"{metrics['eval_constant_mean_iou']:.4f}), pixel accuracy {metrics['eval_overall_accuracy']:.4f}"
            )
            for warning in score_warnings(self.trainer.scores):
                print(f"Note: {warning}")
        if self.trainer.args.do_train:
            print(f"Model, image processor, tokenizer and model card: {folder}")
        print(f"Metrics: {folder / 'metrics.json'}")
        if "classes" in metrics and self.trainer.args.num_pictures:
            pictured = np.linspace(0, len(images) - 1, min(self.trainer.args.num_pictures, len(images)))
            shown = [images[place] for place in pictured.round().astype(int)]
            save_pictures(folder / "pictures", shown, self.data.class_names, self.data.palette, self.data.ignore_index)
            print(f"Pictures: {folder / 'pictures'}")
        if "classes" in metrics and self.trainer.args.report:
            write_report(
                folder / "report.html",
                title=f"MTA-CLIP: {folder.absolute().name}",
                metrics=metrics,
                scores=self.trainer.scores,
                palette=self.data.palette,
                history=self.trainer.state.log_history,
                images=images,
                options=self.trainer.options,
            )
            print(f"Report: {folder / 'report.html'}")

    def _evaluated_images(self) -> list[EvaluatedImage]:
        """Some images for the pictures and the report."""
        args = self.trainer.args
        number = max(args.num_pictures, NUM_ALIGNED_IMAGES) if args.report else args.num_pictures
        return [self.trainer.evaluated_image(example) for example in _spread(self.trainer.eval_dataset, number)]


def prepare_run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: MTAClipTrainingArguments,
    data: SegmentationData | None = None,
) -> Run:
    """Loads and checks everything that a run needs.

    Args:
        model_arguments, data_arguments, training_arguments: as of [`parse_run_arguments`].
        data ([`SegmentationData`], *optional*): in place of the data set that the arguments name.

    Raises:
        ValueError: options, data or weights that don't fit, named.
    """
    dataset_name = Path(data_arguments.dataset_name).name
    training_arguments.output_dir = training_arguments.output_dir.replace("{dataset_name}", dataset_name)
    if not (training_arguments.do_train or model_arguments.names_whole_model):
        raise ValueError("Evaluation without training needs a trained model: give `--model_name_or_path`.")
    checkpoint = checkpoint_to_resume(training_arguments)
    if training_arguments.device.type == "cpu":
        torch.set_num_threads(_num_threads(training_arguments.cpu_threads))
    set_seed(training_arguments.seed)
    if data is None:
        data = load_segmentation_dataset(
            data_arguments.dataset_name,
            data_arguments.data_dir,
            data_arguments.image_column,
            data_arguments.annotation_column,
            data_arguments.streaming,
        )
    train_dataset, eval_dataset, share = None, None, {}
    if data_arguments.streaming:
        share = {"rank": training_arguments.process_index, "world_size": training_arguments.world_size}
    if training_arguments.do_eval:
        evaluation_class = EvaluationStream if data_arguments.streaming else EvaluationExamples
        eval_dataset = evaluation_class(data, "validation", data_arguments.max_eval_samples, **share)
    how, checked = data_arguments.check_data, {}
    if training_arguments.do_eval:
        checked["validation"] = data.check("validation", how, max_samples=data_arguments.max_eval_samples)
    if training_arguments.do_train:
        limits = data_arguments.max_bad_share, data_arguments.max_train_samples
        checked["train"] = data.check("train", how, *limits)
    parts = _load_parts(model_arguments, data_arguments, data.class_names, training_arguments.do_train)
    if parts.loading_report is not None:
        _report_account(parts.loading_report, training_arguments)
    if training_arguments.do_train:
        augmentation = _augmentation(data_arguments, parts.image_processor)
        seed = training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed
        training_class = TrainingStream if data_arguments.streaming else TrainingExamples
        train_dataset = training_class(
            data, "train", augmentation, seed, data_arguments.max_train_samples, data_arguments.max_bad_share, **share
        )
    options = {"dataset_name": data_arguments.dataset_name}
    for part in (model_arguments, data_arguments, training_arguments):
        options |= changed_options(part)
    trainer = MTAClipTrainer(
        model=parts.model,
        args=training_arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=TrainingCollator(len(data.class_names)),
        processing_class=parts.image_processor,
        tokenizer=parts.tokenizer,
        options=options,
    )
    pixels = {split: dict(zip(data.class_names, counts.tolist(), strict=True)) for split, counts in checked.items()}
    return Run(trainer, data, checkpoint, pixels)


def _spread(examples: Dataset, number: int) -> Iterator[Mapping[str, Any]]:
    """Some examples from all over a data set, or the first ones of a stream."""
    if not has_length(examples):
        return islice(iter(examples), number)
    indices = np.linspace(0, len(examples) - 1, min(number, len(examples))).astype(int)
    return (examples[index] for index in indices.tolist())


def _num_threads(wanted: int | None) -> int:
    """Threads for this process; `accelerate launch` and `torchrun` leave it with one, however many cores there are."""
    if wanted is not None:
        return wanted
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return torch.get_num_threads()
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _load_parts(
    model_arguments: ModelArguments, data_arguments: DataArguments, class_names: list[str], do_train: bool
) -> ModelBundle:
    if model_arguments.model_name_or_path is None:
        return build_model(model_arguments, class_names, data_arguments.size)
    # The size with which a model was trained is part of it, unless it is trained anew.
    size = data_arguments.size if do_train else None
    return load_model(model_arguments.model_name_or_path, class_names, adapt=do_train, size=size)


def _report_account(account: LoadingReport, arguments: MTAClipTrainingArguments) -> None:
    new = [*account.new, *account.new_classes]
    if new and not arguments.do_train:
        raise ValueError(
            f"Evaluation without training needs a trained model, but {len(new)} weights or classes are new, e.g. "
            f"{new[:3]}. Train first; `--text_branch False` makes a model of a Mask2Former alone."
        )
    if account.loaded and arguments.process_index == 0:
        print(account, flush=True)


def _augmentation(arguments: DataArguments, image_processor: MTAClipImageProcessor) -> Augmentation:
    return Augmentation(
        crop_size=arguments.crop_size,
        size=arguments.size,
        scale_range=arguments.scale_range,
        cat_max_ratio=arguments.cat_max_ratio,
        horizontal_flip=arguments.horizontal_flip,
        photometric_distortion=arguments.photometric_distortion,
        image_mean=image_processor.image_mean,
        image_std=image_processor.image_std,
    )


__all__ = ["Run", "prepare_run"]
