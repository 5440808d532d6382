# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' `Trainer` with MTA-CLIP's parameter groups, schedule, loss terms and exact evaluation."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, ProgressCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, TrainOutput, has_length
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
)
from .checkpoints import CheckpointCallback, explained_disk_errors
from .evaluated_images import ContextUsage, EvaluatedImage, align_masks
from .evaluation import EvaluationCollator, SegmentationScores, whole_weights
from .model_card import write_model_card
from .optimization import create_schedule, parameter_groups, synchronize_batch_norms
from .report import score_warnings


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
        self.tokenizer, self.options = tokenizer, options or {}
        self.scores: SegmentationScores | None = None
        self._eval_loader: DataLoader | None = None
        self._last_loss = torch.tensor(0.0, device=self.args.device)
        self._terms = _LossTerms()
        self._prepare_model()
        self.broken_steps = BrokenStepsCallback(self.args.max_skipped_steps, self.accelerator.scaler)
        self.checkpoints = CheckpointCallback(self.args.save_total_limit)
        # Else transformers would delete older checkpoints before the new one is on the disk.
        self.args.save_total_limit = None
        self.averages = AveragedWeightsCallback(self.model, self.args.ema_decay) if self.args.ema_decay else None
        callbacks = [self.broken_steps, self.checkpoints]
        if hasattr(self.train_dataset, "set_epoch"):
            callbacks.append(EpochCallback(self.train_dataset))
        if self.pop_callback(ProgressCallback) is not None:
            callbacks.append(BriefProgressCallback())
        if self.averages is not None:
            callbacks.append(self.averages)
        for callback in callbacks:
            self.add_callback(callback)

    def _prepare_model(self) -> None:
        args, backbone = self.args, self._segmentation_model().model.backbone
        if args.freeze_backbone:
            backbone.requires_grad_(False)
        elif args.sync_batch_norm and args.world_size > 1 and args.device.type != "cpu":
            synchronize_batch_norms(backbone)
        for parameter in self.model.parameters() if args.world_size > 1 else ():
            if parameter.requires_grad and parameter.dim() == 4 and 1 in parameter.shape:
                parameter.register_hook(partial(_with_strides, parameter.stride()))

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
        self.broken_steps.see_loss(outputs.loss)
        self._terms.add(self.state.global_step + 1, outputs, inputs["pixel_values"], names)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trains on a batch; in the log, a NaN or infinite loss counts like the last one before it."""
        loss = super().training_step(*args, **kwargs)
        self._last_loss = torch.where(loss.isfinite(), loss, self._last_loss)
        return self._last_loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Any:
        # No public hook sees the norm, and a second one would take as long again.
        norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, Tensor):
            self.broken_steps.see_gradient_norm(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the mean of every loss term since the last time over all processes, or the IoU of each class."""
        if "eval_mean_iou" in logs:
            figures = self.scores.per_class().items()
            logs = logs | {f"eval_iou_{name}": each["iou"] for name, each in figures if each["iou"] is not None}
        if "loss" in logs:
            self._terms.warn_of_broken(self.args.process_index)
            logs |= self._terms.means(self.accelerator)
        # JSON has no NaN; what is broken is said in words.
        logs = {name: value for name, value in logs.items() if not isinstance(value, float) or math.isfinite(value)}
        super().log(logs, start_time)

    def get_train_dataloader(self) -> DataLoader:
        """Streams give every process its own share already."""
        if self.train_dataset is None or has_length(self.train_dataset):
            return super().get_train_dataloader()
        return self._loader(self.train_dataset, self.args.train_batch_size, self.data_collator)

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """Every process reads its own share of the images, each image once; streams must give each its share."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Evaluation needs an `eval_dataset`.")
        if self._eval_loader is None or self._eval_loader.dataset is not dataset:
            collator = EvaluationCollator(self.processing_class, self.args.inference_options.scales)
            share = range(self.args.process_index, len(dataset), self.args.world_size) if has_length(dataset) else None
            self._eval_loader = self._loader(dataset, self.args.eval_batch_size, collator, share)
        return self._eval_loader

    def _loader(
        self, dataset: Dataset, batch_size: int, collator: Callable, indices: Sequence[int] | None = None
    ) -> DataLoader:
        options = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor")
        options = {name: getattr(self.args, f"dataloader_{name}") for name in options}
        return DataLoader(dataset, batch_size, sampler=indices, collate_fn=collator, **options)

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Predicts every image and scores it at its own size, with averaged weights if there are any.

        The scores stay in `self.scores`, predictions are not kept. Other arguments of
        `transformers.Trainer.evaluation_loop` have no effect.
        """
        averaged = self.averages.applied() if self.averages is not None and self.is_in_train else nullcontext()
        with averaged:
            self.scores = self._score(dataloader)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.scores.summary().items()}
        return EvalLoopOutput(None, None, metrics, num_samples=len(self.scores.per_image))

    def _score(self, dataloader: DataLoader) -> SegmentationScores:
        config = self._segmentation_model().config
        names = [config.id2label[index] for index in range(config.num_labels)]
        scores = SegmentationScores(names, config.semantic_loss_ignore_index, self.args.boundary_metrics)
        segmenter = self._segmenter(scores.contexts)
        self.callback_handler.eval_dataloader = dataloader
        with whole_weights(self.model):
            # Batches may be empty: unusable files are left out.
            for samples in filter(None, dataloader):
                sizes = [tuple(sample.annotation.shape) for sample in samples]
                predictions = segmenter.predict([sample.image for sample in samples], sizes)
                for sample, prediction in zip(samples, predictions, strict=True):
                    scores.add(prediction, sample.annotation, sample.name, sample.thumbnail)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        scores.finish()
        return scores

    def _segmenter(self, contexts: ContextUsage | None = None) -> Segmenter:
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
            if contexts is not None:
                contexts.add(outputs.class_queries_logits, outputs.mask_text_similarity)
            return outputs

        return Segmenter(model, self.processing_class, self.args.inference_options, forward)

    def predict_image(self, image: Image.Image) -> np.ndarray:
        """Predicts one image as evaluation does: int64 class ids `(height, width)`, at the image's own size."""
        return self._segmenter()([image])[0].cpu().numpy()

    def evaluated_image(self, example: Mapping[str, Any]) -> EvaluatedImage:
        """Predicts an evaluation example as evaluation does, and aligns its masks in the image as a whole."""
        image, prediction = example["image"], self.predict_image(example["image"])
        with self.accelerator.autocast():
            alignment = align_masks(self._segmentation_model(), self.processing_class, image)
        return EvaluatedImage(example.get("name", ""), image, example["annotation"], prediction, alignment=alignment)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains; with `ema_decay`, the model ends with the averaged weights.

        Raises:
            TrainingStopped: the disk is full, or too many steps in a row were broken.
            BadExamplesError: too many images are unusable; one process saves a checkpoint first.
        """
        if self.averages is not None and resume_from_checkpoint:
            self.averages.load(resume_from_checkpoint)
        with explained_disk_errors(Path(self.args.output_dir), lambda: self.state.global_step):
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
            metadata: as for `transformers.Trainer.create_model_card`, of which `tasks`, `dataset_tags` and
                `dataset_args` have no effect: the task is fixed, and the data set is the run's.
        """
        if not self.is_world_process_zero():
            return
        datasets = {"training": self.train_dataset, "validation": self.eval_dataset}
        path = Path(self.args.output_dir) / "README.md"
        is_written = write_model_card(
            path,
            model=self.accelerator.unwrap_model(self.model),
            image_processor=self.processing_class,
            model_id=self.hub_model_id or self.args.hub_model_id or model_name or path.absolute().parent.name,
            options=self.options,
            history=self.state.log_history,
            data=getattr(getattr(self.train_dataset, "data", None), "info", None),
            num_images={name: len(images) for name, images in datasets.items() if has_length(images)},
            warnings=[] if self.scores is None else score_warnings(self.scores),
            license=metadata.get("license") or self.args.hub_license,
            tags=metadata.get("tags"),
            language=metadata.get("language"),
            datasets=metadata.get("dataset"),
            base_model=metadata.get("finetuned_from"),
        )
        if not is_written:
            logger.warning("%s is left as it is: it was not written by a training run.", path)

    def _segmentation_model(self) -> nn.Module:
        return _without_adapters(self.accelerator.unwrap_model(self.model))


