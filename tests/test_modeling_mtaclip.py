# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch

from modeling_mtaclip import MTAClipForSemanticSegmentation, text_model_mtaclip
from tests.tiny import assert_near, tiny_config, tiny_model


HEIGHT, WIDTH = 64, 96


def make_batch(batch_size=2):
    labels = torch.randint(0, 3, (batch_size, 4, 6)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[:, :3] = 255
    return {"pixel_values": torch.randn(batch_size, 3, HEIGHT, WIDTH), "labels": labels}


def plain_text_embeddings(text_model):
    """Every prompt as a sequence of its own, padded, through CLIP's text encoder."""
    config, encoder = text_model.config, text_model.text_encoder
    clip = encoder.text_model
    names = [config.class_token_ids[name] for name in config.class_names_with_no_object()]
    embeddings = []
    for context in text_model.contexts:
        for ids in names:
            ids = torch.tensor([config.prompt_start_token_id, *ids, config.prompt_end_token_id])
            tokens = clip.embeddings.token_embedding(ids)
            states = clip.embeddings(inputs_embeds=torch.cat((tokens[:1], context, tokens[1:]))[None])
            mask = torch.full([states.shape[1]] * 2, float("-inf"), dtype=states.dtype).triu(1)[None, None]
            states = clip.encoder(inputs_embeds=states, attention_mask=mask).last_hidden_state
            embeddings.append(encoder.text_projection(clip.final_layer_norm(states[0, -1])))
    return torch.stack(embeddings).unflatten(0, (config.num_prompt_contexts, len(names)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens_per_group", [1, 6, 128])
def test_shared_prefix_text_encoding(dtype, tokens_per_group, monkeypatch):
    monkeypatch.setattr(text_model_mtaclip, "TOKENS_PER_GROUP", tokens_per_group)
    text_model = tiny_model().model.text_model.to(dtype)
    torch.nn.init.normal_(text_model.contexts)
    embeddings, expected = text_model(), plain_text_embeddings(text_model)
    torch.testing.assert_close(embeddings, expected)
    direction = torch.randn_like(embeddings)
    gradients = [torch.autograd.grad(value, text_model.contexts, direction)[0] for value in (embeddings, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_outputs():
    model, batch = tiny_model(), make_batch()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(batch["pixel_values"], output_hidden_states=True, output_attentions=True)
    assert {name: tuple(value.shape) for name, value in outputs.items() if isinstance(value, torch.Tensor)} == {
        "logits": (2, 3, HEIGHT // 4, WIDTH // 4),
        "class_queries_logits": (2, 7, 4),
        "masks_queries_logits": (2, 7, HEIGHT // 4, WIDTH // 4),
        "mask_text_similarity": (2, 3, 7, 4),
        "text_embeddings": (2, 3, 4, 24),
    }
    queries = 7 + 3 * 4
    assert [state.shape for state in outputs.hidden_states] == [(2, queries, 32)] * 5
    assert [weights.shape for weights in outputs.attentions] == [(2, 4, queries, queries)] * 4
    assert [weights.shape[-1] for weights in outputs.cross_attentions] == [6, 24, 96, 6]
    scores = torch.einsum(
        "bqk,bqhw->bkhw", outputs.class_queries_logits.softmax(-1)[..., :-1], outputs.masks_queries_logits.sigmoid()
    )
    torch.testing.assert_close(outputs.logits, scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sdpa_and_eager_agree(dtype):
    model, batch = tiny_model().to(dtype).train(), make_batch()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    results, gradients = [], []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        results.append(model(**batch, point_seeds=torch.arange(len(batch["labels"]))))
        gradients.append(torch.autograd.grad(results[-1].loss, weights))
    for name in ("logits", "mask_text_similarity", "loss"):
        torch.testing.assert_close(*(result[name] for result in results), rtol=1e-4, atol=1e-5)
    for sdpa, eager in zip(*gradients, strict=True):
        torch.testing.assert_close(sdpa, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("labels", ["some", "none", "one class"])
def test_every_trainable_parameter_has_a_gradient(labels):
    model, batch = tiny_model().train(), make_batch()
    if labels != "some":
        batch["labels"][:] = 255 if labels == "none" else 1
    outputs = model(**batch, output_logits=False)
    outputs.loss.backward()
    assert outputs.logits is None
    terms = ("cross_entropy", "mask", "dice", "contrastive")
    assert outputs.loss_components.keys() == {
        f"{term}{layer}" for term in terms for layer in ("", "_0", "_1", "_2", "_3")
    }
    encoder = "model.text_model.text_encoder"
    for name, weight in model.named_parameters():
        assert weight.requires_grad == (not name.startswith(f"{encoder}.")), name
        assert (weight.grad is not None) == weight.requires_grad, name
    assert not any(module.training for module in model.get_submodule(encoder).modules())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_text_embeddings_follow_weights_that_change_behind_pytorchs_back(context):
    """As those do for which averages are swapped in."""
    model, images = tiny_model(), make_batch()["pixel_values"]
    with context():
        before = model(images)
    for weight in model.model.text_model.parameters():
        weight.data = weight.data + 0.1
    with context():
        after, texts = model(images), model.encode_class_names()
        # The reference: a copy that has never been called before.
        expected = copy.deepcopy(model)(images)
    assert not torch.allclose(after.text_embeddings, before.text_embeddings, atol=1e-3)
    assert_near((after, texts), (expected, expected.text_embeddings[0]))


@torch.no_grad()
def test_text_embeddings_follow_adapters():
    peft = pytest.importorskip("peft")
    base, images = tiny_model(), make_batch()["pixel_values"]
    plain = base(images)
    config = peft.LoraConfig(r=2, target_modules=r".*text_encoder.*(q_proj|fc1)", init_lora_weights=False)
    model = peft.get_peft_model(base, config, "first").eval()
    model.add_adapter("second", config)

    def texts(adapter):
        model.set_adapter(adapter)
        return model(pixel_values=images).text_embeddings

    first, second = texts("first"), texts("second")
    with model.disable_adapter():
        assert_near(model(pixel_values=images), plain)
    assert_near(texts("first"), first)
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, plain.text_embeddings, atol=1e-3)


def test_text_embeddings_are_encoded_once_where_asked_for(monkeypatch):
    model, images = tiny_model(), make_batch()["pixel_values"]
    with torch.no_grad():
        expected, texts = model(images), model.encode_class_names()
        monkeypatch.setattr(model.model.text_model, "forward", None)
        assert_near(model(images, text_embeddings=texts), expected)
        with pytest.raises(ValueError, match=r"shape \(3, 4, 24\), as `encode_class_names\(\)`.* got \(2, 3, 4, 24\)"):
            model(images, text_embeddings=expected.text_embeddings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, batch = tiny_model(), make_batch()
    with torch.no_grad():
        expected = model.model(batch["pixel_values"])
        model = model.to(dtype)
        actual = model.model(batch["pixel_values"].to(dtype))
        assert model(batch["pixel_values"].to(dtype)).logits.isfinite().all()
    # What comes before the attention masks, single bits of which flip.
    for name in ("text_embeddings", "mask_features"):
        error = (actual[name].float() - expected[name]).norm() / expected[name].norm()
        assert error < 0.03, f"{name}: {error:.3f}"


def test_training_under_autocast():
    model, batch = tiny_model().train(), make_batch() | {"point_seeds": torch.arange(2)}
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(**batch)
    assert actual.loss.dtype == torch.float32
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0.05, atol=0)
    actual.loss.backward()


def test_gradient_checkpointing_computes_the_backbone_twice_and_counts_its_images_once():
    batch = make_batch() | {"point_seeds": torch.tensor([1, 2])}
    models, calls = [tiny_model().train()], []
    models.append(copy.deepcopy(models[0]))
    models[1].activation_checkpointing_enable()
    for model in models:
        model.model.backbone.register_forward_pre_hook(lambda backbone, inputs: calls.append(backbone))
        model(**batch).loss.backward()
    assert [calls.count(model.model.backbone) for model in models] == [1, 2]
    gradients = [
        {name: value.grad for name, value in model.named_parameters() if value.grad is not None} for model in models
    ]
    assert any(name.startswith("model.backbone.") for name in gradients[0])
    torch.testing.assert_close(*gradients)
    assert any("running_mean" in name for name, _ in models[0].named_buffers())
    assert_near(*(dict(model.named_buffers()) for model in models))


@pytest.mark.parametrize(
    "options",
    [{"text_branch": False, "text_config": None}, {"decoder_layers": 1, "supervise_initial_prediction": False}],
)
def test_variants_train(options):
    model, batch = tiny_model(**options).train(), make_batch()
    outputs = model(**batch)
    outputs.loss.backward()
    assert ("contrastive" in outputs.loss_components) == model.config.text_branch
    assert all(weight.grad is not None for weight in model.class_predictor.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `pixel_values` and `feature_maps`; got neither"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64), "feature_maps": []}, "got both"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"\(batch, 3, height, width\).* got \(3, 64, 64\)"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64).byte()}, "floating-point type, got torch.uint8"),
        ({"feature_maps": [torch.zeros(1, 8, 4, 4)] * 4}, r"4 maps with \[8, 12, 16, 20\] channels"),
        ({"labels": torch.zeros(1, 32, 64).long()}, r"size \(32, 64\) don't fit `pixel_values` of size \(64, 64\)"),
        ({"labels": torch.zeros(2, 64, 64).long()}, "one label map per image"),
        ({"labels": torch.zeros(1, 64, 64)}, "`labels` must be int64, got torch.float32"),
        ({"labels": torch.full((1, 64, 64), 3)}, r"values \[3\], but the model has 3 classes"),
    ],
)
def test_errors(arguments, message):
    images = {"pixel_values": torch.zeros(1, 3, 64, 64)} if "labels" in arguments else {}
    with pytest.raises(ValueError, match=message):
        tiny_model()(**images, **arguments)


def test_errors_of_incomplete_models():
    model = tiny_model(backbone_config=None, feature_channels=[4, 8, 12, 16])
    with pytest.raises(ValueError, match="has no backbone"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="no `class_token_ids`"):
        MTAClipForSemanticSegmentation(tiny_config(class_token_ids=None))
    with pytest.raises(ValueError, match="has no text branch"):
        tiny_model(text_branch=False, text_config=None).encode_class_names()
