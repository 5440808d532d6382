# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported programs and ONNX files against the model, at sizes and batches they were not exported with."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import TimmBackboneConfig

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.export import (
    Comparison,
    OnnxModel,
    ProgramModel,
    compare_with_model,
    export_onnx,
    export_program,
    quantize_onnx,
)
from modeling_mtaclip.export.programs import OUTPUTS, ExportableModel
from modeling_mtaclip.inference import Segmenter
from modeling_mtaclip.modeling_mtaclip import MTAClipForSemanticSegmentationOutput
from modeling_mtaclip.postprocessing_mtaclip import semantic_labels
from tests.tiny import CLASS_NAMES, tiny_model


SIZES = [(1, 64, 64), (3, 97, 120), (2, 33, 200)]
PROCESSOR = MTAClipImageProcessor(do_resize=False)


def make_images():
    """Random blocks, so that neighbouring pixels are of one kind."""
    blocks = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((117, 90))
    return [image, image.rotate(90, expand=True)]


def trained_like(model):
    """Weights of the heads that make classes and masks differ between queries and pixels."""
    with torch.no_grad():
        model.class_predictor.weight.mul_(4)
        model.model.pixel_decoder.mask_projection.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = TimmBackboneConfig(backbone="tf_efficientnet_lite0", out_indices=[1, 2, 3, 4])
    return trained_like(tiny_model(backbone_config=backbone))


@pytest.fixture(scope="module")
def program(model):
    return export_program(model)


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, path)
    return path


@torch.no_grad()
def assert_equal_outputs(model, exported, batch_size, height, width):
    pixel_values = torch.randn(batch_size, 3, height, width)
    padding = (0, -width % 32, 0, -height % 32)
    expected, actual = model(torch.nn.functional.pad(pixel_values, padding)), exported(pixel_values)
    for name in OUTPUTS["queries"]:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_program(model, program, size):
    assert_equal_outputs(model, program.module(), *size)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_onnx_file(model, onnx_file, size):
    assert_equal_outputs(model, OnnxModel(onnx_file, num_threads=1), *size)


@pytest.mark.slow
def test_saved_program(program, model, tmp_path):
    torch.export.save(program, tmp_path / "model.pt2")
    assert_equal_outputs(model, ProgramModel(tmp_path / "model.pt2"), 2, 64, 96)


@pytest.mark.slow
def test_onnx_file_names_its_axes_and_classes(onnx_file):
    session = OnnxModel(onnx_file).session
    (pixel_values,) = session.get_inputs()
    assert (pixel_values.name, pixel_values.shape) == ("pixel_values", ["batch", 3, "height", "width"])
    assert tuple(output.name for output in session.get_outputs()) == OUTPUTS["queries"]
    id2label = json.loads(session.get_modelmeta().custom_metadata_map["id2label"])
    assert list(id2label.values()) == CLASS_NAMES
    assert [path.name for path in onnx_file.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_onnx_labels_are_the_image_processor_s(model, tmp_path):
    export_onnx(model, tmp_path / "model.onnx", outputs="labels")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for image in make_images():
        pixel_values = PROCESSOR(image, do_pad=False, return_tensors="np").pixel_values
        (labels,) = session.run(["labels"], {"pixel_values": pixel_values})
        (expected,) = Segmenter(model, PROCESSOR)([image])
        assert labels.shape == (1, image.height, image.width)
        assert labels.dtype == np.int64
        assert (labels[0] == expected.numpy()).mean() > 0.999


def test_labels_are_those_of_exact_scores(model):
    height, width = 90, 117
    queries = {"class_queries_logits": torch.randn(1, 7, 4), "masks_queries_logits": torch.randn(1, 7, 24, 32) * 3}
    exportable = ExportableModel(model, "labels")
    exportable.model.forward = lambda pixel_values: MTAClipForSemanticSegmentationOutput(**queries)
    labels = exportable(torch.zeros(1, 3, height, width))["labels"]
    expected = semantic_labels(*(value[0] for value in queries.values()), (96, 128), (height, width))
    assert len(expected.unique()) == 3
    assert torch.equal(labels[0], expected)


def test_padding_of_tensorflow_backbones_becomes_fixed(model):
    assert "Conv2dSame" in {type(module).__name__ for module in model.modules()}
    assert_equal_outputs(model, ExportableModel(model), 1, 97, 64)


def test_comparison(model):
    def shifted(pixel_values):
        outputs = model(pixel_values)
        # Classes 0 and 1 change places.
        outputs.class_queries_logits = outputs.class_queries_logits[..., [1, 0, 2, 3]]
        return outputs

    images = make_images()
    scores = [Segmenter(model, PROCESSOR).scores(image) for image in images]
    equal = sum((score.argmax(0) == score[[1, 0, 2]].argmax(0)).sum().item() for score in scores)
    result = compare_with_model(shifted, model, PROCESSOR, images)
    assert result == Comparison(2, equal / (2 * 117 * 90), max((s[0] - s[1]).abs().max().item() for s in scores))
    assert compare_with_model(model, model, PROCESSOR, images) == Comparison(2, 1.0, 0.0)
    with pytest.raises(ValueError, match="no images"):
        compare_with_model(model, model, PROCESSOR, [])


def test_unknown_outputs(model):
    with pytest.raises(ValueError, match=r"one of \['queries', 'labels'\], got 'masks'"):
        export_program(model, outputs="masks")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inference", "torch", "onnx"])
def test_script(kind, repository_dir, tmp_path):
    trained, exported = tmp_path / "trained", tmp_path / "exported"
    trained_like(tiny_model()).save_pretrained(trained)
    PROCESSOR.save_pretrained(trained)
    for index, image in enumerate(make_images()):
        image.save(tmp_path / f"{index}.png")
    command = [
        sys.executable,
        "scripts/export.py",
        "--model_name_or_path",
        trained,
        "--format",
        kind,
        "--output_dir",
        exported,
    ]
    result = subprocess.run(
        [*command, "--check", tmp_path / "0.png", tmp_path / "1.png"],
        capture_output=True,
        text=True,
        cwd=repository_dir,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "2 images: 100.0000% of the pixels have the same class" in result.stdout
    name = {"inference": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}[kind]
    assert (exported / name).is_file()
    assert MTAClipImageProcessor.from_pretrained(exported).to_dict() == PROCESSOR.to_dict()


@pytest.mark.slow
def test_onnx_on_real_images(model, onnx_file, shared_dir):
    paths = sorted((shared_dir / "data/camvid/images/val").glob("*.jpg"))[::25]
    exported = OnnxModel(onnx_file, num_threads=1)
    result = compare_with_model(exported, model, PROCESSOR, map(Image.open, paths))
    assert result.equal_pixels > 0.999
    assert result.max_score_difference < 1e-3


@pytest.mark.slow
def test_int8_onnx_file(model, onnx_file, tmp_path):
    quantize_onnx(onnx_file, tmp_path / "int8.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert "MatMulInteger" in operators
    assert "ConvInteger" not in operators
    result = compare_with_model(OnnxModel(tmp_path / "int8.onnx", num_threads=1), model, PROCESSOR, make_images())
    assert result.equal_pixels > 0.99
    # Not the float file, and not another model: scores are sums over seven queries.
    assert 0 < result.max_score_difference < 0.7