class _LossTerms:
    """The terms of the losses since the last line of the log, which stay on the device until then."""

    def __init__(self) -> None:
        # Of each batch: step, names of the terms, loss and terms, range of the values of each image, images' names.
        self._batches: list[tuple[int, list[str], Tensor, Tensor, Sequence[str]]] = []

    @torch.no_grad()
    def add(self, step: int, outputs: Any, pixel_values: Tensor, names: Sequence[str] | None) -> None:
        """Keeps the terms of a batch, and by which values its images can be told to be broken."""
        values = torch.stack([outputs.loss.detach(), *outputs.loss_components.values()]).float()
        ranges = torch.stack(pixel_values.flatten(1).aminmax(dim=1), dim=1)
        names = names or [f"{index} of the batch" for index in range(len(pixel_values))]
        self._batches.append((step, list(outputs.loss_components), values, ranges, names))

    def warn_of_broken(self, process_index: int) -> None:
        """Names steps, terms and images of the losses that are NaN or infinite."""
        finite = torch.stack([batch[2] for batch in self._batches]).isfinite().tolist()
        for (step, terms, _, ranges, names), (is_finite, *are_finite) in zip(self._batches, finite, strict=True):
            if is_finite:
                continue
            images = {
                f"image {name} (pixel values from {low:g} to {high:g})": math.isfinite(low + high)
                for name, (low, high) in zip(names, ranges.tolist(), strict=True)
            }
            broken = " and ".join(image for image, is_whole in images.items() if not is_whole)
            logger.warning(
                "Step %d, process %d: the loss terms %s are NaN or infinite, because of %s.",
                step,
                process_index,
                ", ".join(term for term, is_finite in zip(terms, are_finite, strict=True) if not is_finite),
                broken or f"the weights or one of: {', '.join(images)}",
            )

    def means(self, accelerator: Any) -> dict[str, float]:
        """The mean of each term over all processes' finite losses, which are forgotten then; all must call this."""
        values, names = torch.stack([batch[2] for batch in self._batches]), self._batches[0][1]
        self._batches = []
        finite = values[:, :1].isfinite()
        sums = torch.cat((torch.where(finite, values[:, 1:], 0).sum(dim=0), finite.sum(dim=0)))
        *sums, number = accelerator.reduce(sums, reduction="sum").tolist()
        return {f"loss_{name}": value / number for name, value in zip(names, sums, strict=True) if number}


def _with_strides(strides: tuple[int, ...], gradient: Tensor) -> Tensor:
    """A gradient with its parameter's strides along sides of length 1, which say nothing, but which DDP compares."""
    compared = zip(gradient.stride(), strides, gradient.shape, strict=True)
    if any(own != wanted and size > 1 for own, wanted, size in compared):
        return gradient
    return gradient.as_strided(gradient.shape, strides)


def _without_adapters(model: nn.Module) -> nn.Module:
    """The segmentation model inside a `PeftModel` of peft, with its adapters in place; other models as they are."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


__all__ = ["MTAClipTrainer"]
