# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Matching of queries to classes and the four losses of MTA-CLIP, for all decoder layers at once.

The way of the data: a label map names the classes of each image → all layers' queries are compared with them on random
points and assigned (Hungarian matching) → classification and contrastive loss on every query, mask and dice loss on
random points of the matched ones. Points are shared by all layers and queries of an image, so that a mask feature is
sampled once and every logit at a point comes from a matrix product.

"Sec." refers to MTA-CLIP (arXiv 2407.21654); Mask2Former is arXiv 2112.01527.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers.utils import logging

from .configuration_mtaclip import MTAClipConfig
from .point_sampling_mtaclip import bilinear_corners, sample_rows


logger = logging.get_logger(__name__)

# Stands for a cost that is not finite: larger than any real cost, small enough for float32 sums to stay exact.
UNUSABLE_COST = 1e6


def classification_losses(class_queries_logits: Tensor, classes: Tensor, class_weights: Tensor) -> Tensor:
    """Cross-entropy of every query, weighted by its class.

    Args:
        class_queries_logits (`Tensor` of shape `(..., Q, K + 1)`): the last entry is "no object".
        classes (`Tensor` of shape `(..., Q)`): int64, the class matched to each query, `K` for none.
        class_weights (`Tensor` of shape `(K + 1,)`): weight of each class.

    Returns:
        `Tensor` of shape `(..., Q)`.
    """
    log_probabilities = class_queries_logits.log_softmax(dim=-1)
    return -log_probabilities.gather(-1, classes[..., None])[..., 0] * class_weights[classes]


def contrastive_losses(
    similarity: Tensor, classes: Tensor, class_weights: Tensor, negatives: str = "mix", temperature: float = 1.0
) -> Tensor:
    """Mask-to-text contrastive loss of every query (Sec. 3.4), weighted by its class.

    Args:
        similarity (`Tensor` of shape `(..., C, Q, K + 1)`): cosine of each query with each class in each context.
        classes (`Tensor` of shape `(..., Q)`): int64, the class matched to each query, `K` for none.
        class_weights (`Tensor` of shape `(K + 1,)`): weight of each class.
        negatives (`str`): `"mix"`: the best context of the class is the positive, its other contexts are among the
            negatives; `"separate"`: they are not; `"all_positive"`: every context of the class is a positive.
        temperature (`float`): divides the similarities.

    Returns:
        `Tensor` of shape `(..., Q)`.
    """
    logits = similarity / temperature
    num_contexts = logits.shape[-3]
    index = classes[..., None, :, None].expand(*classes.shape[:-1], num_contexts, classes.shape[-1], 1)
    own = logits.gather(-1, index)[..., 0]  # (..., C, Q)
    if negatives == "all_positive":
        positive = own.mean(dim=-2)
    else:
        best = own.argmax(dim=-2, keepdim=True)
        positive = own.gather(-2, best)[..., 0, :]
    if negatives == "separate":
        context = torch.arange(num_contexts, device=best.device)[:, None]
        logits = logits.scatter(-1, index, own.masked_fill(context != best, float("-inf"))[..., None])
    denominator = logits.logsumexp(dim=(-3, -1))
    return (denominator - positive) * class_weights[classes]


def mask_losses(point_logits: Tensor, point_targets: Tensor, point_weights: Tensor) -> Tensor:
    """Sigmoid cross-entropy of masks, averaged over their points.

    Args:
        point_logits (`Tensor` of shape `(M, P)`): mask logits at points.
        point_targets (`Tensor` of shape `(M, P)`): how much of each point belongs to the mask, in [0, weight].
        point_weights (`Tensor` of shape `(M, P)`): how much of each point is labelled, in [0, 1].

    Returns:
        `Tensor` of shape `(M,)`.
    """
    losses = point_weights * nn.functional.softplus(point_logits) - point_targets * point_logits
    return losses.sum(dim=-1) / point_weights.sum(dim=-1).clamp(min=1)


