# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of a part of a batch as shares of the whole batch's loss.

Every loss is a sum over queries or masks, divided by how much of them there is. With gradient accumulation and several
processes, a step's batch is split; only if all parts divide by what the whole batch has, the sum of their gradients is
the gradient of the undivided batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..configuration_mtaclip import MTAClipConfig
from ..loss_mtaclip import Matches, MTAClipCriterion, classes_of_images


def loss_divisors(labels: Tensor, config: MTAClipConfig) -> Tensor:
    """What the losses of some label maps are divided by, the same for every layer.

    Args:
        labels (`Tensor` of shape `(B, H, W)`): int64 label maps.
        config ([`MTAClipConfig`]): number of queries and weight of "no object".

    Returns:
        `Tensor` of shape `(2,)`: sum of the queries' class weights, number of matched masks.
    """
    image_classes = classes_of_images(labels, config.num_labels, config.semantic_loss_ignore_index)
    weight_sum, num_masks = 0.0, 0
    for classes in image_classes:
        matched = min(config.num_queries, len(classes))
        num_masks += matched
        if matched:
            weight_sum += matched + config.no_object_weight * (config.num_queries - matched)
    return torch.tensor([weight_sum, num_masks], device=labels.device)


class SharedCriterion(MTAClipCriterion):
    """[`MTAClipCriterion`] that divides by given numbers instead of those of the images it sees.

    Attributes:
        divisors (`Tensor` of shape `(2,)`, *optional*): as of [`loss_divisors`], averaged over all parts of a batch.
    """

    divisors: Tensor | None = None

    def set_whole_batch(self, parts: Sequence[Tensor]) -> None:
        """Makes the losses shares of those of a batch that is split into label maps of equal number.

        Args:
            parts (`Sequence[Tensor]`): label maps of every part that this process trains.
        """
        self.divisors = torch.stack([loss_divisors(labels, self.config) for labels in parts]).mean(dim=0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.divisors)
            self.divisors /= torch.distributed.get_world_size()

    def _divisors(self, matches: Matches, class_weights: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        if self.divisors is None:
            return super()._divisors(matches, class_weights, labelled)
        divisors = torch.where(self.divisors > 0, self.divisors, 1).to(class_weights)
        weight_sum, num_masks = divisors[:, None].expand(2, len(matches.query_classes))
        return weight_sum, num_masks


__all__ = ["SharedCriterion", "loss_divisors"]
