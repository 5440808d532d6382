# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""`scripts/convert_original_checkpoint.py` as a user starts it."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.conversion import load_checkpoint


@pytest.fixture(scope="module")
def reference(shared_dir):
    return shared_dir / "reference" / "mtaclip_tiny"


def convert(repository_dir, checkpoint, config, output_dir):
    command = [sys.executable, repository_dir / "scripts" / "convert_original_checkpoint.py"]
    command += ["--checkpoint", checkpoint, "--config", config, "--output_dir", output_dir]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_conversion(repository_dir, reference, tmp_path, kind):
    checkpoint = reference / "weights.safetensors"
    if kind == "pth":
        state_dict, checkpoint = load_file(checkpoint), tmp_path / "weights.pth"
        torch.save({"meta": {"epoch": 3}, "state_dict": state_dict}, checkpoint)
    result = convert(repository_dir, checkpoint, reference / "config.json", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    assert "decode_head.lang_embed.{bias,weight}: the original never uses it" in result.stdout
    assert "model.text_model.contexts <- contexts" in result.stdout
    model = MTAClipForSemanticSegmentation.from_pretrained(tmp_path / "model")
    MTAClipImageProcessor.from_pretrained(tmp_path / "model")
    expected = load_file(reference / "io.safetensors")
    with torch.no_grad():
        outputs = model(feature_maps=[expected[f"backbone.feat{index}"] for index in range(4)])
    torch.testing.assert_close(outputs.class_queries_logits, expected["layer3.cls_pred"], rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs.masks_queries_logits, expected["layer3.mask_pred"], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "add", "message"),
    [
        ("decode_head.cls_embed.weight", False, "lacks the tensors for ['class_predictor.weight']"),
        ("decode_head.surprise", True, "1 tensors of the checkpoint are unknown, e.g. ['decode_head.surprise (2,)']"),
    ],
)
def test_missing_and_unexpected_tensors(repository_dir, reference, tmp_path, name, add, message):
    state_dict = load_file(reference / "weights.safetensors")
    if add:
        state_dict[name] = torch.zeros(2)
    else:
        del state_dict[name]
    torch.save(state_dict, tmp_path / "weights.pth")
    result = convert(repository_dir, tmp_path / "weights.pth", reference / "config.json", tmp_path / "model")
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "model").exists()


def test_files_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_checkpoint(tmp_path / "absent.pth")
    torch.save({"meta": {"epoch": 1}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_checkpoint(tmp_path / "empty.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="can't be read safely"):
        load_checkpoint(tmp_path / "broken.pth")
