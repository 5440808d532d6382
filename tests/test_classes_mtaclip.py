# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Trained models loaded with other classes, as scripts written for other segmentation models load them."""

import json
import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
)

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.configuration_mtaclip import tokenize_names
from modeling_mtaclip.conversion import make_tokenizer
from modeling_mtaclip.data.scenes import make_scene
from modeling_mtaclip.metrics import MeanIoU
from tests.tiny import assert_near, tiny_config


OLD, NEW = ["road", "tree", "sky"], ["sky", "boat", "road", "water"]
TOKENIZER = make_tokenizer([*OLD, *NEW, "none"])


WITHOUT_THE_PACKAGE = """
import builtins, json, sys

sys.modules["modeling_mtaclip"] = None  # any import of the package fails
questions = []
builtins.input = lambda question: questions.append(question) or "n"
from transformers import AutoModelForSemanticSegmentation

folder, names = sys.argv[1], sys.argv[2:]
labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
model = AutoModelForSemanticSegmentation.from_pretrained(
    folder, trust_remote_code=True, ignore_mismatched_sizes=True, **labels
)
print(json.dumps([type(model).__module__, model.config.class_token_ids, questions]))
"""


@pytest.fixture
def folder(tmp_path):
    text_config = tiny_config().text_config
    text_config.vocab_size = len(TOKENIZER)
    config = tiny_config(
        id2label=dict(enumerate(OLD)),
        class_token_ids=tokenize_names([*OLD, "none"], TOKENIZER),
        prompt_start_token_id=TOKENIZER.bos_token_id,
        prompt_end_token_id=TOKENIZER.eos_token_id,
        text_config=text_config,
    )
    MTAClipForSemanticSegmentation(config).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    MTAClipImageProcessor(do_resize=False).save_pretrained(tmp_path)
    return tmp_path


def labels(names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def load(folder, way, names, **options):
    """The two ways in which scripts name their classes."""
    if way == "config":
        options["config"] = AutoConfig.from_pretrained(folder, **labels(names))
    else:
        options |= labels(names)
    return AutoModelForSemanticSegmentation.from_pretrained(folder, **options)


@pytest.mark.parametrize("way", ["arguments", "config"])
def test_weights_move_with_the_names(folder, way, caplog):
    source = AutoModelForSemanticSegmentation.from_pretrained(folder)
    logging.getLogger("transformers").addHandler(caplog.handler)
    caplog.set_level(logging.WARNING)
    model = load(folder, way, NEW, ignore_mismatched_sizes=True)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert list(model.config.id2label.values()) == NEW
    assert model.class_predictor.weight.shape[0] == 5
    for here, there in ((0, 2), (2, 0), (4, 3)):  # sky, road and "no object"
        assert torch.equal(model.class_predictor.weight[here], source.class_predictor.weight[there])
        assert torch.equal(model.class_predictor.bias[here], source.class_predictor.bias[there])
        positions, other = (each.model.decoder.text_query_positions for each in (model, source))
        assert torch.equal(positions[:, here], other[:, there])
    for name, tensor in source.state_dict().items():
        if name not in ("class_predictor.weight", "class_predictor.bias", "model.decoder.text_query_positions"):
            assert torch.equal(model.state_dict()[name], tensor), name
    with torch.no_grad():
        texts, source_texts = (each.model.text_model.get_text_embeddings() for each in (model.eval(), source))
    torch.testing.assert_close(texts[:, [0, 2, 4]], source_texts[:, [2, 0, 3]])
    assert "new: boat, water; not used: tree" in caplog.text
    assert not any(weight.requires_grad for weight in model.model.text_model.text_encoder.parameters())


def test_renamed_classes_keep_their_places(folder):
    source = AutoModelForSemanticSegmentation.from_pretrained(folder)
    model = load(folder, "arguments", ["street", "tree", "sky"])
    assert torch.equal(model.class_predictor.weight, source.class_predictor.weight)
    assert list(model.config.id2label.values()) == ["street", "tree", "sky"]
    assert model.config.class_token_ids["street"] != model.config.class_token_ids["road"]


def test_new_classes_are_saved(folder, tmp_path):
    model = load(folder, "config", NEW, ignore_mismatched_sizes=True).eval()
    model.save_pretrained(tmp_path / "new")
    images = torch.randn(1, 3, 64, 64)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "new")
    with torch.no_grad():
        assert_near(loaded(images), model(images))


