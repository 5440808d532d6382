# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The batched criterion against the plain formulas, one layer, image, query and mask at a time."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from modeling_mtaclip.loss_mtaclip import MTAClipCriterion, classes_of_images, interpolate_labels, loss_normalizers
from tests.tiny import tiny_config


LAYERS, BATCH, QUERIES, CONTEXTS, SIZE = 3, 2, 7, 3, 6
TERMS = ("cross_entropy", "mask", "dice", "contrastive")


def make_inputs(num_labels=3, dtype=torch.float32):
    def make(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    inputs = {
        "class_queries_logits": make(LAYERS, BATCH, QUERIES, num_labels + 1),
        "mask_embeddings": make(LAYERS, BATCH, QUERIES, SIZE),
        "mask_features": make(BATCH, SIZE, 6, 8),
        "mask_text_similarity": make(LAYERS, BATCH, CONTEXTS, QUERIES, num_labels + 1),
    }
    labels = torch.randint(0, num_labels, (BATCH, 4, 6)).repeat_interleave(6, 1).repeat_interleave(5, 2)
    return inputs, labels


def sample(maps, points):
    """`(N, H, W)` maps at `(P, 2)` points, `(N, P)`."""
    grid = (2 * points - 1)[None, None].to(maps.dtype)
    return F.grid_sample(maps[None], grid, align_corners=False)[0, :, 0]


def plain_losses(inputs, labels, config, points):
    """Loops over layers, images and masks, from stacks of binary masks."""
    match_points, candidate_points = points
    uniform = config.train_num_points - int(config.importance_sample_ratio * config.train_num_points)
    exclude = config.ignored_pixels == "exclude"
    class_weight = torch.ones(config.num_labels + 1, dtype=inputs["mask_features"].dtype)
    class_weight[-1] = config.no_object_weight
    sums = {name: torch.zeros(LAYERS, dtype=class_weight.dtype) for name in TERMS}
    for layer in range(LAYERS):
        weight_sum, num_masks = 0, 0
        for image in range(BATCH):
            label_map = labels[image]
            classes = [label for label in range(config.num_labels) if (label_map == label).any()]
            if not classes:
                continue
            binary = torch.stack([label_map == label for label in classes]).to(class_weight.dtype)
            counted = (label_map != 255).to(class_weight.dtype)[None]
            logits = inputs["class_queries_logits"][layer, image]
            masks = torch.einsum(
                "qd,dhw->qhw", inputs["mask_embeddings"][layer, image], inputs["mask_features"][image]
            )
            x, t = sample(masks, match_points[image]), sample(binary, match_points[image])
            w = sample(counted, match_points[image])[0] if exclude else torch.ones_like(x[0])
            cost = torch.zeros(QUERIES, len(classes), dtype=class_weight.dtype)
            for q in range(QUERIES):
                for g, label in enumerate(classes):
                    entropy = -(t[g] * F.logsigmoid(x[q]) + (w - t[g]) * F.logsigmoid(-x[q])).sum() / w.sum()
                    p = x[q].sigmoid()
                    dice = 1 - (2 * (p * t[g]).sum() + 1) / ((p * w).sum() + t[g].sum() + 1)
                    cost[q, g] = (
                        config.match_mask_weight * entropy
                        + config.match_dice_weight * dice
                        - config.match_class_weight * logits[q].softmax(-1)[label]
                    )
            queries, chosen = linear_sum_assignment(cost.detach())
            assigned = torch.full((QUERIES,), config.num_labels)
            for q, g in zip(queries, chosen, strict=True):
                assigned[q] = classes[g]
                x_all = sample(masks[q : q + 1], candidate_points[image])[0]
                t_all = sample(binary[g : g + 1], candidate_points[image])[0]
                w_all = sample(counted, candidate_points[image])[0] if exclude else torch.ones_like(x_all)
                certainty = torch.where(w_all > 1e-6, x_all.abs(), float("inf"))[: len(x_all) - uniform]
                uncertain = certainty.argsort()[: config.train_num_points - uniform]
                index = torch.cat((uncertain, torch.arange(len(x_all) - uniform, len(x_all))))
                xs, ts, ws = x_all[index], t_all[index], w_all[index]
                entropy = -(ts * F.logsigmoid(xs) + (ws - ts) * F.logsigmoid(-xs)).sum() / ws.sum()
                p = xs.sigmoid()
                sums["mask"][layer] = sums["mask"][layer] + entropy
                dice = 1 - (2 * (p * ts).sum() + 1) / ((p * ws).sum() + ts.sum() + 1)
                sums["dice"][layer] = sums["dice"][layer] + dice
                num_masks += 1
            similarity = inputs["mask_text_similarity"][layer, image] / config.contrastive_temperature
            for q in range(QUERIES):
                y = assigned[q]
                weight = class_weight[y]
                weight_sum = weight_sum + weight
                entropy = -logits[q].log_softmax(-1)[y]
                sums["cross_entropy"][layer] = sums["cross_entropy"][layer] + weight * entropy
                e = similarity[:, q].exp()
                best = e[:, y].argmax()
                if config.contrastive_negatives == "all_positive":
                    term = -torch.stack([(e[c, y] / e.sum()).log() for c in range(CONTEXTS)]).mean()
                elif config.contrastive_negatives == "separate":
                    others = sum(e[c, y] for c in range(CONTEXTS) if c != best)
                    term = -(e[best, y] / (e.sum() - others)).log()
                else:
                    term = -(e[best, y] / e.sum()).log()
                sums["contrastive"][layer] = sums["contrastive"][layer] + weight * term
        for name in ("cross_entropy", "contrastive"):
            sums[name][layer] = sums[name][layer] / max(weight_sum, 1e-9)
        divisor = max(num_masks, 1) if config.mask_loss_normalizer == "num_masks" else weight_sum
        for name in ("mask", "dice"):
            sums[name][layer] = sums[name][layer] / divisor
    return sums


def run_both(config, inputs, labels):
    criterion = MTAClipCriterion(config)
    seeds = torch.arange(BATCH)
    loss, components = criterion(**inputs, labels=labels, point_seeds=seeds)
    image_classes = classes_of_images(labels, config.num_labels, 255)
    parts = criterion._label_points(labels, image_classes, (6, 8), seeds, torch.float64)
    plain = plain_losses(inputs, labels, config, [part.points for part in parts])
    weights = (config.class_weight, config.mask_weight, config.dice_weight, config.contrastive_weight)
    total = sum(weight * plain[name].sum() for weight, name in zip(weights, TERMS, strict=True))
    return loss, components, total, plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"contrastive_negatives": "separate", "contrastive_temperature": 0.07},
        {"contrastive_negatives": "all_positive", "mask_loss_normalizer": "class_weights"},
        {"ignored_pixels": "background", "importance_sample_ratio": 0.0},
    ],
)
def test_equal_to_plain_formulas(overrides, dtype):
    config = tiny_config(**overrides)
    inputs, labels = make_inputs(dtype=dtype)
    labels[0, :5] = 255
    loss, components, total, plain = run_both(config, inputs, labels)
    torch.testing.assert_close(loss, total)
    for name in TERMS:
        torch.testing.assert_close(components[name], plain[name][-1].detach())
        torch.testing.assert_close(components[f"{name}_0"], plain[name][0].detach())
    gradients = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    expected = torch.autograd.grad(total, list(inputs.values()))
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("importance_sample_ratio", [0.0, 0.75])
def test_every_pixel_in_place_of_points(importance_sample_ratio):
    """Equal to the plain formulas at all pixels' centers, none of which is preferred."""
    config = tiny_config(point_sampling="auto", importance_sample_ratio=importance_sample_ratio)
    inputs, labels = make_inputs(dtype=torch.float64)
    labels[0, :5] = 255
    y, x = torch.meshgrid((torch.arange(6) + 0.5) / 6, (torch.arange(8) + 0.5) / 8, indexing="ij")
    centers = torch.stack((x, y), dim=-1).view(-1, 2).expand(BATCH, -1, -1).double()
    every_pixel = tiny_config(train_num_points=48, oversample_ratio=1, importance_sample_ratio=0.0)
    plain = plain_losses(inputs, labels, every_pixel, (centers, centers))
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
    criterion = MTAClipCriterion(tiny_config(importance_sample_ratio=0.0))
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


