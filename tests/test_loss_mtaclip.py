# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The batched criterion against the plain formulas, one layer, image, query and mask at a time."""

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from modeling_mtaclip.loss_mtaclip import MTAClipCriterion, classes_of_images, interpolate_labels, loss_normalizers
from tests.tiny import tiny_config


LAYERS, BATCH, QUERIES, CONTEXTS, SIZE = 3, 2, 7, 3, 6
TERMS = ("cross_entropy", "mask", "dice", "contrastive", "class_mask", "class_dice")


def make_inputs(num_labels=3, dtype=torch.float32):
    shapes = {
        "class_queries_logits": (LAYERS, BATCH, QUERIES, num_labels + 1),
        "mask_embeddings": (LAYERS, BATCH, QUERIES, SIZE),
        "mask_features": (BATCH, SIZE, 6, 8),
        "mask_text_similarity": (LAYERS, BATCH, CONTEXTS, QUERIES, num_labels + 1),
        "class_mask_embeddings": (LAYERS, BATCH, num_labels, SIZE),
    }
    inputs = {name: torch.randn(shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}
    labels = torch.randint(0, num_labels, (BATCH, 4, 6)).repeat_interleave(6, 1).repeat_interleave(5, 2)
    return inputs, labels


def of_image(inputs, image):
    """The inputs of one image of the batch."""
    return {name: value[[image]] if name == "mask_features" else value[:, [image]] for name, value in inputs.items()}


def sample(maps, points):
    """`(N, H, W)` maps at `(P, 2)` points, `(N, P)`."""
    grid = (2 * points - 1)[None, None].to(maps.dtype)
    return F.grid_sample(maps[None], grid, align_corners=False)[0, :, 0]


def sample_labels(label_map, config, points, dtype):
    """The mask of each class at points, `(P,)`, and how much of each point counts, `(P,)`."""
    masks = [label_map == label for label in range(config.num_labels)] + [label_map != 255]
    *targets, weight = sample(torch.stack(masks).to(dtype), points)
    return targets, weight if config.ignored_pixels == "exclude" else torch.ones_like(weight)


def pixel_centers(height=6, width=8):
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2).double()


def plain_cross_entropy(x, target, weight):
    return -(target * F.logsigmoid(x) + (weight - target) * F.logsigmoid(-x)).sum() / weight.sum()


def plain_dice(x, target, weight):
    p = x.sigmoid()
    return 1 - (2 * (p * target).sum() + 1) / ((p * weight).sum() + target.sum() + 1)


def plain_contrastive(similarity, label, negatives):
    """Of one query, from its cosines `(C, K + 1)` over the temperature."""
    e = similarity.exp()
    best = e[:, label].argmax()
    if negatives == "all_positive":
        return -torch.stack([(e[c, label] / e.sum()).log() for c in range(CONTEXTS)]).mean()
    others = sum(e[c, label] for c in range(CONTEXTS) if c != best) if negatives == "separate" else 0
    return -(e[best, label] / (e.sum() - others)).log()