def dice_losses(point_logits: Tensor, point_targets: Tensor, point_weights: Tensor) -> Tensor:
    """Dice loss of masks (V-Net, arXiv 1606.04797, without squares; smoothed by 1), on points.

    Arguments and result as in [`mask_losses`].
    """
    probabilities = point_logits.sigmoid()
    overlap = (probabilities * point_targets).sum(dim=-1)
    total = (probabilities * point_weights + point_targets).sum(dim=-1)
    return 1 - (2 * overlap + 1) / (total + 1)


def matching_costs(
    class_probabilities: Tensor,
    point_logits: Tensor,
    point_targets: Tensor,
    point_weights: Tensor,
    config: MTAClipConfig,
) -> Tensor:
    """Cost of giving query `q` the class `g`: minus its probability, plus mask cross-entropy, plus dice, weighted.

    Args:
        class_probabilities (`Tensor` of shape `(N, G)`): of the `G` classes of an image, for `N` queries.
        point_logits (`Tensor` of shape `(N, P)`): mask logits at points; overwritten.
        point_targets (`Tensor` of shape `(G, P)`): how much of each point belongs to each class.
        point_weights (`Tensor` of shape `(P,)`): how much of each point is labelled.
        config ([`MTAClipConfig`]): the weights.

    Returns:
        `Tensor` of shape `(N, G)`.
    """
    num_points = point_weights.sum().clamp(min=1)
    # Everything here is linear in the targets: the elementwise work is per query, never per query and class.
    mask_cost = (nn.functional.softplus(point_logits) @ point_weights)[:, None] - point_logits @ point_targets.T
    probabilities = point_logits.sigmoid_()
    overlap = probabilities @ point_targets.T
    total = (probabilities @ point_weights)[:, None] + point_targets.sum(dim=-1)
    dice_cost = 1 - (2 * overlap + 1) / (total + 1)
    return (
        config.match_mask_weight * mask_cost / num_points
        + config.match_dice_weight * dice_cost
        - config.match_class_weight * class_probabilities
    )


@dataclass
class LabelPoints:
    """The labels of one image at random points, by bilinear interpolation of its class masks.

    Attributes:
        targets (`Tensor` of shape `(G, P)`): how much of each point belongs to each class of the image, in [0, 1].
        weights (`Tensor` of shape `(P,)`): how much of each point counts, in [0, 1].
    """

    targets: Tensor
    weights: Tensor


def interpolate_labels(
    labels: Tensor, points: Tensor, classes: Tensor, ignore_index: int | None, dtype: torch.dtype
) -> LabelPoints:
    """Samples the class masks of a label map at points, without making the masks.

    Args:
        labels (`Tensor` of shape `(H, W)`): int64 label map.
        points (`Tensor` of shape `(P, 2)`): (x, y) in [0, 1].
        classes (`Tensor` of shape `(G,)`): the classes whose masks are sampled.
        ignore_index (`int`, *optional*): label of pixels that don't count; `None`: every pixel counts.
        dtype (`torch.dtype`): of the result.
    """
    rows, shares = bilinear_corners(tuple(labels.shape), points)
    corners, shares = labels.flatten()[rows], shares.to(dtype)
    targets = labels.new_zeros((len(classes), len(points)), dtype=dtype)
    for corner, share in zip(corners.unbind(1), shares.unbind(1), strict=True):
        targets += (corner == classes[:, None]) * share
    weights = ((corners != ignore_index) * shares).sum(dim=1)
    return LabelPoints(targets, torch.ones_like(weights) if ignore_index is None else weights)


def classes_of_images(labels: Tensor, num_labels: int, ignore_index: int) -> list[Tensor]:
    """The classes that occur in each label map, ascending.

    Args:
        labels (`Tensor` of shape `(B, H, W)`): int64 label maps.
        num_labels (`int`): number of classes, `K`.
        ignore_index (`int`): label of pixels without class.

    Raises:
        ValueError: a label that is neither in 0 … K - 1 nor `ignore_index`.
    """
    usable = (labels >= 0) & (labels < num_labels)
    bins = torch.where(usable, labels, torch.where(labels == ignore_index, num_labels, num_labels + 1))
    present = torch.zeros(len(labels), num_labels + 2, dtype=torch.bool, device=labels.device)
    present.scatter_(1, bins.flatten(1), True)
    present = present.cpu()
    if present[:, -1].any():
        wrong = labels[~usable & (labels != ignore_index)].unique().tolist()
        raise ValueError(
            f"`labels` contain the values {wrong[:10]}, but the model has {num_labels} classes: expected 0 … "
            f"{num_labels - 1}, or {ignore_index} for pixels to ignore. Check the label map, `do_reduce_labels` and "
            "`id2label`."
        )
    return [image.nonzero()[:, 0].to(labels.device) for image in present[:, :num_labels]]


