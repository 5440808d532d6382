# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA with peft: adapters on decoder and backbone attach, train, are saved alone, load and are merged."""

import pytest
import torch
from transformers import SwinConfig

from modeling_mtaclip import MTAClipForSemanticSegmentation
from tests.tiny import tiny_config
from tests.training.distributed_steps import example, trainer


peft = pytest.importorskip("peft")

EXAMPLES = [example(index) for index in range(4)]
# Attention of the decoder and of the backbone, which is called differently in each kind of backbone.
TARGETS = {
    "resnet": r"model\.decoder\..*\.[qv]_proj|model\.backbone\..*\.convolution",
    "swin": r"model\.(decoder|backbone)\..*\.[qv]_proj",
}
BACKBONES = {
    "resnet": {},
    "swin": {
        "backbone_config": SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 4],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    },
}


def make_model(kind):
    torch.manual_seed(0)
    return MTAClipForSemanticSegmentation(tiny_config(**BACKBONES[kind]))


def lora(kind):
    return peft.LoraConfig(r=2, lora_alpha=8, target_modules=TARGETS[kind], modules_to_save=["class_predictor"])


def logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=EXAMPLES[0]["pixel_values"][None]).class_queries_logits


@pytest.mark.parametrize("kind", ["resnet", "swin"])
def test_adapters_train_are_saved_alone_load_and_merge(kind, tmp_path):
    model = peft.get_peft_model(make_model(kind), lora(kind))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    untrained = logits(model)
    torch.testing.assert_close(untrained, logits(make_model(kind)))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trainable)
    assert {"decoder", "backbone"} <= {name.split(".")[3] for name in trainable if "lora_" in name}

    recipe = {"max_steps": 3, "learning_rate": 0.1, "warmup_steps": 0, "max_grad_norm": 1}
    run = trainer(tmp_path / "run", model, train_dataset=EXAMPLES, **recipe)
    run.train()
    rates = {group["name"].split(",")[0]: group["initial_lr"] for group in run.optimizer.param_groups}
    assert rates == {"decoder": 0.1, "backbone": pytest.approx(0.01)}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in changed if "running_" in name or "num_batches" in name}
    assert changed - statistics == trainable
    trained = logits(model)
    assert (trained - untrained).abs().max() > 1e-2

    model.save_pretrained(tmp_path / "adapter")
    saved = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
    # What a batch norm has seen is not an adapter, so that adapters alone suffice for backbones without batch norm.
    if kind == "swin":
        loaded = peft.PeftModel.from_pretrained(make_model(kind), tmp_path / "adapter")
        torch.testing.assert_close(logits(loaded), trained)

    merged = model.merge_and_unload()
    assert type(merged) is MTAClipForSemanticSegmentation
    torch.testing.assert_close(logits(merged), trained, rtol=1e-3, atol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    again = MTAClipForSemanticSegmentation.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), logits(merged))