def plain_losses(inputs, labels, config, points):
    """Loops over layers, images and masks, from stacks of binary masks."""
    match_points, candidate_points = points
    uniform = config.train_num_points - int(config.importance_sample_ratio * config.train_num_points)
    dtype = inputs["mask_features"].dtype
    class_weight = torch.ones(config.num_labels + 1, dtype=dtype)
    class_weight[-1] = config.no_object_weight
    sums = {name: [torch.zeros((), dtype=dtype) for _ in range(LAYERS)] for name in TERMS}
    weight_sums, num_masks = [0] * LAYERS, 0
    for layer, image in itertools.product(range(LAYERS), range(BATCH)):
        features = inputs["mask_features"][image]
        targets, weight = sample_labels(labels[image], config, pixel_centers(), dtype)
        class_masks = inputs["class_mask_embeddings"][layer, image] @ features.flatten(1)
        for x, t in zip(class_masks, targets, strict=True) if weight.any() else ():
            sums["class_mask"][layer] += plain_cross_entropy(x, t, weight) * (1 if t.any() else 0.2)
            sums["class_dice"][layer] += plain_dice(x, t, weight) * t.any()
        classes = [label for label in range(config.num_labels) if (labels[image] == label).any()]
        if not classes:
            continue
        logits = inputs["class_queries_logits"][layer, image]
        masks = torch.einsum("qd,dhw->qhw", inputs["mask_embeddings"][layer, image], features)
        xs = sample(masks, match_points[image])
        ts, w = sample_labels(labels[image], config, match_points[image], dtype)
        cost = torch.zeros(QUERIES, len(classes))
        for q, (g, label) in itertools.product(range(QUERIES), enumerate(classes)):
            cost[q, g] = (
                config.match_mask_weight * plain_cross_entropy(xs[q], ts[label], w)
                + config.match_dice_weight * plain_dice(xs[q], ts[label], w)
                - config.match_class_weight * logits[q].softmax(-1)[label]
            )
        assigned = torch.full((QUERIES,), config.num_labels)
        xs = sample(masks, candidate_points[image])
        ts, w = sample_labels(labels[image], config, candidate_points[image], dtype)
        for q, g in zip(*linear_sum_assignment(cost.detach()), strict=True):
            assigned[q] = classes[g]
            certainty = torch.where(w > 1e-6, xs[q].abs(), float("inf"))[: len(w) - uniform]
            uncertain = certainty.argsort()[: config.train_num_points - uniform]
            index = torch.cat((uncertain, torch.arange(len(w) - uniform, len(w))))
            chosen = xs[q][index], ts[classes[g]][index], w[index]
            sums["mask"][layer] += plain_cross_entropy(*chosen)
            sums["dice"][layer] += plain_dice(*chosen)
        num_masks += int(layer == 0) * min(len(classes), QUERIES)
        similarity = inputs["mask_text_similarity"][layer, image] / config.contrastive_temperature
        for q, label in enumerate(assigned.tolist()):
            weight_sums[layer] = weight_sums[layer] + class_weight[label]
            sums["cross_entropy"][layer] += -class_weight[label] * logits[q].log_softmax(-1)[label]
            contrastive = plain_contrastive(similarity[:, q], label, config.contrastive_negatives)
            sums["contrastive"][layer] += class_weight[label] * contrastive
    of_queries, of_masks = torch.stack(weight_sums), max(num_masks, 1)
    divisors = dict.fromkeys(TERMS, of_masks) | {"cross_entropy": of_queries, "contrastive": of_queries}
    if config.mask_loss_normalizer == "class_weights":
        divisors |= {"mask": of_queries, "dice": of_queries}
    return {name: torch.stack(sums[name]) / divisors[name] for name in TERMS}


def run_both(config, inputs, labels):
    criterion, seeds = MTAClipCriterion(config), torch.arange(BATCH)
    loss, components = criterion(**inputs, labels=labels, point_seeds=seeds)
    image_classes = classes_of_images(labels, config.num_labels, 255)
    parts = criterion._label_points(labels, image_classes, (6, 8), seeds, torch.float64)
    plain = plain_losses(inputs, labels, config, [part.points for part in parts])
    weights = [config.class_weight, config.mask_weight, config.dice_weight, config.contrastive_weight]
    weights += [config.class_mask_weight * weight for weight in (config.mask_weight, config.dice_weight)]
    return loss, components, sum(w * plain[name].sum() for w, name in zip(weights, TERMS, strict=True)), plain


TWELVE_CLASSES = {
    "id2label": {i: str(i) for i in range(12)},
    "class_token_ids": {str(i): [1] for i in range(12)} | {"none": [2]},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("overrides", "part", "label"),
    [
        ({}, (0, slice(5)), 255),
        ({"contrastive_negatives": "separate", "contrastive_temperature": 0.07}, (0, slice(5)), 255),
        ({"contrastive_negatives": "all_positive", "mask_loss_normalizer": "class_weights"}, (0, slice(5)), 255),
        ({"ignored_pixels": "background", "importance_sample_ratio": 0.0}, (0, slice(5)), 255),
        pytest.param({}, 1, 2, id="different numbers of classes"),
        pytest.param({}, 1, 255, id="an image without labels"),
        pytest.param(TWELVE_CLASSES, (0, slice(1)), 255, id="more classes than queries"),
    ],
)
def test_equal_to_plain_formulas(overrides, part, label, dtype):
    config = tiny_config(**{"class_mask_weight": 0.5, "dice_weight": 3.0} | overrides)
    inputs, labels = make_inputs(config.num_labels, dtype)
    labels[part] = label
    loss, components, total, plain = run_both(config, inputs, labels)
    torch.testing.assert_close(loss, total)
    for name in TERMS:
        torch.testing.assert_close(components[name], plain[name][-1].detach())
        torch.testing.assert_close(components[f"{name}_0"], plain[name][0].detach())
    gradients = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    expected = torch.autograd.grad(total, list(inputs.values()))
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_classes_of_images():
    labels = torch.tensor([[[0, 2, 255]], [[1, 1, 1]]])
    assert classes_of_images(labels, 3, 255).tolist() == [[0, 2], [1, -1]]
    assert classes_of_images(torch.full_like(labels, 255), 3, 255).tolist() == [[-1], [-1]]
    with pytest.raises(ValueError, match=r"values \[2\], but the model has 2 classes: expected 0 … 1, or 255"):
        classes_of_images(labels, 2, 255)


