# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The trainer: the same steps on one process and on two, exact evaluation, and every loss term in the log."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.data import TrainingCollator
from modeling_mtaclip.inference import InferenceOptions, Segmenter
from modeling_mtaclip.metrics import MeanIoU
from modeling_mtaclip.training import MTAClipTrainer, MTAClipTrainingArguments
from modeling_mtaclip.training.evaluation import SegmentationScores
from tests.processes import run_on_processes
from tests.tiny import CLASS_NAMES, tiny_model, varied_model
from tests.training import distributed_steps
from tests.training.distributed_steps import convnext_config, evaluation_example, example


def run_steps(folder, num_processes, **options):
    """Trains some steps and returns the final weights, the log of each step, the evaluation and the output."""
    if num_processes == 1:
        output = distributed_steps.train_some_steps(folder, **options)
    else:
        train = partial(distributed_steps.train_some_steps, folder, **options)
        output = run_on_processes(num_processes, folder / "logs", train)
    log = json.loads((folder / "log.json").read_text())
    steps = [entry for entry in log["history"] if "loss" in entry]
    return load_file(folder / "weights.safetensors"), steps, log["metrics"], output


@pytest.fixture(scope="module")
def whole_batch_run(tmp_path_factory):
    return run_steps(tmp_path_factory.mktemp("whole"), num_processes=1, batch_size=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "options"),
    [
        (2, {"batch_size": 2, "static_graph": True}),
        (1, {"batch_size": 2, "accumulation_steps": 2}),
        (2, {"batch_size": 1, "accumulation_steps": 2}),
    ],
)
def test_a_split_batch_gives_the_steps_of_the_whole(tmp_path, whole_batch_run, num_processes, options):
    whole, steps, metrics, _ = whole_batch_run
    parts, part_steps, part_metrics, output = run_steps(tmp_path, num_processes, **options)
    assert len(steps) == 3
    for step, part_step in zip(steps, part_steps, strict=True):
        assert step == pytest.approx(part_step, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=0, atol=1e-5, msg=name)
    scores = [name for name in metrics if "runtime" not in name and "per_second" not in name]
    assert {name: metrics[name] for name in scores} == {name: part_metrics[name] for name in scores}
    # DDP warns of gradients with other strides than their parameters, and of parameters without gradient.
    assert num_processes == 1 or not any(word in output for word in ("stride", "unused"))


TRAINER_ARGUMENTS = ("train_dataset", "eval_dataset", "data_collator")


def trainer(tmp_path, model=None, **options):
    defaults = {
        "output_dir": str(tmp_path),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_num_workers": 0,
    }
    datasets = {name: options.pop(name) for name in TRAINER_ARGUMENTS if name in options}
    return MTAClipTrainer(
        model=tiny_model() if model is None else model,
        args=MTAClipTrainingArguments(**(defaults | options)),
        processing_class=MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}),
        **datasets,
    )


def test_every_loss_term_is_logged_as_the_mean_over_the_steps(tmp_path):
    model = tiny_model()
    run = trainer(tmp_path, model, train_dataset=[example(index) for index in range(4)], logging_steps=2)
    recorded = []
    model.register_forward_hook(lambda module, inputs, outputs: recorded.append(outputs.loss_components))
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    layers = ["", *(f"_{index}" for index in range(4))]
    names = {f"{term}{layer}" for term in ("cross_entropy", "mask", "dice", "contrastive") for layer in layers}
    assert {name.removeprefix("loss_") for name in entry if name.startswith("loss_")} == names
    for name in names:
        assert entry[f"loss_{name}"] == pytest.approx(sum(float(terms[name]) for terms in recorded) / 2, rel=1e-5)
    weights = {"cross_entropy": 2.0, "mask": 5.0, "dice": 5.0, "contrastive": 1.0}
    total = sum(weight * entry[f"loss_{term}{layer}"] for term, weight in weights.items() for layer in layers)
    assert entry["loss"] == pytest.approx(total, rel=1e-4)


def test_the_loss_after_training_is_the_plain_one(tmp_path):
    model = tiny_model(backbone_config=convnext_config())
    trainer(tmp_path, model, max_steps=1, train_dataset=[example(index) for index in (1, 2)]).train()
    batch = TrainingCollator(model.config.num_labels)([example(5)])
    loss = model.eval()(**batch).loss
    fresh = tiny_model(backbone_config=convnext_config())
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(loss, fresh(**batch).loss)


def test_a_training_step_makes_no_logits(tmp_path):
    model = tiny_model()
    outputs = []
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    trainer(tmp_path, model, train_dataset=[example(0), example(1)], max_steps=1).train()
    assert outputs[0].logits is None
    assert outputs[0].masks_queries_logits is None