def test_more_classes_than_queries():
    config = tiny_config(
        id2label={i: str(i) for i in range(12)}, class_token_ids={str(i): [1] for i in range(12)} | {"none": [2]}
    )
    inputs, labels = make_inputs(num_labels=12)
    assert classes_of_images(labels, 12, 255)[:, QUERIES].amin() >= 0
    loss, _, total, _ = run_both(config, inputs, labels)
    torch.testing.assert_close(loss, total)


def test_image_without_labels_counts_nowhere():
    config = tiny_config()
    inputs, labels = make_inputs()
    labels[1] = 255
    loss, _, total, _ = run_both(config, inputs, labels)
    torch.testing.assert_close(loss, total)
    loss.backward()
    for value in inputs.values():
        image = value.grad[1] if value.ndim == 4 and value.shape[0] == BATCH else value.grad[:, 1]
        assert not image.any()


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
    loss, _ = MTAClipCriterion(tiny_config())(**inputs, labels=labels)
    loss.backward()
    # 30 label columns on 8 feature columns: features 5 and later feed points at label columns 15 and later alone.
    assert inputs["mask_features"].grad[..., :4].any()
    assert not inputs["mask_features"].grad[..., 5:].any()


def test_images_with_different_numbers_of_classes():
    config = tiny_config()
    inputs, labels = make_inputs()
    labels[1] = 2
    assert classes_of_images(labels, 3, 255).tolist() == [[0, 1, 2], [2, -1, -1]]
    loss, _, total, _ = run_both(config, inputs, labels)
    torch.testing.assert_close(loss, total)


