# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Matching of queries to classes and the four losses of MTA-CLIP, for all decoder layers at once.

The way of the data: a label map names the classes of each image → all layers' queries are compared with them on random
points and assigned (Hungarian matching) → classification and contrastive loss on every query, mask and dice loss on
random points of the matched ones. Points are shared by all layers and queries of an image, so that a mask feature is
sampled once and every logit at a point comes from a matrix product.

"Sec." refers to MTA-CLIP (arXiv 2407.21654); Mask2Former is arXiv 2112.01527.
"""

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers.utils import logging

from .configuration_mtaclip import MTAClipConfig
from .point_sampling_mtaclip import bilinear_corners, pixel_centers, sample_pixels, seeded_points


logger = logging.get_logger(__name__)

# Stands for a cost that is not finite: larger than any real cost, small enough for float32 sums to stay exact.
UNUSABLE_COST = 1e6
# Weight of a class mask's cross-entropy where the image doesn't show the class, beside 1 where it does.
ABSENT_CLASS_WEIGHT = 0.2
# Marks the columns of costs that stand for no class; no real cost is minus infinity.
NO_CLASS = float("-inf")


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
        point_logits (`Tensor` of shape `(..., P)`): mask logits at points.
        point_targets (`Tensor` of shape `(..., P)`): how much of each point belongs to the mask, in [0, weight].
        point_weights (`Tensor` of shape `(..., P)`): how much of each point is labeled, in [0, 1].

    Returns:
        `Tensor` of shape `(...)`.
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
        class_probabilities (`Tensor` of shape `(..., N, G)`): of the `G` classes of an image, for `N` queries.
        point_logits (`Tensor` of shape `(..., N, P)`): mask logits at points; overwritten.
        point_targets (`Tensor` of shape `(..., G, P)`): how much of each point belongs to each class.
        point_weights (`Tensor` of shape `(..., P)`): how much of each point is labeled.
        config ([`MTAClipConfig`]): the weights.

    Returns:
        `Tensor` of shape `(..., N, G)`.
    """
    targets, weights = point_targets.transpose(-1, -2), point_weights[..., None]
    num_points = point_weights.sum(dim=-1)[..., None, None].clamp(min=1)
    # Everything here is linear in the targets: the elementwise work is per query, never per query and class.
    mask_cost = (nn.functional.softplus(point_logits) @ weights - point_logits @ targets) / num_points
    probabilities = point_logits.sigmoid_()
    total = probabilities @ weights + point_targets.sum(dim=-1)[..., None, :]
    dice_cost = 1 - (2 * (probabilities @ targets) + 1) / (total + 1)
    return (
        config.match_mask_weight * mask_cost
        + config.match_dice_weight * dice_cost
        - config.match_class_weight * class_probabilities
    )


