# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Equality with the authors' code: their weights and inputs give their intermediates, losses and gradients."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.conversion import convert_original_state_dict
from modeling_mtaclip.inference import InferenceOptions, PreparedImage, Segmenter
from modeling_mtaclip.loss_mtaclip import (
    classification_losses,
    contrastive_losses,
    dice_losses,
    interpolate_labels,
    mask_losses,
    matching_costs,
)
from tests.reference import load_reference_model


LAYERS = ("layer0", "layer1", "layer2", "layer3")
STAGES = ("init", *LAYERS)


@pytest.fixture(scope="module")
def folder(shared_dir):
    return shared_dir / "reference" / "mtaclip_tiny"


@pytest.fixture(scope="module")
def expected(folder):
    return load_file(folder / "io.safetensors")


@pytest.fixture(scope="module")
def original_config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def model(folder):
    return load_reference_model(folder)


@pytest.fixture(scope="module")
def feature_maps(expected):
    return [expected[f"backbone.feat{index}"] for index in range(4)]


def predict(model, **inputs):
    """The model's outputs, and the predictions of all stages by their names."""
    outputs = model(**inputs, output_auxiliary_predictions=True, output_hidden_states=True)
    return outputs, dict(zip(STAGES, [*outputs.auxiliary_predictions, outputs], strict=True))


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_states_and_predictions(model, feature_maps, expected):
    outputs, predictions = predict(model, feature_maps=feature_maps)
    assert_near(outputs.text_embeddings[0], expected["text_embeddings"])
    mask_features, multi_scale_features = model.model.pixel_decoder(feature_maps)
    assert_near(mask_features, expected["pixel_decoder.mask_features"])
    for index, maps in enumerate(multi_scale_features):
        assert_near(maps, expected[f"pixel_decoder.memory{index}"])
    names = ["decoder.init_hidden", *(f"{layer}.hidden" for layer in LAYERS)]
    for state, name in zip(outputs.hidden_states, names, strict=True):
        assert_near(state, expected[name])
    for stage, prediction in predictions.items():
        assert_near(prediction.class_queries_logits, expected[f"{stage}.cls_pred"])
        assert_near(prediction.masks_queries_logits, expected[f"{stage}.mask_pred"])
        assert_near(prediction.mask_text_similarity.transpose(0, 1), expected[f"{stage}.query_pred"])


@torch.no_grad()
def test_attention_masks(model, feature_maps, expected):
    decoder, base = model.model.decoder, model.model(feature_maps=feature_maps)
    for layer, stage in ((1, "layer0"), (2, "layer1"), (3, "layer2")):
        maps = base.multi_scale_features[layer % 3]
        features = F.interpolate(base.mask_features, maps.shape[-2:], mode="bilinear").flatten(2)
        states = decoder.layer_norm(expected[f"{stage}.hidden"])
        blocked = decoder._attention_mask(states, features)[:, 0] < 0
        # Elsewhere rounding chooses the side.
        certain = (decoder.mask_embedder(states) @ features).abs() > 1e-4
        assert certain.float().mean() > 0.99
        assert torch.equal(blocked[certain], expected[f"layer{layer}.attn_mask_in"].bool()[certain])


@pytest.mark.parametrize(("kind", "negatives"), [(0, "all_positive"), (1, "separate"), (2, "mix")])
def test_contrastive_loss(kind, negatives, expected):
    similarity = expected["layer3.query_pred"].clone().requires_grad_()
    labels = expected["qloss.labels"]
    weights = torch.ones(7)
    weights[-1] = 0.1
    losses = contrastive_losses(similarity.transpose(0, 1), labels, weights, negatives)
    loss = losses.sum() / weights[labels].sum()
    loss.backward()
    torch.testing.assert_close(loss, expected[f"qloss.type{kind}"][0], rtol=1e-4, atol=0)
    torch.testing.assert_close(similarity.grad, expected[f"qloss.type{kind}.grad_query_pred"], rtol=1e-4, atol=1e-8)


def sample(maps, points):
    """`(N, h, w)` maps at `(P, 2)` points, `(N, P)`."""
    return F.grid_sample(maps[None], 2 * points[None, None] - 1, align_corners=False)[0, :, 0]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("image", [0, 1])
def test_matching_costs(layer, image, model, expected):
    recorded = f"loss.{layer}.img{image}"
    points, classes = expected[f"{recorded}.match_points"][0], expected[f"{recorded}.gt_labels"]
    logits = sample(expected[f"{layer}.mask_pred"][image], points)
    targets = interpolate_labels(expected["loss.gt_sem_seg"][image], points, classes, None, torch.float32)
    probabilities = expected[f"{layer}.cls_pred"][image].softmax(-1)[:, classes]
    costs = matching_costs(probabilities, logits, *targets, model.config)
    torch.testing.assert_close(costs, expected[f"{recorded}.cost"], rtol=1e-4, atol=1e-4)


