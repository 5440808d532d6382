# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What sharding needs in evaluation, where processes predict different numbers of images."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gathers the weights that FSDP has sharded, so that predictions need no other process; all must call this.

    Args:
        model (`nn.Module`): sharded by `fully_shard` in part or whole; any other model is left as it is.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


__all__ = ["whole_weights"]
