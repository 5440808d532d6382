# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported programs and ONNX files against the model, at sizes and batches they were not exported with."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from transformers import TimmBackboneConfig

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.export import (
    OUTPUTS,
    Comparison,
    ExportableModel,
    OnnxModel,
    ProgramModel,
    compare_with_model,
    export_onnx,
    export_program,
    quantize_onnx,
)
from modeling_mtaclip.image_processing_mtaclip import MTAClipImageProcessorPil
from modeling_mtaclip.inference import Segmenter
from modeling_mtaclip.modeling_mtaclip import MTAClipForSemanticSegmentationOutput
from modeling_mtaclip.postprocessing_mtaclip import QueryScores, semantic_labels
from scripts import export
from tests.test_backbone_mtaclip import CONFIGS
from tests.tiny import CLASS_NAMES, tiny_model


SIZES = [(1, 64, 64), (3, 97, 120), (2, 33, 200)]
PROCESSOR = MTAClipImageProcessor(size={"shortest_edge": 80, "longest_edge": 200})
SMALL = {"encoder_layers": 1, "decoder_layers": 2}


def make_images():
    """Random blocks, so that neighboring pixels are of one kind."""
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
    return trained_like(tiny_model(**SMALL))


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, path)
    return path


@torch.no_grad()
def assert_equal_outputs(model, exported, batch_size, height, width):
    pixel_values = torch.randn(batch_size, model.config.backbone_config.num_channels, height, width)
    padding = (0, -width % 32, 0, -height % 32)
    expected, actual = model(torch.nn.functional.pad(pixel_values, padding)), exported(pixel_values)
    for name in OUTPUTS["queries"]:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_onnx_file(model, onnx_file):
    exported = OnnxModel(onnx_file, num_threads=1)
    for size in SIZES:
        assert_equal_outputs(model, exported, *size)
    (pixel_values,) = exported.session.get_inputs()
    assert (pixel_values.name, pixel_values.shape) == ("pixel_values", ["batch", 3, "height", "width"])
    assert tuple(output.name for output in exported.session.get_outputs()) == OUTPUTS["queries"]
    id2label = json.loads(exported.session.get_modelmeta().custom_metadata_map["id2label"])
    assert list(id2label.values()) == CLASS_NAMES
    assert {node.domain for node in onnx.load(onnx_file).graph.node} <= {"", "ai.onnx"}


@pytest.mark.slow
def test_program_of_labels(model, tmp_path):
    """The program of a model that was saved for inference, saved and loaded; it has PyTorch's operators only."""
    model.save_for_inference(tmp_path / "model")
    saved = MTAClipForSemanticSegmentation.from_pretrained(tmp_path / "model")
    program = export_program(saved, outputs="labels")
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if name.startswith("mtaclip")]
    torch.export.save(program, tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    for image in make_images():
        pixel_values = PROCESSOR(image, do_pad=False, return_tensors="pt").pixel_values
        labels = module(pixel_values)["labels"]
        (expected,) = Segmenter(model, PROCESSOR)([image], [tuple(pixel_values.shape[-2:])])
        assert labels.dtype == torch.int64
        assert (labels[0] == expected).float().mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("resnet", "clip_vit_patch16")])
def test_every_family_of_backbones(name):
    """The same numbers for any size, or with shifted windows for one; also for other numbers of channels."""
    config = CONFIGS[name]()
    if name == "clip_resnet":
        config.num_channels = 5
    model = trained_like(tiny_model(backbone_config=config, encoder_layers=1, decoder_layers=1))
    if name == "swin":
        with pytest.raises(ValueError, match=r"shifted windows .* export it for one `image_size`"):
            export_program(model)
        exported, sizes = export_program(model, image_size=(64, 96)).module(), [(1, 64, 96), (3, 64, 96)]
    else:
        exported, sizes = export_program(model).module(), SIZES[1:]
    for size in sizes:
        assert_equal_outputs(model, exported, *size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "image_size", "fields"),
    [("clip_vit_patch14", (64, 96), {}), ("clip_resnet", None, {"class_mask_share": 0.5})],
)
def test_onnx_files_of_one_size_and_with_class_masks(tmp_path, backbone, image_size, fields):
    """Of a vision transformer whose patches don't divide the size, too."""
    model = tiny_model(backbone_config=CONFIGS[backbone](), encoder_layers=1, decoder_layers=1, **fields)
    export_onnx(model, tmp_path / "model.onnx", image_size=image_size)
    exported = OnnxModel(tmp_path / "model.onnx", num_threads=1)
    assert exported.session.get_inputs()[0].shape == ["batch", 3, *(image_size or ("height", "width"))]
    for batch_size in (1, 3):
        assert_equal_outputs(model, exported, batch_size, 64, 96)


def test_what_is_exported_in_float32_or_refused(model):
    halved = ExportableModel(tiny_model(**SMALL).to(torch.bfloat16))
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match=r"one of \['queries', 'labels'\], got 'masks'"):
        export_program(model, outputs="masks")
    with pytest.raises(ValueError, match="64, 96, 128, … pixels, got \\(64, 100\\)"):
        export_program(model, image_size=(64, 100))
    with pytest.raises(ValueError, match="without backbone"):
        export_program(tiny_model(backbone_config=None, feature_channels=[8, 12, 16, 20]))


