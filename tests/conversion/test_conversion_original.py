# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files of every kind, checkpoints of the authors' code, and the script that converts these."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.conversion import from_pretrained_parts, load_checkpoint
from scripts import convert_original_checkpoint
from tests.conversion.sources import (
    NAMES,
    RUN_CONFIG,
    TOKENIZER,
    assert_complete,
    assert_same_maps,
    make_open_clip,
    original_state_dict,
    save_mmengine,
    vit_maps,
)
from tests.reference import CLASS_NAMES, ReferenceTokenizer
from tests.tiny import assert_same_weights


MODULE = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
TENSORS = MODULE.state_dict()
WRAPPED = {"state_dict": {f"module.{name}": value for name, value in TENSORS.items()}}
WRITERS = {
    "half.safetensors": lambda path: save_file({name: value.half() for name, value in TENSORS.items()}, path),
    "safetensors_by_another_name.bin": lambda path: save_file(TENSORS, path),
    "plain.pth": lambda path: torch.save(TENSORS, path),
    "legacy.pth": lambda path: torch.save(WRAPPED, path, _use_new_zipfile_serialization=False),
    "model.pt": lambda path: torch.save({"model": TENSORS, "epoch": 3}, path),
    "script.pt": lambda path: torch.jit.save(torch.jit.script(MODULE), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_tensors_in_float32_and_truncated_it_is_refused(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    read = load_checkpoint(path).tensors
    assert read.keys() == TENSORS.keys()
    for key in ("0.weight", "1.running_var"):
        assert read[key].dtype == torch.float32
        torch.testing.assert_close(read[key], TENSORS[key], rtol=0, atol=1e-3 if name.startswith("half") else 0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match="can't be read safely"):
        load_checkpoint(path)


def test_shards_are_read_together_and_a_missing_one_is_named(tmp_path):
    names = {name: f"model-{int(name.startswith('1'))}.safetensors" for name in TENSORS}
    for file in set(names.values()):
        save_file({name: TENSORS[name] for name in TENSORS if names[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert load_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-1\.safetensors"):
        load_checkpoint(tmp_path)


def test_files_without_weights_are_refused(tmp_path):
    torch.save({"meta": {"epoch": 1}}, tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "pointer.pth").write_bytes(b"version https://git-lfs")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "absent.pth": "There is no file",
        "folder": "has no weights",
        "empty.pth": r"holds no state dict.*no tensors are \['meta'\]",
        "text.pth": "can't be read safely",
        "pointer.pth": "Git LFS",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / name)


@pytest.fixture(scope="module")
def original(shared_dir, tmp_path_factory):
    """The reference model in the form in which mmengine saves it, and its tensors."""
    weights = load_file(shared_dir / "reference" / "mtaclip_tiny" / "weights.safetensors")
    return save_mmengine(weights, tmp_path_factory.mktemp("original") / "iter_160000.pth", CLASS_NAMES), weights


def test_checkpoints_of_mmengine_are_read_without_running_code(original):
    path, weights = original
    with pytest.raises(Exception, match=r"Weights only load failed"):
        torch.load(path, weights_only=True)
    checkpoint = load_checkpoint(path)
    assert checkpoint.class_names == CLASS_NAMES
    assert checkpoint.run_config["model"]["decode_head"]["query_loss_type"] == 1
    assert checkpoint.tensors.keys() == weights.keys()


def test_original_checkpoint(original):
    """What it computes is compared in tests/test_reference.py."""
    path, weights = original
    bundle = from_pretrained_parts(original=path, tokenizer=ReferenceTokenizer(), encoder_norm_groups=32)
    config = bundle.model.config
    assert list(config.id2label.values()) == CLASS_NAMES
    losses = (config.class_weight, config.no_object_weight, config.dice_weight, config.train_num_points)
    assert losses == (1.5, 0.2, 4.0, 100)
    assert (config.match_class_weight, config.match_mask_weight, config.match_dice_weight) == (3.0, 5.0, 6.0)
    assert config.contrastive_negatives == "separate"
    assert_complete(bundle, {str(path): weights})
    assert not bundle.loading_report.new


def test_original_checkpoint_with_a_vision_transformer(original, tmp_path):
    visual = make_open_clip("vit").visual
    norms = [nn.GroupNorm(1, 64) for _ in range(4)]
    up = [nn.ConvTranspose2d(64, 64, kernel_size=2, stride=2) for _ in range(3)]
    levels = [
        nn.Sequential(norms[0], up[0], nn.BatchNorm2d(64), nn.GELU(), up[1]),
        nn.Sequential(norms[1], up[2]),
        norms[2],
        nn.Sequential(norms[3], nn.MaxPool2d(2)),
    ]
    pyramid = nn.ModuleDict({f"fpn{index + 1}": level for index, level in enumerate(levels)}).eval()
    for parameter in pyramid.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tensors = {name: value for name, value in original[1].items() if not name.startswith("backbone.")}
    backbone = visual.state_dict() | pyramid.state_dict()
    tensors |= {f"backbone.{name}": value for name, value in backbone.items()}
    for index in range(3):
        tensors[f"decode_head.pixel_decoder.input_convs.{index}.conv.weight"] = torch.randn(64, 64, 1, 1)
    path = save_mmengine(tensors, tmp_path / "vit.pth", CLASS_NAMES)
    bundle = from_pretrained_parts(original=path, tokenizer=ReferenceTokenizer())
    assert_complete(bundle, {str(path): tensors})
    assert not bundle.loading_report.new
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        maps = vit_maps(visual, images, class_token_twice=True)
        expected = [level(each) for level, each in zip(levels, maps, strict=True)]
        assert_same_maps(bundle.model.model._backbone_maps(images), expected)


def test_original_checkpoint_with_other_classes(original):
    path, weights = original
    bundle = from_pretrained_parts(["Sky", "pool", "wall"], original=path, tokenizer=ReferenceTokenizer())
    ours = bundle.model.state_dict()
    positions = ours["model.decoder.text_query_positions"]
    theirs = weights["decode_head.query_embed_decoder.weight"][10:].unflatten(0, (3, 7))
    for index, other in ((0, 2), (2, 0), (3, 6)):
        assert torch.equal(positions[:, index], theirs[:, other])
        assert torch.equal(ours["class_predictor.bias"][index], weights["decode_head.cls_embed.bias"][other])
    assert not torch.equal(positions[:, 1], theirs[:, 5])
    assert bundle.loading_report.new_classes == ["pool"]


@pytest.fixture
def convert(tmp_path):
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")

    def run(checkpoint, *options):
        folders = ["--tokenizer", tmp_path / "tokenizer", "--output_dir", tmp_path / "model"]
        convert_original_checkpoint.main([str(each) for each in ("--checkpoint", checkpoint, *options, *folders)])
        return MTAClipForSemanticSegmentation.from_pretrained(tmp_path / "model")

    return run


def test_both_ways_to_tell_names_and_configuration_give_one_model(convert, shared_dir, tmp_path, capsys):
    tensors = original_state_dict(shared_dir, len(NAMES))
    model = convert(save_mmengine(tensors, tmp_path / "iter_1.pth", NAMES))
    assert "decode_head.lang_embed.weight: the original never uses it" in capsys.readouterr().out
    MTAClipImageProcessor.from_pretrained(tmp_path / "model")
    assert (model.config.decoder_attention_heads, model.config.class_weight) == (4, 1.5)
    save_file(tensors, tmp_path / "weights.safetensors")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    (tmp_path / "run.py").write_text(RUN_CONFIG.format(class_weight="1.0, " * len(NAMES)))
    options = ["--class_names", tmp_path / "names.json", "--config", tmp_path / "run.py"]
    other = convert(tmp_path / "weights.safetensors", *options)
    assert other.config.to_diff_dict() == model.config.to_diff_dict()
    assert_same_weights(other, model)


def test_missing_tensors_are_named_and_nothing_is_written(convert, shared_dir, tmp_path):
    tensors = original_state_dict(shared_dir, len(NAMES))
    del tensors["decode_head.cls_embed.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the model, e.g. \['class_predictor.weight'\]"):
        convert(save_mmengine(tensors, tmp_path / "less.pth", NAMES))
    assert not (tmp_path / "model").exists()