@pytest.mark.parametrize("importance_sample_ratio", [0.0, 0.75])
def test_every_pixel_in_place_of_points(importance_sample_ratio):
    """Equal to the plain formulas at all pixels' centers, none of which is preferred."""
    config = tiny_config(point_sampling="auto", importance_sample_ratio=importance_sample_ratio)
    inputs, labels = make_inputs(dtype=torch.float64)
    labels[0, :5] = 255
    every_pixel = tiny_config(train_num_points=48, oversample_ratio=1, importance_sample_ratio=0.0)
    plain = plain_losses(inputs, labels, every_pixel, [pixel_centers().expand(BATCH, -1, -1)] * 2)
    _, components = MTAClipCriterion(config)(**inputs, labels=labels)
    for name in TERMS:
        torch.testing.assert_close(components[name], plain[name][-1].detach(), rtol=1e-5, atol=1e-5)
    # With more pixels than points, it is the authors' sampling.
    few = {"train_num_points": 47, "importance_sample_ratio": importance_sample_ratio}
    seeds = torch.arange(BATCH)
    losses = [
        MTAClipCriterion(tiny_config(point_sampling=sampling, **few))(**inputs, labels=labels, point_seeds=seeds)[0]
        for sampling in ("auto", "random")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Losses of halves are float32, and close to those of the same numbers in float32, at equal points."""
    criterion = MTAClipCriterion(tiny_config(importance_sample_ratio=0.0, class_mask_weight=1.0))
    inputs, labels = make_inputs()
    halves = {name: value.detach().to(dtype).requires_grad_() for name, value in inputs.items()}
    singles = {name: value.detach().float().requires_grad_() for name, value in halves.items()}
    results = []
    for values in (halves, singles):
        loss, _ = criterion(**values, labels=labels, point_seeds=torch.arange(BATCH))
        gradients = torch.autograd.grad(loss, list(values.values()))
        results.append([loss, *(gradient.float() for gradient in gradients)])
        assert loss.dtype == torch.float32
    for half, single in zip(*results, strict=True):
        assert (half - single).norm() < 0.01 * single.norm()


def test_batch_without_labels_gives_zero():
    inputs, labels = make_inputs()
    loss, _ = MTAClipCriterion(tiny_config())(**inputs, labels=torch.full_like(labels, 255))
    loss.backward()
    assert loss == 0
    assert all(value.grad is not None and not value.grad.any() for value in inputs.values())


def test_ignored_pixels_count_in_no_loss():
    """What is under 255 may be anything: predictions there have no gradient."""
    inputs, labels = make_inputs()
    labels[:, :, 15:] = 255
    loss, _ = MTAClipCriterion(tiny_config(class_mask_weight=1.0))(**inputs, labels=labels)
    loss.backward()
    # 30 label columns on 8 feature columns: features 5 and later feed points at label columns 15 and later alone.
    assert inputs["mask_features"].grad[..., :4].any()
    assert not inputs["mask_features"].grad[..., 5:].any()


def test_parts_of_a_batch_with_their_own_seeds_add_up_to_the_whole():
    criterion = MTAClipCriterion(tiny_config(class_mask_weight=1.0))
    inputs, labels = make_inputs()
    labels[1] = 2
    seeds, image_classes = torch.tensor([5, 11]), classes_of_images(labels, 3, 255)
    whole, _ = criterion(**inputs, labels=labels, point_seeds=seeds)
    normalizers = torch.stack([loss_normalizers(image_classes[[i]], criterion.config) for i in range(BATCH)])
    torch.testing.assert_close(normalizers.sum(dim=0), loss_normalizers(image_classes, criterion.config))
    parts = [
        criterion(
            **of_image(inputs, i), labels=labels[[i]], normalizers=normalizers.mean(dim=0), point_seeds=seeds[[i]]
        )
        for i in range(BATCH)
    ]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).mean(), whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_reported(value, caplog):
    inputs, labels = make_inputs()
    with torch.no_grad():
        inputs["mask_embeddings"][1, 0, 2] = value
    with caplog.at_level("WARNING"):
        MTAClipCriterion(tiny_config())(**inputs, labels=labels)
    assert "matching costs are not finite" in caplog.text


def test_interpolated_labels_are_sampled_masks():
    labels = torch.randint(0, 4, (5, 9))
    labels[labels == 3] = 255
    points = torch.rand(200, 2)
    targets, weights = interpolate_labels(labels, points, torch.tensor([0, 2]), 255, torch.float64)
    masks = torch.stack([labels == 0, labels == 2, labels != 255]).double()
    expected = sample(masks, points.double())
    torch.testing.assert_close(targets, expected[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, expected[2], rtol=0, atol=1e-6)
