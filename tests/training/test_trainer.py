# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The trainer: the same steps on one process and on two, exact evaluation, and every loss term in the log."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from modeling_mtaclip.data import TrainingCollator
from modeling_mtaclip.inference import InferenceOptions, Segmenter
from modeling_mtaclip.metrics import MeanIoU
from modeling_mtaclip.training.evaluation import SegmentationScores
from tests.processes import run_on_processes
from tests.tiny import CLASS_NAMES, tiny_model, varied_model
from tests.training.distributed_steps import (
    convnext_config,
    evaluation_example,
    example,
    train_some_steps,
    trainer,
)


EXAMPLES = [example(index) for index in range(8)]
EVALUATED = [evaluation_example(index) for index in range(5)]


def run_steps(folder, num_processes, **options):
    """Trains some steps and returns the final weights, the log of each step, the evaluation and the output."""
    output = run_on_processes(num_processes, folder / "logs", partial(train_some_steps, folder, **options))
    log = json.loads((folder / "log.json").read_text())
    steps = [entry for entry in log["history"] if "loss" in entry]
    return load_file(folder / "weights.safetensors"), steps, log["metrics"], output


@pytest.mark.slow
def test_a_split_batch_gives_the_steps_of_the_whole(tmp_path):
    whole, steps, metrics, _ = run_steps(tmp_path / "whole", 1, per_device_train_batch_size=4)
    for num_processes, batch_size, accumulation in ((2, 2, 1), (1, 2, 2), (2, 1, 2)):
        parts, part_steps, part_metrics, output = run_steps(
            tmp_path,
            num_processes,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=batch_size,
            ddp_static_graph=accumulation == 1 or None,
        )
        assert len(steps) == 3
        for step, part_step in zip(steps, part_steps, strict=True):
            assert step == pytest.approx(part_step, rel=1e-5)
        for name, value in whole.items():
            torch.testing.assert_close(value, parts[name], rtol=0, atol=1e-5, msg=name)
        scores = [name for name in metrics if "runtime" not in name and "per_second" not in name]
        assert {name: metrics[name] for name in scores} == {name: part_metrics[name] for name in scores}
        # DDP warns of gradients with other strides than their parameters, and of parameters without gradient.
        assert not any(word in output for word in ("stride", "unused"))


def test_every_loss_term_is_logged_as_the_mean_over_the_steps(tmp_path):
    model, recorded = tiny_model(), []
    run = trainer(tmp_path, model, train_dataset=EXAMPLES, logging_steps=2, report_to="tensorboard", do_train=True)
    model.register_forward_hook(lambda module, inputs, outputs: recorded.append(outputs))
    run.train()
    # Neither label maps nor masks are made for a loss.
    assert recorded[0].logits is None
    assert recorded[0].masks_queries_logits is None
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    layers = ["", *(f"_{index}" for index in range(4))]
    weights = {"cross_entropy": 2.0, "mask": 5.0, "dice": 5.0, "contrastive": 1.0}
    names = {f"loss_{term}{layer}" for term in weights for layer in layers}
    assert {name for name in entry if name.startswith("loss_")} == names
    for name in names:
        terms = [float(outputs.loss_components[name.removeprefix("loss_")]) for outputs in recorded]
        assert entry[name] == pytest.approx(sum(terms) / 2, rel=1e-5)
    total = sum(weight * entry[f"loss_{term}{layer}"] for term, weight in weights.items() for layer in layers)
    assert entry["loss"] == pytest.approx(total, rel=1e-4)
    (folder,) = tmp_path.glob("runs/*")
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    for name in (*names, "loss", "learning_rate"):
        assert accumulator.Scalars(f"train/{name}")[0].value == pytest.approx(entry[name])


def test_the_loss_after_training_is_the_plain_one(tmp_path):
    model = tiny_model(backbone_config=convnext_config())
    trainer(tmp_path, model, max_steps=1, train_dataset=EXAMPLES[1:3]).train()
    batch = TrainingCollator(model.config.num_labels)([example(5)])
    loss = model.eval()(**batch).loss
    fresh = tiny_model(backbone_config=convnext_config())
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(loss, fresh(**batch).loss)


class Questions(TorchDispatchMode):
    """Counts operations for which a device would be waited for."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


class Steps(TrainerCallback):
    """Counts the questions of each step from its first batch to its end, other callbacks' included."""

    def __init__(self):
        self.questions = []

    def on_step_begin(self, *args, **kwargs):
        self.mode = Questions()
        self.mode.__enter__()

    def on_step_end(self, *args, **kwargs):
        self.mode.__exit__(None, None, None)
        self.questions.append(self.mode.number)


def test_steps_do_not_wait_for_the_device(tmp_path):
    examples = {"train_dataset": EXAMPLES, "data_collator": TrainingCollator(3)}
    run, steps = trainer(tmp_path, **examples, max_steps=5, logging_steps=4, ema_decay=0.9), Steps()
    run.add_callback(steps)
    run.train()
    assert steps.questions == [0] * 5
    # Terms wait for the next line of the log without the graphs they come from.
    assert [terms.requires_grad for _, terms, _, _ in run._terms._batches] == [False]


class Stream(IterableDataset):
    """Examples that can only be read one after the other."""

    def __iter__(self):
        return iter(EVALUATED)


def matrix_of(predictions):
    expected = MeanIoU(num_labels=len(CLASS_NAMES), ignore_index=255)
    for each, prediction in zip(EVALUATED, predictions, strict=True):
        expected.add(prediction=prediction, reference=np.array(each["annotation"]))
    return expected.confusion_matrix()


