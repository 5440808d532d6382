# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' `Trainer` with MTA-CLIP's parameter groups, schedule, loss terms and exact evaluation."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, ProgressCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy, TrainOutput, has_length, speed_metrics
from transformers.utils import logging

from ..data import BadExamplesError
from ..inference import Segmenter
from ..loss_mtaclip import classes_of_images, loss_normalizers
from ..modeling_mtaclip import MTAClipForSemanticSegmentationOutput
from .arguments import MTAClipTrainingArguments
from .callbacks import (
    AveragedWeightsCallback,
    BriefProgressCallback,
    BrokenStepsCallback,
    EpochCallback,
    LossTerms,
)
from .checkpoints import CheckpointCallback, explained_disk_errors
from .evaluated_images import EvaluatedImage, align_masks
from .evaluation import SegmentationScores, prepare_examples, whole_weights
from .model_card import write_model_card
from .optimization import create_schedule, keep_strides, parameter_groups, synchronize_batch_norms


logger = logging.get_logger(__name__)


class MTAClipTrainer(Trainer):
    """Trains [`MTAClipForSemanticSegmentation`] with the paper's recipe.

    Training examples are mappings with `pixel_values` and `labels` (and `point_seeds`, and `names` to tell broken
    images by). Evaluation examples are mappings with `image` (PIL) and `annotation` (label map): each image is resized
    by the image processor alone, and its prediction compared with the annotation at the annotation's own size, so that
    the scores depend neither on the batch size nor on the number of processes.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): saved beside the model.
        options (`Mapping[str, Any]`, *optional*): of the run, for the model card.
        kwargs: as for `transformers.Trainer`; `processing_class` is the image processor.

    Attributes:
        scores ([`SegmentationScores`], *optional*): of the last evaluation.
        averages ([`AveragedWeightsCallback`], *optional*): with `ema_decay`.
        checkpoints ([`CheckpointCallback`]): whether the training was told to stop.
    """

    args: MTAClipTrainingArguments

    def __init__(
        self,
        *args: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        args, backbone = self.args, self._segmentation_model().model.backbone
        self.tokenizer, self.options, self._terms = tokenizer, options or {}, LossTerms()
        self.scores: SegmentationScores | None = None
        if args.freeze_backbone:
            backbone.requires_grad_(False)
        elif args.sync_batch_norm and args.world_size > 1 and args.device.type != "cpu":
            synchronize_batch_norms(backbone)
        if args.world_size > 1:
            keep_strides(self.model)
        self.averages = AveragedWeightsCallback(self.model, args.ema_decay) if args.ema_decay else None
        self.checkpoints = CheckpointCallback(args.save_total_limit)
        # Else transformers would delete older checkpoints before the new one is on the disk.
        args.save_total_limit = None
        has_bar = self.pop_callback(ProgressCallback) is not None
        for callback in (
            BrokenStepsCallback(args.max_skipped_steps, self.accelerator.scaler),
            self.checkpoints,
            EpochCallback(self.train_dataset) if hasattr(self.train_dataset, "set_epoch") else None,
            BriefProgressCallback() if has_bar else None,
            self.averages,
        ):
            if callback is not None:
                self.add_callback(callback)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Creates the optimizer that the arguments name, with the recipe's parameter groups."""
        if self.optimizer is None:
            args, model = self.args, _without_adapters(self.model if model is None else model)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.model)
            groups = parameter_groups(model, args.learning_rate, args.weight_decay, args.backbone_lr_factor)
            for group in groups:
                del group["param_names"]
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Creates the schedule that the arguments name; the polynomial one warms up from `warmup_start_factor`."""
        if self.lr_scheduler is None:
            self.lr_scheduler = create_schedule(self.args, optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader:
        """Streams give every process its own share already."""
        if self.train_dataset is None or has_length(self.train_dataset):
            return super().get_train_dataloader()
        return self._loader(self.train_dataset, self.args.train_batch_size, self.data_collator)

    def _loader(
        self, dataset: Dataset, batch_size: int, collator: Callable, indices: Sequence[int] | None = None
    ) -> DataLoader:
        options = {
            name: getattr(self.args, f"dataloader_{name}") for name in ("num_workers", "pin_memory", "prefetch_factor")
        }
        return DataLoader(dataset, batch_size, sampler=indices, collate_fn=collator, **options)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Collects the batches of one optimizer step, and what the losses of all processes' batches are divided by."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        if not batches:
            return batches, None
        config = self._segmentation_model().config
        for batch in batches:
            if "image_classes" not in batch:
                labels, ignored = batch["labels"], config.semantic_loss_ignore_index
                batch["image_classes"] = classes_of_images(labels, config.num_labels, ignored)
        normalizers = torch.stack([loss_normalizers(batch["image_classes"], config) for batch in batches])
        # The host goes on while the device adds up these two numbers.
        return batches, self.accelerator.reduce(normalizers.mean(dim=0).to(self.args.device), reduction="mean")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        """Computes the loss without what only predictions need, and keeps its terms for the log."""
        if self.args.freeze_backbone:
            # Its batch norms use and keep the statistics they came with.
            self._segmentation_model().model.backbone.eval()
        names = inputs.pop("names", None)
        lean = {"output_logits": False, "output_auxiliary_predictions": False}
        outputs = model(**inputs, **lean, loss_normalizers=num_items_in_batch)
        self._terms.add(self.state.global_step + 1, outputs, inputs["pixel_values"], names)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the means since the last time of the loss and its terms, or the IoU of each class."""
        if "eval_mean_iou" in logs:
            figures = self.scores.per_class().items()
            logs = logs | {f"eval_iou_{name}": each["iou"] for name, each in figures if each["iou"] is not None}
        if "loss" in logs:
            logs |= self._terms.take_means(self.accelerator)
        # JSON has no NaN; what is broken is said in words.
        logs = {name: value for name, value in logs.items() if not isinstance(value, float) or math.isfinite(value)}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Predicts every image and scores it at its own size, in training with averaged weights if there are any.

        Every process reads its own share of the images, each image once; streams must give each its share. All figures
        stay in `self.scores`, predictions are not kept; `ignore_keys` has no effect.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None or isinstance(dataset, Mapping):
            raise ValueError(f"Evaluation needs one `eval_dataset`, got {dataset}.")
        start = time.time()
        with self.averages.applied() if self.averages is not None and self.is_in_train else nullcontext():
            self.scores = self._score(dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.scores.summary().items()}
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=len(self.scores.per_image))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _score(self, dataset: Dataset) -> SegmentationScores:
        config = self._segmentation_model().config
        names = [config.id2label[index] for index in range(config.num_labels)]
        scores = SegmentationScores(names, config.semantic_loss_ignore_index, self.args.boundary_metrics)
        segmenter = self._segmenter(scores)
        scales = self.args.inference_options.scales
        collator = partial(prepare_examples, image_processor=self.processing_class, scales=scales)
        share = range(self.args.process_index, len(dataset), self.args.world_size) if has_length(dataset) else None
        loader = self._loader(dataset, self.args.eval_batch_size, collator, share)
        self.callback_handler.eval_dataloader = loader
        with whole_weights(self.model):
            # Batches may be empty: unusable files are left out.
            for samples in filter(None, loader):
                sizes = [tuple(sample["annotation"].shape) for sample in samples]
                predictions = segmenter.predict([sample["image"] for sample in samples], sizes)
                for sample, prediction in zip(samples, predictions, strict=True):
                    scores.add(prediction, sample["annotation"], sample["name"])
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        scores.finish()
        return scores

    def _segmenter(self, scores: SegmentationScores | None = None) -> Segmenter:
        """Predicts as the arguments say, in the precision of training; the first batch encodes the class names."""
        model = self._segmentation_model().to(self.args.device)
        if not self.is_in_train and (self.args.bf16_full_eval or self.args.fp16_full_eval):
            model = model.to(torch.bfloat16 if self.args.bf16_full_eval else torch.float16)
        text_embeddings = None

        def forward(pixel_values: Tensor) -> MTAClipForSemanticSegmentationOutput:
            nonlocal text_embeddings
            with self.accelerator.autocast():
                outputs = model(pixel_values=pixel_values, text_embeddings=text_embeddings)
            if outputs.text_embeddings is not None:
                text_embeddings = outputs.text_embeddings[0]
            if scores is not None:
                scores.add_contexts(outputs.class_queries_logits, outputs.mask_text_similarity)
            return outputs

        return Segmenter(model, self.processing_class, self.args.inference_options, forward)

    def evaluated_image(self, example: Mapping[str, Any]) -> EvaluatedImage:
        """Predicts an evaluation example as evaluation does, and aligns its masks in the image as a whole."""
        image = example["image"]
        prediction = self._segmenter()([image])[0].cpu()
        with self.accelerator.autocast():
            alignment = align_masks(self._segmentation_model(), self.processing_class, image)
        return EvaluatedImage(example.get("name", ""), image, example["annotation"], prediction, alignment)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains; with `ema_decay`, the model ends with the averaged weights.

        Raises:
            TrainingStopped: the disk is full, or too many steps in a row were broken.
            BadExamplesError: too many images are unusable; one process saves a checkpoint first.
        """
        if self.averages is not None and resume_from_checkpoint:
            self.averages.load(resume_from_checkpoint)
        with explained_disk_errors(self.args.output_dir):
            try:
                output = super().train(resume_from_checkpoint, **kwargs)
            except BadExamplesError:
                # It comes between two steps; other processes don't know of it, and could not save with this one.
                if self.state.global_step and self.args.world_size == 1 and self.args.save_strategy != SaveStrategy.NO:
                    self._save_checkpoint(self.model_wrapped, trial=None)
                raise
        if self.averages is not None:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self.averages.load(self.state.best_model_checkpoint)
            self.averages.copy_to_model()
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves model, image processor, tokenizer and averaged weights; in training a part of a checkpoint."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            if self.is_in_train:
                # A checkpoint that is written anew is incomplete until its end.
                (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
                if self.averages is not None:
                    self.averages.save(folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, model_name: str | None = None, **metadata: Any) -> None:
        """Writes the model card into the output folder; `push_to_hub` does so before it uploads the folder.

        Args:
            model_name (`str`, *optional*): by default that of the repository on the Hub or of the output folder.
            metadata: fields of `huggingface_hub.ModelCardData`, such as `license` and `tags`.
        """
        if not self.is_world_process_zero():
            return
        name = self.hub_model_id or self.args.hub_model_id or model_name or Path(self.args.output_dir).absolute().name
        if not write_model_card(self, name, **{"license": self.args.hub_license} | metadata):
            logger.warning("%s has a README.md of its own, which is left as it is.", self.args.output_dir)

    def _segmentation_model(self) -> nn.Module:
        return _without_adapters(self.accelerator.unwrap_model(self.model))


def _without_adapters(model: nn.Module) -> nn.Module:
    """The segmentation model inside a `PeftModel` of peft, with its adapters in place; other models as they are."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


__all__ = ["MTAClipTrainer"]
