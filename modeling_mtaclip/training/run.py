# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A run from options to results: everything is loaded and checked first, then trained, evaluated and saved."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset
from transformers import Trainer, set_seed
from transformers.trainer_utils import has_length

from ..data import (
    Augmentation,
    SegmentationData,
    SegmentationExamples,
    SegmentationStream,
    TrainingCollator,
    load_segmentation_dataset,
)
from ..metrics import json_ready
from ..modeling_mtaclip import MTAClipForSemanticSegmentation
from .arguments import (
    CITYSCAPES_METRICS,
    DataArguments,
    ModelArguments,
    MTAClipTrainingArguments,
    changed_options,
    num_cores,
)
from .building import ModelBundle, build_model, load_model
from .checkpoints import checkpoint_to_resume
from .evaluated_images import EvaluatedImage, save_pictures
from .evaluation import categories_of
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
        """Trains, evaluates and saves, as the arguments say.

        Returns:
            `dict[str, Any]`: what `metrics.json` holds.
        """
        args = self.trainer.args
        if args.do_train:
            self.train()
        if args.do_eval:
            self.evaluate()
        self.save_results()
        return self.metrics

    def train(self) -> None:
        """Trains and saves the model, image processor and tokenizer."""
        trainer = self.trainer
        self.metrics |= trainer.train(resume_from_checkpoint=self.checkpoint).metrics
        self.metrics["num_bad"] = self._count_bad(trainer.train_dataset)
        if trainer.termination.terminated:
            sys.exit("The run was told to stop. Resume it with its options and --resume_from_checkpoint last.")
        # `_internal_call`: else the model would be pushed before it is evaluated.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        self._write_metrics()
        if trainer.is_fsdp_enabled:
            # Whole on every process, where training had it in shards.
            trainer.accelerator.wait_for_everyone()
            trainer.model = type(trainer.model).from_pretrained(self.folder).eval()

    def _count_bad(self, dataset: Dataset) -> int:
        """Examples that turned out to be unusable in any process, which must all call this."""
        bad = self.trainer.accelerator.reduce(dataset.bad.long().to(self.trainer.args.device))
        # Each example has a place of its own, and counts once however many processes met it.
        return int((bad > 0).sum())

    def evaluate(self) -> None:
        """Evaluates the model on the validation images."""
        scores_of = self.trainer.evaluate()
        scores = self.trainer.scores
        self.metrics |= scores_of | {f"eval_{name}": value for name, value in scores.details().items()}
        self.metrics["eval_num_bad"] = self._count_bad(self.trainer.eval_dataset)
        self.metrics["classes"] = scores.per_class()

    def save_results(self) -> None:
        """Writes metrics, model card, pictures and report, prints what they say, and pushes to the Hub if asked to."""
        args = self.trainer.args
        self._write_metrics()
        if args.do_train:
            self.trainer.create_model_card()
        # All processes predict the same images: one that shares the model's weights with others can't do it alone.
        images = self._evaluated_images() if args.do_eval else []
        if self.trainer.is_world_process_zero():
            self._report(images)
        if args.do_train and args.push_to_hub:
            self.trainer.push_to_hub()

    def _write_metrics(self) -> None:
        if self.trainer.is_world_process_zero():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(json_ready(self.metrics), indent=2, allow_nan=False)
            (self.folder / "metrics.json").write_text(text)

    def _report(self, images: list[EvaluatedImage]) -> None:
        args, scores, palette = self.trainer.args, self.trainer.scores, self.data.palette
        print()
        if args.do_eval:
            print("\n".join(_score_lines(self.metrics, score_warnings(scores))))
        if args.do_train:
            print(f"Model, image processor, tokenizer and model card: {self.folder}")
        print(f"Metrics: {self.folder / 'metrics.json'}")
        if args.do_eval and args.num_pictures:
            places = np.linspace(0, len(images) - 1, min(args.num_pictures, len(images))).round().astype(int)
            shown, names = [images[place] for place in places], self.data.class_names
            save_pictures(self.folder / "pictures", shown, names, palette, self.data.ignore_index)
            print(f"Pictures: {self.folder / 'pictures'}")
        if args.do_eval and args.report:
            write_report(
                self.folder / "report.html",
                title=f"MTA-CLIP: {self.folder.absolute().name}",
                metrics=self.metrics,
                scores=scores,
                palette=palette,
                history=self.trainer.state.log_history,
                images=images,
                options=self.trainer.options,
            )
            print(f"Report: {self.folder / 'report.html'}")

    def _evaluated_images(self) -> list[EvaluatedImage]:
        """Some images for the pictures and the report."""
        args = self.trainer.args
        number = max(args.num_pictures, NUM_ALIGNED_IMAGES) if args.report else args.num_pictures
        return [self.trainer.evaluated_image(example) for example in _spread(self.trainer.eval_dataset, number)]


