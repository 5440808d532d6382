# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""`scripts/convert_original_checkpoint.py`, and the reader of checkpoint files."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import save_file

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.conversion import load_checkpoint
from tests.conversion.sources import NAMES, RUN_CONFIG, TOKENIZER, make_original_state_dict, save_mmengine


@pytest.fixture(scope="module")
def state_dict():
    torch.manual_seed(0)
    return make_original_state_dict(len(NAMES))


@pytest.fixture
def convert(repository_dir, tmp_path):
    path = repository_dir / "scripts" / "convert_original_checkpoint.py"
    spec = importlib.util.spec_from_file_location("convert_original_checkpoint", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")

    def run(*options):
        folders = ["--tokenizer", tmp_path / "tokenizer", "--output_dir", tmp_path / "model"]
        script.main([str(each) for each in (*options, *folders)])

    return run


def test_both_ways_to_tell_names_and_configuration_give_one_model(convert, state_dict, tmp_path, capsys):
    run_config = RUN_CONFIG.format(class_weight="1.0, " * len(NAMES))
    convert("--checkpoint", save_mmengine(state_dict, tmp_path / "iter_1.pth", NAMES))
    assert "decode_head.lang_embed.{weight,bias}: the original never uses it" in capsys.readouterr().out
    model = MTAClipForSemanticSegmentation.from_pretrained(tmp_path / "model")
    MTAClipImageProcessor.from_pretrained(tmp_path / "model")
    assert (model.config.decoder_attention_heads, model.config.class_weight) == (4, 1.5)
    save_file({name: value.contiguous() for name, value in state_dict.items()}, tmp_path / "weights.safetensors")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    (tmp_path / "run.py").write_text(run_config)
    options = ["--class_names", tmp_path / "names.json", "--config", tmp_path / "run.py"]
    convert("--checkpoint", tmp_path / "weights.safetensors", *options)
    other = MTAClipForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert other.config.to_diff_dict() == model.config.to_diff_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_missing_tensors_are_named_and_nothing_is_written(convert, state_dict, tmp_path):
    less = {name: value for name, value in state_dict.items() if name != "decode_head.cls_embed.weight"}
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the model, e.g. \['class_predictor.weight'\]"):
        convert("--checkpoint", save_mmengine(less, tmp_path / "less.pth", NAMES))
    assert not (tmp_path / "model").exists()


TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(2), "steps": torch.tensor(3)}


def _legacy(path):
    torch.save({"state_dict": {f"module.{name}": value for name, value in TENSORS.items()}}, path, **LEGACY)


LEGACY = {"_use_new_zipfile_serialization": False}
WRITERS = {
    "half.safetensors": lambda path: save_file({name: value.half() for name, value in TENSORS.items()}, path),
    "safetensors_by_another_name.bin": lambda path: save_file(TENSORS, path),
    "plain.pth": lambda path: torch.save(TENSORS, path),
    "legacy.pth": _legacy,
    "model.pt": lambda path: torch.save({"model": TENSORS, "epoch": 3}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_tensors(tmp_path, name):
    WRITERS[name](tmp_path / name)
    read = load_checkpoint(tmp_path / name).tensors
    assert read.keys() == TENSORS.keys()
    for key in ("a.weight", "b.bias"):
        assert read[key].dtype == torch.float32
        assert torch.equal(read[key], TENSORS[key])


def test_shards_are_read_together_and_a_missing_one_is_named(tmp_path):
    names = {"a.weight": "model-1.safetensors", "b.bias": "model-2.safetensors"}
    for name, file in names.items():
        save_file({name: TENSORS[name]}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert torch.equal(load_checkpoint(tmp_path).tensors["a.weight"], TENSORS["a.weight"])
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-2\.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", [*WRITERS, "script.pt"])
def test_truncated_files_are_refused(tmp_path, name):
    if name == "script.pt":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / name)
    else:
        WRITERS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match="can't be read safely"):
        load_checkpoint(tmp_path / name)


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="has no weights"):
        load_checkpoint(tmp_path)
    torch.save({"meta": {"epoch": 1}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"holds no state dict.*no tensors are \['meta'\]"):
        load_checkpoint(tmp_path / "empty.pth")
    for content, message in ((b"not a checkpoint", "can't be read safely"), (b"version https://git-lfs", "Git LFS")):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "broken.pth")