def recorded_losses(predictions, expected, config, recording="loss"):
    """Every weighted loss term, from our functions, at the recorded points and matches."""
    class_weights = torch.ones(config.num_labels + 1)
    class_weights[-1] = config.no_object_weight
    terms = {}
    for layer in LAYERS:
        prediction, recorded = predictions[layer], f"{recording}.{layer}"
        query_classes = torch.full((2, config.num_queries), config.num_labels)
        samples = []
        for image in range(2):
            queries = expected[f"{recorded}.img{image}.matched_query"]
            classes = expected[f"{recorded}.img{image}.gt_labels"][expected[f"{recorded}.img{image}.matched_gt"]]
            query_classes[image, queries] = classes
            for query, label in sorted(zip(queries.tolist(), classes.tolist(), strict=True)):
                points = expected[f"{recorded}.points_coords"][len(samples)]
                truth, label = expected["loss.gt_sem_seg"][image], torch.tensor([label])
                targets, weights = interpolate_labels(truth, points, label, None, torch.float32)
                masks = sample(prediction.masks_queries_logits[image, [query]], points)
                samples.append((masks[0], targets[0], weights))
        divisor = class_weights[query_classes].sum()
        points = [torch.stack(values) for values in zip(*samples, strict=True)]
        classification = classification_losses(prediction.class_queries_logits, query_classes, class_weights)
        contrastive = contrastive_losses(
            prediction.mask_text_similarity, query_classes, class_weights, config.contrastive_negatives
        )
        suffix = "" if layer == LAYERS[-1] else f"d{layer[-1]}."
        terms[f"decode.{suffix}loss_cls"] = config.class_weight * classification.sum() / divisor
        terms[f"decode.{suffix}loss_queries"] = config.contrastive_weight * contrastive.sum() / divisor
        terms[f"decode.{suffix}loss_mask"] = config.mask_weight * mask_losses(*points).sum() / divisor
        terms[f"decode.{suffix}loss_dice"] = config.dice_weight * dice_losses(*points).sum() / divisor
    return terms


def assert_recorded(terms, expected, recording):
    for name, term in (terms | {"total": sum(terms.values())}).items():
        torch.testing.assert_close(term, expected[f"{recording}.scalar.{name}"][0], rtol=1e-4, atol=0, msg=name)


@pytest.fixture(scope="module")
def losses_and_gradients(model, feature_maps, expected):
    model.requires_grad_(True)
    terms = recorded_losses(predict(model, feature_maps=feature_maps)[1], expected, model.config)
    sum(terms.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.model.freeze()
    return terms, gradients


def test_losses_at_recorded_points(losses_and_gradients, expected):
    assert_recorded(losses_and_gradients[0], expected, "loss")


def test_gradients(losses_and_gradients, model, expected):
    _, gradients = losses_and_gradients
    names = [name for name in expected if name.startswith("grad.") and "backbone" not in name]
    original = {name.removeprefix("grad."): expected[name] for name in names}
    converted = convert_original_state_dict(original, model.config).tensors
    assert len(converted) == len(original) + 1  # the query positions become two tensors
    for name, gradient in converted.items():
        error = (gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


def test_gradient_norms(losses_and_gradients, model, folder, expected):
    _, gradients = losses_and_gradients
    weights = load_file(folder / "weights.safetensors")
    used = {name: torch.zeros_like(weight) for name, weight in weights.items() if not name.startswith("backbone")}
    targets: dict[str, list[str]] = {}
    for target, origin in convert_original_state_dict(used, model.config).origins.items():
        targets.setdefault(origin.names[0], []).append(target)
    for name, ours in targets.items():
        norm = torch.stack([gradients[target].norm() for target in ours]).norm()
        torch.testing.assert_close(norm, expected[f"grad_norm.{name}"].squeeze(), rtol=1e-3, atol=1e-5, msg=name)


@pytest.fixture
def whole_model(folder):
    """A new one for each test, because training changes its statistics."""
    return load_reference_model(folder)


def test_feature_maps(whole_model, feature_maps, expected, original_config):
    with torch.no_grad():
        maps = whole_model.model.backbone(expected["pixel_values"]).feature_maps
    for actual, wanted in zip(maps, feature_maps, strict=True):
        assert_near(actual, wanted)
    assert whole_model.model.feature_channels == original_config["backbone"]["channels"]
    assert whole_model.model.map_shapes.strides == original_config["backbone"]["strides"]


@pytest.mark.parametrize(("mode", "scores"), [("whole", "seg_logits"), ("slide", "slide.seg_logits")])
def test_scores_from_pixels(whole_model, expected, original_config, mode, scores):
    sliding = original_config["sliding_window"]
    options = InferenceOptions(mode, tuple(sliding["window"]), tuple(sliding["stride"]), batch_size=3)
    segmenter = Segmenter(whole_model, MTAClipImageProcessor(), options)
    segmenter.prepare = lambda image: PreparedImage(tuple(image.shape[-2:]), [image])  # the pixels are prepared
    for image, wanted in zip(expected["pixel_values"], expected[scores], strict=True):
        assert_near(segmenter.scores(image), wanted)


def test_training_from_pixels(whole_model, expected):
    _, predictions = predict(whole_model.train(), pixel_values=expected["pixel_values"])
    assert_recorded(recorded_losses(predictions, expected, whole_model.config, "train_loss"), expected, "train_loss")
    statistics = {name: value for name, value in expected.items() if name.startswith("train_loss.after.")}
    assert statistics
    for name, value in statistics.items():
        assert_near(whole_model.get_buffer(name.replace("train_loss.after.", "model.")), value)


def test_gradients_reach_the_first_convolution(whole_model, expected):
    _, predictions = predict(whole_model, pixel_values=expected["pixel_values"])
    sum(recorded_losses(predictions, expected, whole_model.config).values()).backward()
    prefix = "grad_norm.backbone."
    norms = {name.removeprefix(prefix): norm for name, norm in expected.items() if name.startswith(prefix)}
    compared = dict(whole_model.model.backbone.named_parameters())
    for name, parameter in compared.items():
        torch.testing.assert_close(parameter.grad.norm(), norms[name].squeeze(), rtol=1e-3, atol=1e-5, msg=name)
    assert len(compared) == sum("attnpool" not in name for name in norms)