def prepare_run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: MTAClipTrainingArguments
) -> Run:
    """Loads and checks everything that a run needs.

    Args:
        model_arguments, data_arguments, training_arguments: as of [`parse_run_arguments`].

    Raises:
        ValueError: options, data or weights that don't fit, named.
    """
    _check_together(model_arguments, data_arguments, training_arguments)
    dataset_name = Path(data_arguments.dataset_name).name
    training_arguments.output_dir = training_arguments.output_dir.replace("{dataset_name}", dataset_name)
    checkpoint = checkpoint_to_resume(training_arguments)
    if training_arguments.device.type == "cpu":
        torch.set_num_threads(_num_threads(training_arguments.num_threads))
    set_seed(training_arguments.seed)

    data = _load_data(data_arguments, model_arguments.token, model_arguments.cache_dir)
    wanted = (training_arguments.metric_for_best_model or "").removeprefix("eval_")
    if wanted in CITYSCAPES_METRICS and not categories_of(data.class_names):
        raise ValueError(f"`metric_for_best_model` {wanted} is for data sets with categories, like Cityscapes.")
    parts = _load_parts(model_arguments, data_arguments, data.class_names, training_arguments)
    train_dataset = _training_examples(data, data_arguments, training_arguments, parts)
    if train_dataset is not None:
        _check_batch_norms(parts.model, train_dataset, training_arguments)
    checked = _check_data(data, data_arguments, training_arguments)
    options = changed_options(model_arguments, data_arguments, training_arguments)
    trainer = MTAClipTrainer(
        model=parts.model,
        args=training_arguments,
        train_dataset=train_dataset,
        eval_dataset=_evaluation_examples(data, data_arguments, training_arguments),
        data_collator=TrainingCollator(len(data.class_names)),
        processing_class=parts.image_processor,
        tokenizer=parts.tokenizer,
        options=options,
    )
    return Run(trainer, data, checkpoint, {"checked_pixels": checked})


def _check_together(model: ModelArguments, data: DataArguments, training: MTAClipTrainingArguments) -> None:
    """Refuses options of the three kinds that don't fit each other, before anything is read."""
    if data.dataset_name is None:
        raise ValueError(
            "Which data set? Give `--dataset_name`: a folder with images/{train,val}, annotations/{train,val} and "
            "classes.json, ade20k or cityscapes with `--data_dir`, a data set on the Hub, or scenes to try."
        )
    if not (training.do_train or model.names_whole_model):
        raise ValueError("Evaluation without training needs a trained model: give `--model_name_or_path`.")
    if training.do_train:
        try:
            Trainer.get_optimizer_cls_and_kwargs(training)
        except (ImportError, ValueError) as error:
            raise ValueError(f"`optim` {training.optim.value}: {error}") from error
    if data.streaming and training.do_train and training.max_steps <= 0:
        raise ValueError("`streaming` has no known number of images: give `--max_steps`, not `--num_train_epochs`.")


def _load_data(arguments: DataArguments, token: str | None, cache_dir: str | None) -> SegmentationData:
    return load_segmentation_dataset(
        arguments.dataset_name,
        arguments.data_dir,
        arguments.image_column_name,
        arguments.annotation_column_name,
        arguments.streaming,
        do_reduce_labels=arguments.do_reduce_labels,
        train_val_split=arguments.train_val_split,
        dataset_config_name=arguments.dataset_config_name,
        token=token,
        cache_dir=cache_dir,
        max_pixels=arguments.max_pixels,
    )


def _check_data(
    data: SegmentationData, data_arguments: DataArguments, training_arguments: MTAClipTrainingArguments
) -> dict[str, dict[str, int]]:
    """Pixels of each class in what was checked of each split that the run uses."""
    how, checked = data_arguments.check_data, {}
    if training_arguments.do_eval:
        checked["validation"] = data.check("validation", how, max_samples=data_arguments.max_eval_samples)
    if training_arguments.do_train:
        limits = data_arguments.max_bad_share, data_arguments.max_train_samples
        checked["train"] = data.check("train", how, *limits)
    return {split: dict(zip(data.class_names, pixels.tolist(), strict=True)) for split, pixels in checked.items()}