def interpolate_labels(
    labels: Tensor, points: Tensor, classes: Tensor, ignore_index: int | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Samples the class masks of label maps at points, bilinearly, without making the masks.

    Args:
        labels (`Tensor` of shape `(..., H, W)`): int64 label maps.
        points (`Tensor` of shape `(..., P, 2)`): (x, y) in [0, 1].
        classes (`Tensor` of shape `(..., G)`): the classes whose masks are sampled.
        ignore_index (`int`, *optional*): label of pixels that don't count; `None`: every pixel counts.
        dtype (`torch.dtype`): of the result.

    Returns:
        `tuple[Tensor, Tensor]`: how much of each point belongs to each class, `(..., G, P)`, and how much of it
        counts, `(..., P)`, both in [0, 1].
    """
    pixels, shares = bilinear_corners(tuple(labels.shape[-2:]), points)
    corners = labels.flatten(-2).gather(-1, pixels.flatten(-2)).view(pixels.shape)
    shares = shares.to(dtype)
    targets = shares.new_zeros((*classes.shape, points.shape[-2]))
    for corner, share in zip(corners.unbind(-1), shares.unbind(-1), strict=True):
        targets += (corner[..., None, :] == classes[..., None]) * share[..., None, :]
    weights = torch.ones_like(shares[..., 0]) if ignore_index is None else ((corners != ignore_index) * shares).sum(-1)
    return targets, weights


def classes_of_images(labels: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    """The classes that occur in each label map, ascending; where labels are on an accelerator, it waits for them.

    Args:
        labels (`Tensor` of shape `(B, H, W)`): int64 label maps.
        num_labels (`int`): number of classes, `K`.
        ignore_index (`int`): label of pixels without class.

    Returns:
        `Tensor` of shape `(B, M)`: int64, `M` being the largest number of classes of an image, at least 1; images with
        fewer end with -1.

    Raises:
        ValueError: a label that is neither in 0 … K - 1 nor `ignore_index`.
    """
    usable = (labels >= 0) & (labels < num_labels)
    bins = torch.where(usable, labels, torch.where(labels == ignore_index, num_labels, num_labels + 1))
    present = torch.zeros(len(labels), num_labels + 2, dtype=torch.bool, device=labels.device)
    present = present.scatter_(1, bins.flatten(1), True).cpu()
    if present[:, -1].any():
        wrong = labels[~usable & (labels != ignore_index)].unique().tolist()
        raise ValueError(
            f"`labels` contain the values {wrong[:10]}, but the model has {num_labels} classes: expected 0 … "
            f"{num_labels - 1}, or {ignore_index} for pixels to ignore. Check the label map, `do_reduce_labels` and "
            "`id2label`."
        )
    classes = [image.nonzero()[:, 0] for image in present[:, :num_labels]]
    padded = nn.utils.rnn.pad_sequence([*classes, torch.zeros(1)], batch_first=True, padding_value=-1)[:-1]
    return padded.long().to(labels.device)


def loss_normalizers(image_classes: Tensor, config: MTAClipConfig) -> Tensor:
    """What the losses of some images are divided by, the same for every layer.

    Where a batch is split, by gradient accumulation or over processes, the gradients of its parts add up to those of
    the whole only if every part divides by the whole batch's normalizers: average those of all parts, and give them to
    the forward pass of each.

    Args:
        image_classes (`Tensor` of shape `(B, M)`): as of [`classes_of_images`].
        config ([`MTAClipConfig`]): number of queries and weight of "no object".

    Returns:
        `Tensor` of shape `(2,)`: float32, sum of the queries' class weights and number of matched masks.
    """
    matched = (image_classes >= 0).sum(dim=1).clamp(max=config.num_queries)
    # An image without any labeled pixel says nothing, not even "no object".
    no_objects = (matched > 0) * (config.num_queries - matched)
    return torch.stack((matched + config.no_object_weight * no_objects, matched)).sum(dim=1).float()


@dataclass
class PointLabels:
    """Points at which masks are compared with the label maps.

    Attributes:
        points (`Tensor` of shape `(B, P, 2)`, *optional*): (x, y) in [0, 1]; `None`: every pixel of the mask features.
        targets (`Tensor` of shape `(B, M, P)`): how much of each point belongs to each class of the image.
        weights (`Tensor` of shape `(B, P)`): how much of each point counts.
    """

    points: Tensor | None
    targets: Tensor
    weights: Tensor

    def sample(self, maps: Tensor) -> Tensor:
        """Maps `(B, h, w, C)` at the points, `(B, P, C)`."""
        pixels = maps.flatten(1, 2)
        return pixels if self.points is None else sample_pixels(pixels, maps.shape[1:3], self.points)


class MTAClipCriterion(nn.Module):
    """All losses of all supervised predictions in one pass over the batch.

    Every image has as many places for masks as the image with the most classes; places without class count nowhere.

    Args:
        config ([`MTAClipConfig`]): weights, sampling sizes and the choices between ours and the authors' behavior.
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
        image_classes: Tensor | None = None,
        normalizers: Tensor | None = None,
        point_seeds: Tensor | None = None,
        class_mask_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the losses: mask logits in the queries' dtype, everything from there on in float32.

        Args:
            class_queries_logits (`Tensor` of shape `(L, B, Q, K + 1)`): of `L` predictions, the last layer's last.
            mask_embeddings (`Tensor` of shape `(L, B, Q, D)`): mask logits are their products with `mask_features`.
            mask_features (`Tensor` of shape `(B, D, h, w)`): channels-last in memory.
            mask_text_similarity (`Tensor` of shape `(L, B, C, Q, K + 1)`, *optional*): cosines with the class texts.
            labels (`Tensor` of shape `(B, H, W)`): int64 label maps.
            image_classes (`Tensor` of shape `(B, M)`, *optional*): as of [`classes_of_images`], which finds them when
                they are not given.
            normalizers (`Tensor` of shape `(2,)`, *optional*): what the losses are divided by; by default the
                [`loss_normalizers`] of these images.
            point_seeds (`Tensor` of shape `(B,)`, *optional*): int64; makes each image's random points a function of
                its seed alone, whatever else is in the batch.
            class_mask_embeddings (`Tensor` of shape `(L, B, K, D)`, *optional*): of the class masks, one for each
                class.

        Returns:
            `tuple[Tensor, dict[str, Tensor]]`: the weighted total, and the unweighted terms by name: those of the last
            layer plain, those of prediction `i` with the suffix `_i`.

        Raises:
            ValueError: labels out of range, when `image_classes` are not given.
        """
        config = self.config
        if image_classes is None:
            image_classes = classes_of_images(labels, config.num_labels, config.semantic_loss_ignore_index)
        if normalizers is None:
            normalizers = loss_normalizers(image_classes, config)
        with torch.autocast(labels.device.type, enabled=False):
            class_queries_logits = _to_float32(class_queries_logits)
            features = mask_features.to(mask_embeddings.dtype).permute(0, 2, 3, 1)  # (B, h, w, D)
            for_matching, for_masks = self._label_points(
                labels, image_classes, tuple(features.shape[1:3]), point_seeds, class_queries_logits.dtype
            )
            queries = self._match(class_queries_logits, mask_embeddings, features, image_classes, for_matching)
            sums = self._query_losses(class_queries_logits, mask_text_similarity, queries, image_classes)
            sums |= self._mask_losses(mask_embeddings, features, queries, for_masks)
            if class_mask_embeddings is not None:
                sums |= self._class_mask_losses(class_mask_embeddings, features, labels)

        # Without any labeled pixel, the sums are 0 too.
        weight_sum, num_masks = normalizers.to(class_queries_logits.dtype).masked_fill(normalizers <= 0, 1)
        mask_divisor = num_masks if config.mask_loss_normalizer == "num_masks" else weight_sum
        weights_and_divisors = {
            "cross_entropy": (config.class_weight, weight_sum),
            "contrastive": (config.contrastive_weight, weight_sum),
            "mask": (config.mask_weight, mask_divisor),
            "dice": (config.dice_weight, mask_divisor),
            "class_mask": (config.class_mask_weight * config.mask_weight, num_masks),
            "class_dice": (config.class_mask_weight * config.dice_weight, num_masks),
        }
        terms = {name: losses / weights_and_divisors[name][1] for name, losses in sums.items()}
        total = sum(weights_and_divisors[name][0] * term.sum() for name, term in terms.items())
        return total, _named_components(terms)

    def _label_points(
        self,
        labels: Tensor,
        image_classes: Tensor,
        feature_size: tuple[int, int],
        point_seeds: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[PointLabels, PointLabels]:
        """Points to match on, and candidates for the mask losses."""
        config = self.config
        ignore_index = config.semantic_loss_ignore_index if config.ignored_pixels == "exclude" else None
        if config.point_sampling == "auto" and math.prod(feature_size) <= config.train_num_points:
            points = pixel_centers(feature_size, labels.device).expand(len(labels), -1, -1)
            every_pixel = PointLabels(None, *interpolate_labels(labels, points, image_classes, ignore_index, dtype))
            return every_pixel, every_pixel
        num_matched, num_candidates, num_uniform = self._num_points()
        sizes = (num_matched, num_candidates + num_uniform)
        if point_seeds is None:
            points = torch.rand(len(labels), sum(sizes), 2, device=labels.device)
        else:
            points = seeded_points(point_seeds, sum(sizes))
        targets, weights = interpolate_labels(labels, points, image_classes, ignore_index, dtype)
        split = zip(points.split(sizes, dim=1), targets.split(sizes, dim=2), weights.split(sizes, dim=1), strict=True)
        for_matching, for_masks = (PointLabels(*parts) for parts in split)
        return for_matching, for_masks

    def _num_points(self) -> tuple[int, int, int]:
        """Points to match on, candidates for uncertain points of the mask losses, and uniform points of these."""
        number = self.config.train_num_points
        num_uncertain = int(number * self.config.importance_sample_ratio)
        return number, int(number * self.config.oversample_ratio), number - num_uncertain

    @torch.no_grad()
    def _match(
        self,
        class_queries_logits: Tensor,
        mask_embeddings: Tensor,
        features: Tensor,
        image_classes: Tensor,
        labels: PointLabels,
    ) -> Tensor:
        """The query that each class of each image is given, `(L, B, M)`; -1 for none."""
        point_features = labels.sample(features).transpose(1, 2)
        classes = image_classes.clamp(min=0)[:, None].expand(-1, class_queries_logits.shape[2], -1)
        costs = []
        # Layer by layer, because the logits of all of them would be large.
        for layer_logits, layer_embeddings in zip(class_queries_logits, mask_embeddings, strict=True):
            point_logits = _to_float32(layer_embeddings @ point_features)
            probabilities = layer_logits.softmax(dim=-1).gather(-1, classes)
            costs.append(matching_costs(probabilities, point_logits, labels.targets, labels.weights, self.config))
        return assign_queries(torch.stack(costs).masked_fill(image_classes[:, None] < 0, NO_CLASS))

    def _query_losses(
        self, class_queries_logits: Tensor, similarity: Tensor | None, queries: Tensor, image_classes: Tensor
    ) -> dict[str, Tensor]:
        """Sums of the losses that every query has, per layer."""
        config = self.config
        num_layers, batch_size, num_queries, _ = class_queries_logits.shape
        # Classes without query go to one more, which is dropped.
        query_classes = image_classes.new_full((num_layers, batch_size, num_queries + 1), config.num_labels)
        places = queries.masked_fill(queries < 0, num_queries)
        query_classes = query_classes.scatter(2, places, image_classes.expand_as(places))[..., :-1]
        class_weights = class_queries_logits.new_ones(config.num_labels + 1)
        class_weights[-1:].fill_(config.no_object_weight)
        losses = {"cross_entropy": classification_losses(class_queries_logits, query_classes, class_weights)}
        if similarity is not None:
            losses["contrastive"] = contrastive_losses(
                _to_float32(similarity),
                query_classes,
                class_weights,
                config.contrastive_negatives,
                config.contrastive_temperature,
            )
        # An image without any labeled pixel says nothing, not even "no object".
        labeled = image_classes[:, :1] >= 0
        return {name: (values * labeled).sum(dim=(1, 2)) for name, values in losses.items()}

    def _mask_losses(
        self, mask_embeddings: Tensor, features: Tensor, queries: Tensor, labels: PointLabels
    ) -> dict[str, Tensor]:
        """Sums of the losses that every matched mask has, per layer."""
        queries = queries.transpose(0, 1)  # (B, L, M)
        index = queries.clamp(min=0)[..., None].expand(-1, -1, -1, mask_embeddings.shape[-1])
        embeddings = mask_embeddings.transpose(0, 1).gather(2, index).flatten(1, 2)  # (B, L * M, D)
        # Only matched masks are made, as columns, so that sampling a pixel reads one row.
        masks = features @ embeddings[:, None].transpose(2, 3)
        logits = labels.sample(masks).transpose(1, 2)  # (B, L * M, P)
        logits = _to_float32(logits).contiguous().unflatten(1, queries.shape[1:])
        samples = [logits, labels.targets[:, None].expand_as(logits), labels.weights[:, None, None].expand_as(logits)]
        if labels.points is not None:
            chosen = self._choose_points(logits.detach(), labels.weights)
            samples = [values.gather(-1, chosen) for values in samples]
        losses = {"mask": mask_losses(*samples), "dice": dice_losses(*samples)}
        return {name: (values * (queries >= 0)).sum(dim=(0, 2)) for name, values in losses.items()}

    def _class_mask_losses(self, embeddings: Tensor, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Sums of the losses of class masks, per layer, on every pixel of the mask features.

        An image's classes are known, and each has its own mask: nothing is matched. The mask of a class that the image
        doesn't show learns to be empty.
        """
        config = self.config
        ignore_index = config.semantic_loss_ignore_index if config.ignored_pixels == "exclude" else None
        classes = torch.arange(config.num_labels, device=labels.device).expand(len(labels), -1)
        points = pixel_centers(tuple(features.shape[1:3]), labels.device).expand(len(labels), -1, -1)
        targets, weights = interpolate_labels(labels, points, classes, ignore_index, torch.float32)
        logits = _to_float32(embeddings @ features.flatten(1, 2).transpose(1, 2))  # (L, B, K, h * w)
        samples = (logits, targets, weights[:, None])
        present = targets.sum(dim=-1) > 0
        shares = torch.where(present, 1.0, ABSENT_CLASS_WEIGHT)
        losses = {"class_mask": mask_losses(*samples) * shares, "class_dice": dice_losses(*samples) * present}
        return {name: values.sum(dim=(1, 2)) for name, values in losses.items()}

    def _choose_points(self, logits: Tensor, weights: Tensor) -> Tensor:
        """For each mask the most uncertain of the candidates (PointRend, arXiv 1912.08193) and all uniform points."""
        num_points, num_candidates, num_uniform = self._num_points()
        certainty = logits[..., :num_candidates].abs()
        certainty = certainty.masked_fill_(weights[:, None, None, :num_candidates] == 0, float("inf"))
        uncertain = certainty.topk(num_points - num_uniform, dim=-1, largest=False, sorted=False).indices
        uniform = torch.arange(num_candidates, logits.shape[-1], device=logits.device)
        return torch.cat((uncertain, uniform.expand(*uncertain.shape[:-1], -1)), dim=-1)


# One operator, so that graphs that are compiled or run on fake tensors go through it.
@torch.library.custom_op("mtaclip::assign_queries", mutates_args=())
def assign_queries(costs: Tensor) -> Tensor:
    """Assigns queries to classes at the least cost, for each layer and image, on the CPU.

    Args:
        costs (`Tensor` of shape `(L, B, Q, M)`): `NO_CLASS` in the columns of an image that stand for no class.

    Returns:
        `Tensor` of shape `(L, B, M)`: int64, the query that each class is given; -1 for none.
    """
    host_costs = costs.cpu()
    num_classes = (host_costs[0, :, 0] != NO_CLASS).sum(dim=-1).tolist()
    unusable = ~host_costs.isfinite() & (host_costs != NO_CLASS)
    if unusable.any():
        logger.warning(
            "%d of %d matching costs are not finite, because predictions are NaN or infinite: the affected queries "
            "are matched last. Lower the learning rate, or look for broken inputs.",
            int(unusable.sum()),
            int((host_costs != NO_CLASS).sum()),
        )
        host_costs = torch.where(unusable, UNUSABLE_COST, host_costs)
    assigned = torch.full((*costs.shape[:2], costs.shape[-1]), -1)
    for layer, layer_costs in zip(assigned, host_costs.numpy(), strict=True):
        for queries, image_costs, number in zip(layer, layer_costs, num_classes, strict=True):
            rows, columns = linear_sum_assignment(image_costs[:, :number])
            queries[columns] = torch.from_numpy(rows)
    if costs.is_cuda:
        assigned = assigned.pin_memory()
    return assigned.to(costs.device, non_blocking=costs.is_cuda)


@assign_queries.register_fake
def _(costs: Tensor) -> Tensor:
    return costs.new_empty((*costs.shape[:2], costs.shape[-1]), dtype=torch.long)


def _to_float32(tensor: Tensor) -> Tensor:
    """In float32; float64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _named_components(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    components = {}
    for name, per_layer in terms.items():
        *auxiliary, last = per_layer.detach().unbind()
        components[name] = last
        components |= {f"{name}_{index}": term for index, term in enumerate(auxiliary)}
    return components


__all__ = [
    "MTAClipCriterion",
    "assign_queries",
    "classes_of_images",
    "classification_losses",
    "contrastive_losses",
    "dice_losses",
    "interpolate_labels",
    "loss_normalizers",
    "mask_losses",
    "matching_costs",
]
