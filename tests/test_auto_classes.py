# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The package in transformers' hands: Auto classes, pipelines, and saved folders without the package."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

from modeling_mtaclip import MTAClipConfig, MTAClipForSemanticSegmentation, MTAClipImageProcessor, MTAClipModel
from modeling_mtaclip.configuration_mtaclip import tokenize_names
from modeling_mtaclip.conversion import make_tokenizer
from tests.tiny import CLASS_NAMES, assert_same_labels, label_map, text_fields, tiny_model, varied_model


TOKENIZER = make_tokenizer([*CLASS_NAMES, "none"])
WITHOUT_THE_PACKAGE = """
import builtins, json, logging, sys

sys.modules["modeling_mtaclip"] = None  # any import of the package fails
import numpy as np
import torch
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline, utils
)

records, questions = [], []
builtins.input = lambda question: questions.append(question) or "n"
handler = logging.Handler(level=logging.ERROR)
handler.emit = lambda record: records.append(record.getMessage())
utils.logging.add_handler(handler)
folder, image = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pil = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend="pil")
pil.save_pretrained("again")
again = AutoImageProcessor.from_pretrained("again", trust_remote_code=True)
frozen = sum(not weight.requires_grad for weight in model.parameters())
segment = pipeline("image-segmentation", model=folder, trust_remote_code=True)
from PIL import Image
with torch.no_grad():
    outputs = model(**processor(Image.open(image), return_tensors="pt"))
    model.save_for_inference("deployed")
    deployed = AutoModelForSemanticSegmentation.from_pretrained("deployed", trust_remote_code=True)
    AutoImageProcessor.from_pretrained("deployed", trust_remote_code=True)
    deployed_outputs = deployed(**processor(Image.open(image), return_tensors="pt"))
print(json.dumps({
    "module": type(model).__module__,
    "other_classes": model.with_classes(["boat", "road"]).config.class_token_ids,
    "deployed_sum": deployed_outputs.logits.double().sum().item(),
    "questions": questions,
    "classes": [type(value).__name__ for value in (config, base, model, processor, pil, again)],
    "sum": outputs.logits.double().sum().item(),
    "frozen": frozen,
    "segments": {s["label"]: int((np.array(s["mask"]) > 0).sum()) for s in segment(image)},
    "errors": records,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    varied_model(**text_fields(CLASS_NAMES, TOKENIZER)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    MTAClipImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 95, 3), dtype=np.uint8)).save(path)
    return path


def expected_labels(folder, image):
    model = MTAClipForSemanticSegmentation.from_pretrained(folder)
    processor = MTAClipImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(Image.open(image), return_tensors="pt"))
    return outputs, processor.post_process_semantic_segmentation(outputs, [(70, 95)])[0].numpy()


def test_auto_classes(folder):
    for auto_class, expected in (
        (AutoConfig, MTAClipConfig),
        (AutoModel, MTAClipModel),
        (AutoModelForSemanticSegmentation, MTAClipForSemanticSegmentation),
        (AutoImageProcessor, MTAClipImageProcessor),
    ):
        assert type(auto_class.from_pretrained(folder)) is expected


@pytest.mark.parametrize("kind", ["image", "path", "list", "batch"])
def test_pipeline(folder, image, kind, caplog, monkeypatch):
    questions = []
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
    segment = pipeline("image-segmentation", model=str(folder))
    # More images in the batch than prompt contexts, which are the first dimension of the text embeddings.
    several = [str(image), Image.open(image), str(image), str(image), Image.open(image)]
    inputs = {"image": Image.open(image), "path": str(image)}.get(kind, several)
    answer = segment(inputs, batch_size=5 if kind == "batch" else 1)
    assert not [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert not questions
    _, labels = expected_labels(folder, image)
    for segments in answer if inputs is several else [answer]:
        assert_same_labels(label_map(segments), labels)


@pytest.mark.slow
def test_saved_folder_works_without_the_package(folder, image, tmp_path):
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, folder, image]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    outputs, labels = expected_labels(folder, image)
    parts = ("Config", "Model", "ForSemanticSegmentation", "ImageProcessor", "ImageProcessorPil", "ImageProcessor")
    assert answer["classes"] == [f"MTAClip{part}" for part in parts]
    assert answer["module"].startswith("transformers_modules.")
    assert answer["other_classes"] == tokenize_names(["boat", "road", "none"], TOKENIZER)
    assert answer["questions"] == []
    assert answer["deployed_sum"] == pytest.approx(answer["sum"], rel=1e-5)
    assert answer["sum"] == pytest.approx(outputs.logits.double().sum().item(), rel=1e-5)
    assert answer["frozen"] == len(list(tiny_model().model.text_model.text_encoder.parameters()))
    pixels = {name: answer["segments"].get(name, 0) for name in CLASS_NAMES}
    assert pixels == {name: pytest.approx((labels == label).sum(), abs=7) for label, name in enumerate(CLASS_NAMES)}
    assert answer["errors"] == []