def test_parts_divided_by_the_normalizers_of_the_whole():
    criterion = MTAClipCriterion(tiny_config())
    inputs, labels = make_inputs()
    labels[1] = 2
    seeds = torch.arange(BATCH)
    whole, _ = criterion(**inputs, labels=labels, point_seeds=seeds)
    parts = []
    image_classes = classes_of_images(labels, 3, 255)
    normalizers = torch.stack([loss_normalizers(image_classes[[i]], criterion.config) for i in range(BATCH)])
    torch.testing.assert_close(normalizers.sum(dim=0), loss_normalizers(image_classes, criterion.config))
    for i in range(BATCH):
        part = {name: value[[i]] if name == "mask_features" else value[:, [i]] for name, value in inputs.items()}
        loss, _ = criterion(**part, labels=labels[[i]], normalizers=normalizers.mean(dim=0), point_seeds=seeds[[i]])
        parts.append(loss)
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_reported(value, caplog):
    inputs, labels = make_inputs()
    with torch.no_grad():
        inputs["mask_embeddings"][1, 0, 2] = value
    with caplog.at_level("WARNING"):
        MTAClipCriterion(tiny_config())(**inputs, labels=labels)
    assert "matching costs are not finite" in caplog.text


def test_labels_out_of_range():
    inputs, labels = make_inputs()
    labels[1, 3, 4] = 17
    with pytest.raises(ValueError, match=r"values \[17\], but the model has 3 classes: expected 0 … 2, or 255"):
        MTAClipCriterion(tiny_config())(**inputs, labels=labels)


def test_seeded_points_do_not_depend_on_the_batch():
    criterion = MTAClipCriterion(tiny_config())
    inputs, labels = make_inputs()
    labels[0] = 255
    alone = {name: value[[1]] if name == "mask_features" else value[:, [1]] for name, value in inputs.items()}
    loss, _ = criterion(**inputs, labels=labels, point_seeds=torch.tensor([5, 11]))
    expected, _ = criterion(**alone, labels=labels[1:], point_seeds=torch.tensor([11]))
    torch.testing.assert_close(loss, expected)


def test_interpolated_labels_are_sampled_masks():
    labels = torch.randint(0, 4, (5, 9))
    labels[labels == 3] = 255
    points = torch.rand(200, 2)
    targets, weights = interpolate_labels(labels, points, torch.tensor([0, 2]), 255, torch.float64)
    masks = torch.stack([labels == 0, labels == 2, labels != 255]).double()
    expected = sample(masks, points.double())
    torch.testing.assert_close(targets, expected[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, expected[2], rtol=0, atol=1e-6)