class Questions(TorchDispatchMode):
    """Counts operations for which a device would be waited for."""

    def __init__(self):
        super().__init__()
        self.number = 0

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
    examples = {"train_dataset": [example(index) for index in range(8)], "data_collator": TrainingCollator(3)}
    run = trainer(tmp_path, **examples, max_steps=5, logging_steps=4, ema_decay=0.9)
    steps = Steps()
    run.add_callback(steps)
    run.train()
    assert steps.questions == [0] * 5


def test_evaluation_is_at_the_size_of_the_annotation_for_any_batch_size(tmp_path):
    model = tiny_model()
    examples = [evaluation_example(index) for index in range(5)]
    expected = MeanIoU(num_labels=len(CLASS_NAMES), ignore_index=255)
    processor = trainer(tmp_path).processing_class
    for each in examples:
        with torch.no_grad():
            outputs = model(**processor(each["image"], return_tensors="pt"))
        annotation = np.array(each["annotation"])
        prediction = processor.post_process_semantic_segmentation(outputs, target_sizes=[annotation.shape])[0]
        expected.add(prediction=prediction, reference=annotation)
    matrix = expected.confusion_matrix()
    for batch_size in (1, 3, 5):
        run = trainer(tmp_path, model, eval_dataset=examples, per_device_eval_batch_size=batch_size)
        metrics = run.evaluate()
        assert torch.equal(run.scores.matrix, matrix)
    assert metrics["eval_mean_iou"] == expected.compute()["mean_iou"]


def test_evaluation_predicts_by_windows_or_with_augmentation_as_its_options_say(tmp_path):
    model, examples = varied_model(), [evaluation_example(index) for index in range(3)]
    processor = trainer(tmp_path).processing_class
    encodings = []
    model.model.text_model.register_forward_hook(lambda *_: encodings.append(None))
    whole = trainer(tmp_path, model, eval_dataset=examples, per_device_eval_batch_size=1)
    whole.evaluate()
    assert len(encodings) == 1, "class names are encoded once"
    sliding = {"inference_mode": "slide", "window": [64], "stride": [32, 16]}
    for arguments, options in (
        (sliding, InferenceOptions("slide", (64, 64), (32, 16))),
        ({"tta": True}, InferenceOptions(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)),
    ):
        run = trainer(tmp_path, model, eval_dataset=examples, per_device_eval_batch_size=2, **arguments)
        run.evaluate()
        expected = MeanIoU(num_labels=len(CLASS_NAMES), ignore_index=255)
        for each in examples:
            (prediction,) = Segmenter(model, processor, options)([each["image"]])
            expected.add(prediction=prediction, reference=np.array(each["annotation"]))
            assert (run.evaluated_image(each).prediction == prediction.numpy()).mean() > 0.999
        difference = (run.scores.matrix - expected.confusion_matrix()).abs().sum()
        assert difference <= 0.002 * run.scores.matrix.sum()
        assert (run.scores.matrix - whole.scores.matrix).abs().sum() > 0.02 * run.scores.matrix.sum()


def test_evaluation_in_half_precision(tmp_path):
    run = trainer(tmp_path, tiny_model(), eval_dataset=[evaluation_example(0)], bf16_full_eval=True)
    assert run.evaluate()["eval_mean_iou"] >= 0
    assert next(run.model.parameters()).dtype == torch.bfloat16


class Epochs(list):
    """Examples that note which epochs they are told of."""

    def set_epoch(self, epoch):
        self.epochs = [*getattr(self, "epochs", []), epoch]


def test_examples_are_told_each_epoch(tmp_path):
    examples = Epochs(example(index) for index in range(4))
    trainer(tmp_path, train_dataset=examples, max_steps=5).train()
    assert sorted(set(examples.epochs)) == [0, 1, 2]


class Stream(IterableDataset):
    """Five examples that can only be read one after the other."""

    def __iter__(self):
        return (evaluation_example(index) for index in range(5))


def test_streams_are_evaluated_like_lists(tmp_path):
    model = tiny_model()
    listed = trainer(tmp_path, model, eval_dataset=[evaluation_example(index) for index in range(5)])
    streamed = trainer(tmp_path, model, eval_dataset=Stream())
    for run in (listed, streamed):
        run.evaluate()
    assert torch.equal(listed.scores.matrix, streamed.scores.matrix)


def test_constant_prediction_is_scored_by_hand():
    scores = SegmentationScores(["a", "b", "c"], ignore_index=255)
    annotation = torch.tensor([[0, 0, 0, 1, 255]])
    scores.add(torch.tensor([[0, 0, 1, 1, 1]]), annotation)
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