def test_labels_are_those_of_exact_scores(model):
    height, width = 90, 117
    queries = {"class_queries_logits": torch.randn(1, 7, 4), "masks_queries_logits": torch.randn(1, 7, 24, 32) * 3}
    exportable = ExportableModel(model, "labels")
    exportable.model.forward = lambda pixel_values: MTAClipForSemanticSegmentationOutput(**queries)
    labels = exportable(torch.zeros(1, 3, height, width))["labels"]
    expected = semantic_labels(QueryScores(*(value[0] for value in queries.values()), (96, 128), (height, width)))
    assert len(expected.unique()) == 3
    assert torch.equal(labels[0], expected)


def test_padding_of_tensorflow_backbones_becomes_fixed():
    backbone = TimmBackboneConfig(backbone="tf_efficientnet_lite0", out_indices=[1, 2, 3, 4])
    model = tiny_model(backbone_config=backbone, **SMALL)
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
    equal = sum((score.argmax(0) == score[[1, 0, 2]].argmax(0)).sum().item() for score in scores) / (2 * 117 * 90)
    difference = max((score[0] - score[1]).abs().max().item() for score in scores)
    result = compare_with_model(shifted, model, PROCESSOR, images)
    assert result == Comparison(2, pytest.approx(equal, abs=1e-3), pytest.approx(difference, abs=1e-4))
    assert compare_with_model(model, model, PROCESSOR, images) == Comparison(2, 1.0, pytest.approx(0, abs=1e-5))
    with pytest.raises(ValueError, match="no images"):
        compare_with_model(model, model, PROCESSOR, [])


@pytest.mark.slow
def test_int8_onnx_file(model, onnx_file, tmp_path):
    int8_file = tmp_path / "model.int8.onnx"
    quantize_onnx(onnx_file, int8_file)
    graph = onnx.load(int8_file).graph
    assert "ConvInteger" not in {node.op_type for node in graph.node}
    tensors = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = [tensors[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(weights) > 5
    for each in weights:
        assert each.dtype == np.int8
        # Whatever the inputs, up to 255, two products fit in 16 bits, where some processors add them.
        assert 2 * 255 * np.abs(each.astype(int)).max() <= 2**15 - 1
    processor = MTAClipImageProcessor(do_resize=False)
    result = compare_with_model(OnnxModel(int8_file, num_threads=1), model, processor, make_images())
    assert result.equal_pixels > 0.99
    # Not the float file, and not another model: scores are sums over seven queries.
    assert 0 < result.max_score_difference < 0.7
    assert int8_file.stat().st_size < onnx_file.stat().st_size


@pytest.mark.slow
def test_script(model, onnx_file, tmp_path, capsys, monkeypatch):
    # The ONNX file is made already.
    monkeypatch.setattr(export, "export_onnx", lambda model, path, *options: shutil.copy(onnx_file, path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export.py", "--model_name_or_path", str(trained), *map(str, arguments)])
        return export.main()

    trained = tmp_path / "trained"
    model.save_pretrained(trained)
    PROCESSOR.save_pretrained(trained)
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, image in zip(paths, make_images(), strict=True):
        image.save(path)
    for kind, name in (("inference", "model.safetensors"), ("onnx", "model.onnx"), ("onnx-int8", "model.int8.onnx")):
        # This model is none that was trained: int8 changes more of its pixels.
        check = [] if kind == "onnx-int8" else ["--check", *paths]
        assert run("--output_dir", tmp_path / kind, "--format", kind, *check) == 0
        assert ("2 images: 100.0000% of the pixels have the same class" in capsys.readouterr().out) == bool(check)
        assert (tmp_path / kind / name).is_file()
        assert MTAClipImageProcessor.from_pretrained(tmp_path / kind).to_dict() == PROCESSOR.to_dict()
    assert run("--output_dir", tmp_path, "--format", "torch", "--image_size", "64", "100") == 2
    assert "64, 96, 128" in capsys.readouterr().err


@pytest.mark.slow
def test_snippet_without_pytorch(model, onnx_file, repository_dir, tmp_path):
    """docs/deployment.md: NumPy, Pillow and ONNX Runtime give the labels of the segmenter that resizes with Pillow."""
    snippets = re.findall(
        r"^```python\n(.*?)^```", (repository_dir / "docs/deployment.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    (code,) = (each for each in snippets if "onnxruntime" in each)
    (tmp_path / "outputs" / "onnx").mkdir(parents=True)
    shutil.copy(onnx_file, tmp_path / "outputs" / "onnx" / "model.onnx")
    PROCESSOR.save_pretrained(tmp_path / "outputs" / "onnx")
    image = make_images()[0]
    image.save(tmp_path / "photo.png")
    blocked = "import sys\nfor name in ('torch', 'transformers', 'torchvision'):\n    sys.modules[name] = None\n"
    code = blocked + code.replace("photo.jpg", "photo.png") + "\nnp.save('labels.npy', labels)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    labels = np.load(tmp_path / "labels.npy")
    processor = MTAClipImageProcessorPil.from_pretrained(tmp_path / "outputs" / "onnx")
    (expected,) = Segmenter(model, processor)([image])
    assert labels.shape == (90, 117)
    assert (labels == expected.numpy()).mean() > 0.999


def test_saved_program(model, tmp_path, monkeypatch):
    """A program takes the model's place."""

    class Program:
        def module(self):
            return lambda pixel_values: {name: model(pixel_values)[name] for name in OUTPUTS["queries"]}

    monkeypatch.setattr(torch.export, "load", lambda path: Program())
    assert_equal_outputs(model, ProgramModel(tmp_path / "model.pt2"), 2, 64, 96)
