# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' `Trainer` with MTA-CLIP's parameter groups, schedule, loss terms and exact evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, ProgressCallback, SchedulerType, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput, has_length
from transformers.utils import logging

from ..inference import Segmenter
from ..loss_mtaclip import classes_of_images, loss_normalizers
from ..modeling_mtaclip import MTAClipForSemanticSegmentationOutput
from .arguments import MTAClipTrainingArguments
from .callbacks import (
    AveragedWeightsCallback,
    BriefProgressCallback,
    EpochCallback,
    FiniteGradientsCallback,
    TerminationCallback,
)
from .checkpoints import discard_failed_save, write_through
from .distribution import whole_weights
from .evaluated_images import ContextUsage, EvaluatedImage, align_masks
from .evaluation import EvaluationCollator, SegmentationScores
from .model_card import write_model_card
from .optimization import parameter_groups, polynomial_schedule
from .report import score_warnings


logger = logging.get_logger(__name__)


def without_adapters(model: nn.Module) -> nn.Module:
    """The segmentation model inside a `PeftModel` of peft, with its adapters in place; other models as they are."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
        self.tokenizer = tokenizer
        self.options = options or {}
        self.scores: SegmentationScores | None = None
        self._loss_sums: dict[str, Tensor] = {}
        self._loss_count = 0
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(EpochCallback(self.train_dataset))
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(BriefProgressCallback())
        self.add_callback(FiniteGradientsCallback(self.args.max_skipped_steps))
        self.termination = TerminationCallback()
        self.add_callback(self.termination)
        self.averages: AveragedWeightsCallback | None = None
        if self.args.ema_decay > 0:
            if self.is_fsdp_enabled:
                raise ValueError("`ema_decay` needs whole weights, but FSDP shards them. Leave it out, or use DDP.")
            self.averages = AveragedWeightsCallback(self.model, self.args.ema_decay)
            self.add_callback(self.averages)
        if self.args.freeze_backbone:
            self.model.model.backbone.requires_grad_(False)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Creates the optimizer that the arguments name, with the recipe's parameter groups."""
        if self.optimizer is None:
            args = self.args
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.model)
            groups = parameter_groups(
                without_adapters(self.model if model is None else model),
                args.learning_rate,
                args.weight_decay,
                args.backbone_lr_factor,
            )
            for group in groups:
                del group["param_names"]
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Creates the schedule; the polynomial one warms up from `warmup_start_factor`."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type == SchedulerType.POLYNOMIAL:
            self.lr_scheduler = polynomial_schedule(
                optimizer or self.optimizer,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_steps=num_training_steps,
                warmup_start_factor=self.args.warmup_start_factor,
                **(self.args.lr_scheduler_kwargs or {}),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """Collects the batches of one optimizer step, and what their losses are divided by: the parts' average."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        config = self.model.config
        for batch in batches:
            if "image_classes" not in batch:
                ignore_index = config.semantic_loss_ignore_index
                batch["image_classes"] = classes_of_images(batch["labels"], config.num_labels, ignore_index)
        if not batches:
            return batches, None
        normalizers = torch.stack([loss_normalizers(batch["image_classes"], config) for batch in batches]).mean(dim=0)
        return batches, self.accelerator.reduce(normalizers.to(self.args.device), reduction="mean")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Computes the loss without what only predictions need, and keeps its terms for the log."""
        if self.args.freeze_backbone:
            # Its batch norms use and keep the statistics they came with.
            self.accelerator.unwrap_model(model).model.backbone.eval()
        names = inputs.pop("names", None)
        inputs = inputs | {"loss_normalizers": num_items_in_batch}
        outputs = model(**inputs, output_logits=False, output_auxiliary_predictions=False)
        if not outputs.loss.isfinite():
            self._report_broken_loss(model, inputs, outputs.loss_components, names)
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        for name, value in outputs.loss_components.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0) + value
        self._loss_count += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    @torch.no_grad()
    def _report_broken_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], terms: dict[str, Tensor], names: list[str] | None
    ) -> None:
        """Says which terms of the loss are NaN or infinite, and which images make them so."""
        broken_terms = [name for name, value in terms.items() if not value.isfinite()]
        images = []
        for index in range(len(inputs["labels"])):
            one = {name: value[index : index + 1] for name, value in inputs.items() if name != "loss_normalizers"}
            loss = self.accelerator.unwrap_model(model)(**one, output_logits=False).loss
            if not loss.isfinite():
                pixels = one["pixel_values"]
                name = index if names is None else names[index]
                images.append(f"image {name} (pixel values from {pixels.min():g} to {pixels.max():g})")
        logger.warning(
            "Step %d, process %d: the loss terms %s are NaN or infinite, because of %s.",
            self.state.global_step + 1,
            self.args.process_index,
            ", ".join(broken_terms),
            " and ".join(images) or "the weights, or images only together",
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the mean of every loss term since the last time over all processes, or the IoU of each class."""
        if "eval_mean_iou" in logs:
            figures = self.scores.per_class().items()
            logs = logs | {f"eval_iou_{name}": each["iou"] for name, each in figures if each["iou"] is not None}
        if "loss" in logs and self._loss_count:
            sums = torch.stack(list(self._loss_sums.values())) / self._loss_count
            means = self.accelerator.reduce(sums, reduction="mean").tolist()
            logs |= {f"loss_{name}": value for name, value in zip(self._loss_sums, means, strict=True)}
            self._loss_sums, self._loss_count = {}, 0
        super().log(logs, start_time)

    def get_train_dataloader(self) -> DataLoader:
        """Streams give every process its own share already."""
        if self.train_dataset is None or has_length(self.train_dataset):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            drop_last=self.args.dataloader_drop_last,
        )

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """Every process reads its own share of the images, each image once; streams must give each its share."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Evaluation needs an `eval_dataset`.")
        options: dict[str, Any] = {}
        if has_length(dataset):
            options["sampler"] = range(self.args.process_index, len(dataset), self.args.world_size)
        return DataLoader(
            dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=EvaluationCollator(self.processing_class, self.args.inference_options.scales),
            num_workers=self.args.dataloader_num_workers,
            **options,
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Predicts every image and scores it at its own size; predictions are not kept.

        Arguments as for `transformers.Trainer.evaluation_loop`; `prediction_loss_only` and `ignore_keys` have no
        effect. The scores stay in `self.scores`.
        """
        config = self.accelerator.unwrap_model(self.model).config
        names = [config.id2label[index] for index in range(config.num_labels)]
        scores = SegmentationScores(names, config.semantic_loss_ignore_index, self.args.boundary_metrics)
        segmenter = self._segmenter(scores.contexts)
        num_images = 0
        self.callback_handler.eval_dataloader = dataloader
        with whole_weights(self.model):
            # Batches may be empty: unusable files are left out.
            for samples in filter(None, dataloader):
                sizes = [tuple(sample.annotation.shape) for sample in samples]
                predictions = segmenter.predict([sample.image for sample in samples], sizes)
                for sample, prediction in zip(samples, predictions, strict=True):
                    scores.add(prediction, sample.annotation, sample.name, sample.thumbnail)
                num_images += len(samples)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        scores.finish()
        self.scores = scores
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.summary().items()}
        num_images = int(self.accelerator.reduce(torch.tensor(num_images, device=self.args.device)))
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_images)

    def _segmenter(self, contexts: ContextUsage | None = None) -> Segmenter:
        """Predicts as the arguments say, in the precision of training."""
        model = self.accelerator.unwrap_model(self.model).to(self.args.device)
        if not self.is_in_train and (self.args.bf16_full_eval or self.args.fp16_full_eval):
            model = model.to(torch.bfloat16 if self.args.bf16_full_eval else torch.float16)

        def forward(pixel_values: Tensor) -> MTAClipForSemanticSegmentationOutput:
            with self.compute_loss_context_manager():
                outputs = model(pixel_values=pixel_values)
            if contexts is not None:
                contexts.add(outputs.class_queries_logits, outputs.mask_text_similarity)
            return outputs

        return Segmenter(model, self.processing_class, self.args.inference_options, forward)

    def predict_image(self, image: Image.Image) -> np.ndarray:
        """Predicts one image as evaluation does.

        Returns:
            `np.ndarray` of shape `(height, width)`: int64, class ids at the image's own size.
        """
        return self._segmenter()([image])[0].cpu().numpy()

    def evaluated_image(self, example: Mapping[str, Any]) -> EvaluatedImage:
        """Predicts an evaluation example as evaluation does, and aligns its masks in the image as a whole."""
        image, model = example["image"], self.accelerator.unwrap_model(self.model)
        prediction = self.predict_image(image)
        with self.compute_loss_context_manager():
            alignment = align_masks(model, self.processing_class, image)
        return EvaluatedImage(example.get("name", ""), image, example["annotation"], prediction, alignment=alignment)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates; in training with `ema_decay`, the averaged weights."""
        if self.averages is None or not self.is_in_train:
            return super().evaluate(*args, **kwargs)
        with self.averages.applied():
            return super().evaluate(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains; with `ema_decay`, the model ends with the averaged weights."""
        if self.averages is not None and resume_from_checkpoint:
            self.averages.load(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, **kwargs)
        if self.averages is not None:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self.averages.load(self.state.best_model_checkpoint)
            self.averages.copy_to_model()
        return output

    def use_saved_model(self) -> None:
        """Takes the model from the output folder: whole on every process, where training had it in shards."""
        self.accelerator.wait_for_everyone()
        self.model = type(self.model).from_pretrained(self.args.output_dir).eval()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves a checkpoint whose last file says that it is complete.

        Raises:
            TrainingStopped: it can't be written, for example because the disk is full.
        """
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise discard_failed_save(folder, error) from error

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | Sequence[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the model card into the output folder; `push_to_hub` does so before it uploads the folder.

        Arguments as for `transformers.Trainer.create_model_card`, of which `tasks`, `dataset_tags` and `dataset_args`
        have no effect: the task is fixed, and the data set is the run's.
        """
        if not self.is_world_process_zero():
            return
        datasets = {"training": self.train_dataset, "validation": self.eval_dataset}
        path = Path(self.args.output_dir) / "README.md"
        is_written = write_model_card(
            path,
            model=self.accelerator.unwrap_model(self.model),
            image_processor=self.processing_class,
            model_id=self.hub_model_id or self.args.hub_model_id or model_name or Path(self.args.output_dir).name,
            options=self.options,
            history=self.state.log_history,
            data=getattr(getattr(self.train_dataset, "data", None), "info", None),
            num_images={name: len(images) for name, images in datasets.items() if has_length(images)},
            warnings=[] if self.scores is None else score_warnings(self.scores),
            license=license or self.args.hub_license,
            tags=tags,
            language=language,
            datasets=dataset,
            base_model=finetuned_from,
        )
        if not is_written:
            logger.warning("%s is left as it is: it was not written by a training run.", path)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(output_dir or self.args.output_dir)
        if self.averages is not None and self.is_in_train:
            self.averages.save(output_dir or self.args.output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves every process's own state, and waits for all: the last file, written next, vouches for the others."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_through(Path(output_dir))


__all__ = ["MTAClipTrainer", "without_adapters"]