def test_evaluation_is_at_the_size_of_the_annotation_for_any_batch_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, predictions = tiny_model(), []
    processor = trainer(tmp_path).processing_class
    for each in EVALUATED:
        with torch.no_grad():
            outputs = model(**processor(each["image"], return_tensors="pt"))
        sizes = [each["annotation"].size[::-1]]
        predictions += processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for dataset, batch_size in ((EVALUATED, 1), (EVALUATED, 3), (EVALUATED, 5), (Stream(), 2)):
        options = {"per_device_eval_batch_size": batch_size, "report_to": "tensorboard", "do_eval": True}
        run = trainer(tmp_path / "out", model, eval_dataset=dataset, **options)
        metrics = run.evaluate()
        assert torch.equal(run.scores.matrix, matrix_of(predictions))
    assert not (tmp_path / "runs").exists(), "evaluation alone leaves no log in the working folder"
    classes = run.scores.per_class()
    assert metrics["eval_mean_iou"] == pytest.approx(np.mean([each["iou"] for each in classes.values()]))
    logged = run.state.log_history[-1]
    assert {name: logged[f"eval_iou_{name}"] for name in CLASS_NAMES} == {
        n: each["iou"] for n, each in classes.items()
    }
    with pytest.raises(ValueError, match="needs one `eval_dataset`, got None"):
        trainer(tmp_path).evaluate()


def test_evaluation_predicts_by_windows_or_with_augmentation_as_its_options_say(tmp_path):
    model, encodings = varied_model(), []
    processor = trainer(tmp_path).processing_class
    model.model.text_model.register_forward_hook(lambda *_: encodings.append(None))
    whole = trainer(tmp_path, model, eval_dataset=EVALUATED, per_device_eval_batch_size=1)
    whole.evaluate()
    assert len(encodings) == 1, "class names are encoded once"
    sliding = {"inference_mode": "slide", "window": [64], "stride": [32, 16]}
    for arguments, options in (
        (sliding, InferenceOptions("slide", (64, 64), (32, 16))),
        ({"tta": True}, InferenceOptions(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)),
    ):
        run = trainer(tmp_path, model, eval_dataset=EVALUATED, per_device_eval_batch_size=2, **arguments)
        run.evaluate()
        predictions = Segmenter(model, processor, options)([each["image"] for each in EVALUATED])
        shown = run.evaluated_image(EVALUATED[0]).prediction
        assert (shown == predictions[0].numpy()).mean() > 0.999
        pixels = run.scores.matrix.sum()
        assert (run.scores.matrix - matrix_of(predictions)).abs().sum() <= 0.002 * pixels
        assert (run.scores.matrix - whole.scores.matrix).abs().sum() > 0.02 * pixels


def test_evaluation_in_half_precision(tmp_path):
    run = trainer(tmp_path, tiny_model(), eval_dataset=EVALUATED[:1], bf16_full_eval=True)
    assert run.evaluate()["eval_mean_iou"] >= 0
    assert next(run.model.parameters()).dtype == torch.bfloat16


class Epochs(list):
    """Examples that note which epochs they are told of."""

    def set_epoch(self, epoch):
        self.epochs = {*getattr(self, "epochs", ()), epoch}


def test_examples_are_told_each_epoch(tmp_path):
    examples = Epochs(EXAMPLES[:4])
    trainer(tmp_path, train_dataset=examples, max_steps=5).train()
    assert examples.epochs == {0, 1, 2}


def test_constant_prediction_is_scored_by_hand():
    scores = SegmentationScores(["a", "b", "c"], ignore_index=255)
    scores.add(torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1, 255]]))
    scores.finish()
    assert scores.summary() == {
        "mean_iou": pytest.approx((2 / 3 + 1 / 2) / 2),
        "mean_accuracy": pytest.approx((2 / 3 + 1) / 2),
        "overall_accuracy": pytest.approx(3 / 4),
        "frequency_weighted_iou": pytest.approx((3 * 2 / 3 + 1 / 2) / 4),
        "constant_mean_iou": pytest.approx((3 / 4 + 0) / 2),
        "num_annotated_classes": 2,
        "num_classes": 3,
    }
    assert scores.per_class()["c"] == {"iou": None, "accuracy": None}


def test_optimizer_has_the_recipes_groups_and_schedule(tmp_path):
    run = trainer(tmp_path, learning_rate=1e-3, backbone_lr_factor=0.5, weight_decay=0.1, warmup_steps=0)
    run.create_optimizer_and_scheduler(10)
    groups = {group["name"]: (group["initial_lr"], group["weight_decay"]) for group in run.optimizer.param_groups}
    assert groups == {
        "decoder": (1e-3, 0.1),
        "decoder, no decay": (1e-3, 0.0),
        "backbone": (5e-4, 0.1),
        "backbone, no decay": (5e-4, 0.0),
    }
    trained = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in run.model.parameters() if parameter.requires_grad}
    run.optimizer.step()
    run.lr_scheduler.step()
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.9**0.9)


def test_a_frozen_backbone_stays_as_it_is(tmp_path):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(tmp_path, model, train_dataset=EXAMPLES, freeze_backbone=True).train()
    for name, value in model.state_dict().items():
        if ".backbone." in name:
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.class_predictor.weight, before["class_predictor.weight"])


def test_the_log_is_printed_without_earlier_layers_and_single_classes(tmp_path, capsys):
    evaluation = {"eval_dataset": EVALUATED, "eval_strategy": "steps", "eval_steps": 2}
    trainer(tmp_path, train_dataset=EXAMPLES, **evaluation, disable_tqdm=False).train()
    printed = capsys.readouterr().out
    assert "loss_mask" in printed
    assert "eval_mean_iou" in printed
    assert not any(hidden in printed for hidden in ("loss_mask_0", "eval_iou_road"))
