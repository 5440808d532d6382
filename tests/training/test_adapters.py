# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA with peft: adapters on decoder and backbone attach, train, are saved alone, load and are merged."""

import pytest
import torch
from transformers import SwinConfig

from modeling_mtaclip import MTAClipForSemanticSegmentation
from modeling_mtaclip.training import MTAClipTrainer, MTAClipTrainingArguments
from tests.tiny import tiny_config


peft = pytest.importorskip("peft")

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


def make_examples(number=4):
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "pixel_values": torch.randn(3, 64, 64, generator=generator),
            "labels": torch.randint(0, 3, (64, 64), generator=generator),
        }
        for _ in range(number)
    ]


def lora(kind):
    return peft.LoraConfig(r=2, lora_alpha=8, target_modules=TARGETS[kind], modules_to_save=["class_predictor"])


def logits(model, example):
    model.eval()
    with torch.no_grad():
        return model(pixel_values=example["pixel_values"][None]).class_queries_logits


@pytest.mark.parametrize("kind", ["resnet", "swin"])
def test_adapters_train_are_saved_alone_load_and_merge(kind, tmp_path):
    model, examples = peft.get_peft_model(make_model(kind), lora(kind)), make_examples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    untrained = logits(model, examples[0])
    torch.testing.assert_close(untrained, logits(make_model(kind), examples[0]))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trainable)
    assert {"decoder", "backbone"} <= {name.split(".")[3] for name in trainable if "lora_" in name}

    arguments = MTAClipTrainingArguments(
        output_dir=tmp_path / "run",
        do_train=True,
        max_steps=3,
        learning_rate=0.1,
        warmup_steps=0,
        max_grad_norm=1,
        per_device_train_batch_size=2,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        use_cpu=True,
        dataloader_num_workers=0,
    )
    trainer = MTAClipTrainer(model=model, args=arguments, train_dataset=examples)
    trainer.train()
    rates = {group["name"].split(",")[0]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"decoder": 0.1, "backbone": pytest.approx(0.01)}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in changed if "running_" in name or "num_batches" in name}
    assert changed - statistics == trainable
    trained = logits(model, examples[0])
    assert (trained - untrained).abs().max() > 1e-2

    model.save_pretrained(tmp_path / "adapter")
    saved = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
    # What a batch norm has seen is not an adapter, so that adapters alone suffice for backbones without batch norm.
    if kind == "swin":
        loaded = peft.PeftModel.from_pretrained(make_model(kind), tmp_path / "adapter")
        torch.testing.assert_close(logits(loaded, examples[0]), trained)

    merged = model.merge_and_unload()
    assert type(merged) is MTAClipForSemanticSegmentation
    torch.testing.assert_close(logits(merged, examples[0]), trained, rtol=1e-3, atol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    again = MTAClipForSemanticSegmentation.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again, examples[0]), logits(merged, examples[0]))