def _load_parts(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    class_names: list[str],
    training_arguments: MTAClipTrainingArguments,
) -> ModelBundle:
    if model_arguments.model_name_or_path is not None:
        # The size with which a model was trained is part of it, unless it is trained anew.
        do_train = training_arguments.do_train
        return load_model(
            model_arguments.model_name_or_path,
            class_names,
            adapt=do_train,
            size=data_arguments.size if do_train else None,
            revision=model_arguments.model_revision,
            token=model_arguments.token,
            cache_dir=model_arguments.cache_dir,
        )
    parts = build_model(model_arguments, class_names, data_arguments.size)
    report = parts.loading_report
    new = [*report.new, *report.new_classes] if report else []
    if new and not training_arguments.do_train:
        raise ValueError(
            f"Evaluation without training needs a trained model, but {len(new)} weights or classes are new, e.g. "
            f"{new[:3]}. Train first; `--text_branch False` makes a model of a Mask2Former alone."
        )
    if report and report.loaded and training_arguments.process_index == 0:
        print(report, flush=True)
    return parts


def _training_examples(
    data: SegmentationData,
    arguments: DataArguments,
    training_arguments: MTAClipTrainingArguments,
    parts: ModelBundle,
) -> Dataset | None:
    if not training_arguments.do_train:
        return None
    augmentation = Augmentation(
        crop_size=arguments.crop_size,
        size=arguments.size,
        scale_range=arguments.scale_range,
        cat_max_ratio=arguments.cat_max_ratio,
        horizontal_flip=arguments.horizontal_flip,
        photometric_distortion=arguments.photometric_distortion,
        image_mean=parts.image_processor.image_mean,
        image_std=parts.image_processor.image_std,
    )
    seed = training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed
    options = (data, "train", augmentation, seed, arguments.max_train_samples, arguments.max_bad_share)
    if arguments.streaming:
        return SegmentationStream(
            *options, rank=training_arguments.process_index, world_size=training_arguments.world_size
        )
    return SegmentationExamples(*options)


def _evaluation_examples(
    data: SegmentationData, arguments: DataArguments, training_arguments: MTAClipTrainingArguments
) -> Dataset | None:
    if not training_arguments.do_eval:
        return None
    limit = arguments.max_eval_samples
    if arguments.streaming:
        rank, world_size = training_arguments.process_index, training_arguments.world_size
        return SegmentationStream(data, "validation", max_samples=limit, rank=rank, world_size=world_size)
    return SegmentationExamples(data, "validation", max_samples=limit)


def _check_batch_norms(
    model: MTAClipForSemanticSegmentation, examples: Dataset, arguments: MTAClipTrainingArguments
) -> None:
    """Refuses batches of which a batch norm would see one value: an image whose map of stride 32 is one pixel."""
    if arguments.freeze_backbone or list(examples.augmentation.crop_size) != [32, 32]:
        return
    sizes = [arguments.per_device_train_batch_size]
    if has_length(examples) and arguments.world_size == 1 and not arguments.dataloader_drop_last:
        sizes.append(len(examples) % sizes[0])
    if 1 in sizes and any(isinstance(module, _BatchNorm) for module in model.model.backbone.modules()):
        raise ValueError(
            "A batch norm can't train on a single value, which is what one crop of 32 x 32 leaves at the backbone's "
            f"last level (`per_device_train_batch_size` {sizes[0]}; the last batch of a pass has what is left). "
            "Choose a larger `crop_size`, another batch size, or `--freeze_backbone`."
        )


def _num_threads(wanted: int | None) -> int:
    """Threads for this process; `accelerate launch` and `torchrun` leave it with one, however many cores there are."""
    if wanted is not None:
        return wanted
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return torch.get_num_threads()
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _spread(examples: Dataset, number: int) -> Iterator[Mapping[str, Any]]:
    """Some usable examples from all over a data set, or the first ones of a stream."""
    if not has_length(examples):
        yield from islice(iter(examples), number)
        return
    for index in np.linspace(0, len(examples) - 1, min(number, len(examples))).astype(int).tolist():
        # Unusable ones have been named by the evaluation.
        with suppress(ValueError):
            yield examples[index]


def _score_lines(metrics: Mapping[str, Any], warnings: Sequence[str]) -> list[str]:
    """The scores in words, and why they say less than they seem to."""
    classes = metrics["classes"]
    lines = [f"{name:>24}  IoU {each['iou']:.4f}" for name, each in classes.items() if each["iou"] is not None]
    annotated = metrics["eval_num_annotated_classes"]
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
    return lines + [f"Note: {warning}" for warning in warnings]


__all__ = ["Run", "prepare_run"]