@dataclass
class Matches:
    """The queries that were given a class.

    Attributes:
        query_classes (`Tensor` of shape `(L, B, Q)`): int64, the class of each query, `K` for "no object".
        rows (`list[Tensor]`): for each image, the matched queries as `layer * Q + query`.
        columns (`list[Tensor]`): for each image, which of the image's classes each of them was given.
    """

    query_classes: Tensor
    rows: list[Tensor]
    columns: list[Tensor]


class MTAClipCriterion(nn.Module):
    """All losses of all supervised predictions in one pass.

    Args:
        config ([`MTAClipConfig`]): weights, sampling sizes and the choices between ours and the authors' behaviour.
    """

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        class_queries_logits: Tensor,
        mask_embeddings: Tensor,
        mask_features: Tensor,
        mask_text_similarity: Tensor | None,
        labels: Tensor,
        point_seeds: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the losses, in float32.

        Args:
            class_queries_logits (`Tensor` of shape `(L, B, Q, K + 1)`): of `L` predictions, the last layer's last.
            mask_embeddings (`Tensor` of shape `(L, B, Q, D)`): mask logits are their products with `mask_features`.
            mask_features (`Tensor` of shape `(B, D, h, w)`): channels-last in memory.
            mask_text_similarity (`Tensor` of shape `(L, B, C, Q, K + 1)`, *optional*): cosines with the class texts.
            labels (`Tensor` of shape `(B, H, W)`): int64 label maps.
            point_seeds (`Tensor` of shape `(B,)`, *optional*): int64; makes each image's random points a function of
                its seed alone, whatever else is in the batch.

        Returns:
            `tuple[Tensor, dict[str, Tensor]]`: the weighted total, and the unweighted terms by name: those of the last
            layer plain, those of prediction `i` with the suffix `_i`.

        Raises:
            ValueError: labels out of range.
        """
        config = self.config
        with torch.autocast(labels.device.type, enabled=False):
            class_queries_logits, mask_embeddings, mask_features = (
                tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                for tensor in (class_queries_logits, mask_embeddings, mask_features)
            )
            features = mask_features.permute(0, 2, 3, 1)  # (B, h, w, D)
            image_classes = classes_of_images(labels, config.num_labels, config.semantic_loss_ignore_index)
            points = self._draw_points(labels, point_seeds)
            matches = self._match(class_queries_logits, mask_embeddings, features, labels, image_classes, points)

            class_weights = class_queries_logits.new_ones(config.num_labels + 1)
            class_weights[-1] = config.no_object_weight
            # An image without any labelled pixel says nothing, not even "no object".
            labelled = torch.tensor([len(classes) > 0 for classes in image_classes], device=labels.device)[:, None]
            weight_sums, mask_counts = self._divisors(matches, class_weights, labelled)

            terms = {}
            losses = classification_losses(class_queries_logits, matches.query_classes, class_weights)
            terms["cross_entropy"] = (losses * labelled).sum(dim=(1, 2)) / weight_sums
            mask_terms, dice_terms = self._mask_terms(
                mask_embeddings, features, labels, image_classes, points, matches
            )
            mask_divisors = mask_counts if config.mask_loss_normalizer == "num_masks" else weight_sums
            terms["mask"], terms["dice"] = mask_terms / mask_divisors, dice_terms / mask_divisors
            if mask_text_similarity is not None:
                losses = contrastive_losses(
                    mask_text_similarity.to(class_queries_logits.dtype),
                    matches.query_classes,
                    class_weights,
                    config.contrastive_negatives,
                    config.contrastive_temperature,
                )
                terms["contrastive"] = (losses * labelled).sum(dim=(1, 2)) / weight_sums

        weights = {
            "cross_entropy": config.class_weight,
            "mask": config.mask_weight,
            "dice": config.dice_weight,
            "contrastive": config.contrastive_weight,
        }
        total = sum(weights[name] * term.sum() for name, term in terms.items())
        return total, _named_components(terms)

    def _draw_points(self, labels: Tensor, point_seeds: Tensor | None) -> tuple[Tensor, Tensor]:
        """Random points to match on, `(B, P, 2)`, and candidates for the mask losses, `(B, P', 2)`."""
        num_matched = self.config.train_num_points
        num_candidates = int(num_matched * self.config.oversample_ratio) + self._num_uniform_points()
        sizes = [num_matched, num_candidates]
        if point_seeds is None:
            points = torch.rand(len(labels), sum(sizes), 2, device=labels.device)
        else:
            generators = [torch.Generator().manual_seed(seed) for seed in point_seeds.tolist()]
            points = torch.stack([torch.rand(sum(sizes), 2, generator=generator) for generator in generators])
            points = points.to(labels.device)
        return points.split(sizes, dim=1)

    def _num_uniform_points(self) -> int:
        return self.config.train_num_points - int(self.config.importance_sample_ratio * self.config.train_num_points)

    def _label_points(self, labels: Tensor, points: Tensor, classes: Tensor, dtype: torch.dtype) -> LabelPoints:
        exclude = self.config.ignored_pixels == "exclude"
        ignore_index = self.config.semantic_loss_ignore_index if exclude else None
        return interpolate_labels(labels, points, classes, ignore_index, dtype)

    @torch.no_grad()
    def _match(
        self,
        class_queries_logits: Tensor,
        mask_embeddings: Tensor,
        features: Tensor,
        labels: Tensor,
        image_classes: list[Tensor],
        points: tuple[Tensor, Tensor],
    ) -> Matches:
        num_layers, _, num_queries, num_classes = class_queries_logits.shape
        costs = []
        for image, classes in enumerate(image_classes):
            label_points = self._label_points(labels[image], points[0][image], classes, features.dtype)
            point_features = sample_rows(features[image].flatten(0, 1), features.shape[1:3], points[0][image])
            point_logits = mask_embeddings[:, image].flatten(0, 1) @ point_features.T
            probabilities = class_queries_logits[:, image].softmax(dim=-1)[..., classes].flatten(0, 1)
            costs.append(
                matching_costs(probabilities, point_logits, label_points.targets, label_points.weights, self.config)
            )
        sizes = [len(classes) for classes in image_classes]
        device_costs = torch.cat(costs, dim=1)
        assigned = _assign(device_costs.cpu().unflatten(0, (num_layers, num_queries)), sizes)

        query_classes = torch.full(
            class_queries_logits.shape[:-1], num_classes - 1, dtype=torch.long, device=labels.device
        )
        rows, columns = [], []
        for image, (layers, queries, chosen) in enumerate(assigned):
            layers, queries, chosen = (indices.to(labels.device) for indices in (layers, queries, chosen))
            rows.append(layers * num_queries + queries)
            columns.append(chosen)
            query_classes[layers, image, queries] = image_classes[image][chosen]
        return Matches(query_classes, rows, columns)

    def _divisors(self, matches: Matches, class_weights: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Per layer: sum of the queries' class weights and number of matched masks, as a process's share of both."""
        num_layers = len(matches.query_classes)
        weight_sums = (class_weights[matches.query_classes] * labelled).sum(dim=(1, 2))
        # Every layer gives each image's classes to as many queries.
        mask_counts = torch.full_like(weight_sums, sum(len(rows) for rows in matches.rows) // num_layers)
        divisors = torch.stack((weight_sums, mask_counts))
        if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
            # Gradients are averaged over processes, so that each must divide by the mean of what all have.
            torch.distributed.all_reduce(divisors)
            divisors /= torch.distributed.get_world_size()
        weight_sums, mask_counts = divisors
        return torch.where(weight_sums > 0, weight_sums, 1), torch.where(mask_counts > 0, mask_counts, 1)

    def _mask_terms(
        self,
        mask_embeddings: Tensor,
        features: Tensor,
        labels: Tensor,
        image_classes: list[Tensor],
        points: tuple[Tensor, Tensor],
        matches: Matches,
    ) -> tuple[Tensor, Tensor]:
        """Sums of the matched masks' cross-entropy and dice losses, per layer."""
        num_layers, _, num_queries, _ = mask_embeddings.shape
        sums = [mask_embeddings.new_zeros(num_layers) for _ in range(2)]
        for image, (rows, columns) in enumerate(zip(matches.rows, matches.columns, strict=True)):
            label_points = self._label_points(labels[image], points[1][image], image_classes[image], features.dtype)
            # Only matched masks are made, as columns, so that sampling a pixel reads one row.
            embeddings = mask_embeddings[:, image].flatten(0, 1)[rows]
            masks = features[image].flatten(0, 1) @ embeddings.T  # (h * w, M)
            logits = sample_rows(masks, features.shape[1:3], points[1][image]).T
            chosen = self._choose_points(logits.detach(), label_points.weights)
            logits = logits.gather(1, chosen)
            targets = label_points.targets[columns].gather(1, chosen)
            weights = label_points.weights[chosen]
            layers = rows // num_queries
            for index, losses in enumerate((mask_losses, dice_losses)):
                sums[index] = sums[index].index_add(0, layers, losses(logits, targets, weights))
        return sums[0], sums[1]

    def _choose_points(self, logits: Tensor, weights: Tensor) -> Tensor:
        """For each mask the most uncertain of the candidates (PointRend, arXiv 1912.08193) and all uniform points."""
        num_uniform = self._num_uniform_points()
        num_candidates = logits.shape[1] - num_uniform
        certainty = logits[:, :num_candidates].abs()
        certainty = certainty.masked_fill_(weights[:num_candidates] == 0, float("inf"))
        num_uncertain = self.config.train_num_points - num_uniform
        uncertain = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
        uniform = torch.arange(num_candidates, logits.shape[1], device=logits.device)
        return torch.cat((uncertain, uniform.expand(len(logits), -1)), dim=1)


# Solved on the CPU, by code that no compiler sees into.
@torch.compiler.disable
def _assign(costs: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Assigns queries to classes at the least cost, for each layer and image.

    Args:
        costs (`Tensor` of shape `(L, Q, sum(sizes))`): on the CPU, the images' classes side by side.
        sizes (`list[int]`): number of classes of each image.

    Returns:
        For each image three int64 tensors: layers, queries and positions among the image's classes.
    """
    finite = costs.isfinite()
    if not finite.all():
        logger.warning(
            "%d of %d matching costs are not finite, because predictions are NaN or infinite: the affected queries "
            "are matched last. Lower the learning rate, or look for broken inputs.",
            int((~finite).sum()),
            costs.numel(),
        )
        costs = torch.where(finite, costs, UNUSABLE_COST)
    result = []
    for block in costs.split(sizes, dim=-1):
        pairs = [linear_sum_assignment(layer) for layer in block.numpy()]
        layers = torch.arange(len(pairs)).repeat_interleave(torch.tensor([len(rows) for rows, _ in pairs]))
        queries, classes = (torch.cat([torch.from_numpy(pair[i]) for pair in pairs]) for i in range(2))
        result.append((layers, queries, classes))
    return result


def _named_components(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    components = {}
    for name, per_layer in terms.items():
        *auxiliary, last = per_layer.detach().unbind()
        components[name] = last
        components |= {f"{name}_{index}": term for index, term in enumerate(auxiliary)}
    return components


__all__ = [
    "MTAClipCriterion",
    "classes_of_images",
    "classification_losses",
    "contrastive_losses",
    "dice_losses",
    "interpolate_labels",
    "mask_losses",
    "matching_costs",
]