def test_folders_inside_a_repository(folder, tmp_path):
    """All parts of a checkpoint are looked for in the same place."""
    inner = tmp_path / "repository" / "inner"
    shutil.copytree(folder, inner, ignore=shutil.ignore_patterns("repository"))
    model = load(inner.parent, "arguments", NEW, ignore_mismatched_sizes=True, subfolder="inner")
    assert list(model.config.id2label.values()) == NEW


@pytest.mark.slow
def test_without_the_package(folder, tmp_path):
    """Whoever has allowed the folder's code is not asked again, on the terminal, for the tokenizer."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(folder), *NEW],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    module, token_ids, questions = json.loads(result.stdout.splitlines()[-1])
    assert module.startswith("transformers_modules.")
    assert token_ids == tokenize_names([*OLD, "none", "boat", "water"], TOKENIZER)
    assert questions == []


def test_base_model(folder):
    model = AutoModel.from_pretrained(folder, **labels(NEW), ignore_mismatched_sizes=True)
    assert model.decoder.text_query_positions.shape[1] == 5


@pytest.mark.parametrize(
    ("options", "removed", "message"),
    [
        ({}, None, "names 4 classes, but the checkpoint has 3. Pass `ignore_mismatched_sizes=True`"),
        ({"ignore_mismatched_sizes": True}, "tokenizer*", "no tokenizer for the new class names ['boat', 'water']"),
        ({"ignore_mismatched_sizes": True, "device_map": "auto"}, None, "`device_map` can't be combined"),
    ],
)
def test_errors(folder, options, removed, message):
    for path in folder.glob(removed) if removed else ():
        path.unlink()
    with pytest.raises(ValueError, match=re.escape(message)):
        load(folder, "arguments", NEW, **options)


def test_a_script_written_for_segformer(folder):
    """The steps of a usual script: processor with maps, loss, upsampled logits, step of an optimiser."""
    processor = AutoImageProcessor.from_pretrained(folder, do_reduce_labels=False)
    model = load(folder, "arguments", NEW, ignore_mismatched_sizes=True)
    scenes = [make_scene(index) for index in range(2)]
    maps = [np.asarray(label_map) % len(NEW) for _, label_map in scenes]
    inputs = processor([image for image, _ in scenes], segmentation_maps=maps, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    outputs = model.train()(**inputs)
    outputs.loss.backward()
    optimizer.step()
    upsampled = torch.nn.functional.interpolate(outputs.logits, size=inputs["labels"].shape[-2:], mode="bilinear")
    assert upsampled.argmax(dim=1).shape == inputs["labels"].shape
    assert upsampled.shape[1] == len(NEW)


def test_the_plain_trainer_evaluates_the_logits(folder, tmp_path):
    """As transformers' example for semantic segmentation does: metrics from `logits` alone, over uneven batches."""
    model = load(folder, "config", NEW, ignore_mismatched_sizes=True)
    scenes = [make_scene(index) for index in range(3)]
    data = [
        {
            "pixel_values": torch.from_numpy(np.array(image.resize((64, 64)))).permute(2, 0, 1) / 255,
            "labels": torch.from_numpy(np.array(label_map.resize((64, 64), 0))).long() % len(NEW),
        }
        for image, label_map in scenes
    ]

    def compute_metrics(prediction):
        assert prediction.predictions.shape == (3, len(NEW), 16, 16)
        upsampled = torch.nn.functional.interpolate(torch.from_numpy(prediction.predictions), size=(64, 64))
        predictions = upsampled.argmax(dim=1).numpy()
        figures = MeanIoU().compute(
            predictions=predictions, references=prediction.label_ids, num_labels=len(NEW), ignore_index=0
        )
        return {"mean_iou": figures["mean_iou"]}

    arguments = TrainingArguments(
        tmp_path / "out", max_steps=1, per_device_eval_batch_size=2, remove_unused_columns=False, report_to="none"
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=compute_metrics)
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_mean_iou"] <= 1
