# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step asks of a device, counted on the CPU, and tensors on a fake accelerator."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_mtaclip import MTAClipForSemanticSegmentation
from tests.tiny import tiny_config, tiny_model


@pytest.fixture(autouse=True)
def scripts(repository_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(repository_dir / "scripts"))


def counts_of(run):
    from device_counts import count_device_work

    return count_device_work(run)


def totals(counts):
    return {kind: number for kind, each in counts.items() if kind != "kernels" and (number := each.total())}


def small_step(batch_size):
    """A training step of the small benchmark model."""
    from benchmark import parse_arguments, train

    return train(parse_arguments(["--small", "--size", "64", "--batch_size", str(batch_size)]), "ours")


def test_a_training_step_asks_little_of_its_device():
    few, many = (counts_of(small_step(batch_size)) for batch_size in (2, 16))
    assert few["kernels"].total() <= 1100
    assert many["kernels"].total() <= 1.05 * few["kernels"].total()
    assert totals(few) == totals(many) == {"to_host": 1, "pinned_to_device": 1}


def test_inference_never_waits():
    model, images = tiny_model(), torch.randn(2, 3, 64, 64)

    @torch.no_grad()
    def infer():
        model(images)

    assert totals(counts_of(infer)) == {}


def test_waits_and_copies_are_counted():
    values = torch.arange(4.0)

    def run():
        values[values > 1].sum().item()
        values.cpu()
        torch.tensor([1.0]) + values.nonzero().tolist()[0][0]

    counts = counts_of(run)
    assert counts["waits"] == {"index": 1, "_local_scalar_dense": 1, "nonzero": 1}
    assert counts["to_host"] == {"cpu": 1, "tolist": 1}
    assert counts["to_device"] == {"lift_fresh": 1}


class OneDevice(TorchDispatchMode):
    """Refuses tensors that are not on the fake accelerator, but for single numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "cuda", f"{function} made a tensor on {tensor.device}"
        return result


def needs_a_fake_accelerator():
    try:
        with FakeTensorMode():
            torch.empty(1, device="cuda").uniform_()
    except (AssertionError, RuntimeError) as error:
        pytest.skip(f"this PyTorch can't compute on a fake accelerator: {str(error).splitlines()[0]}")


@pytest.mark.parametrize(
    ("point_sampling", "seeded", "dtype"), [("random", False, torch.float32), ("auto", True, torch.bfloat16)]
)
def test_everything_is_made_on_the_device(point_sampling, seeded, dtype):
    needs_a_fake_accelerator()
    with FakeTensorMode():
        with torch.device("cuda"):
            config = tiny_config(point_sampling=point_sampling, train_num_points=512)
            model = MTAClipForSemanticSegmentation._from_config(config, dtype=dtype).train()
            images = torch.randn(2, 3, 64, 64, dtype=dtype)
            labels, image_classes = torch.zeros(2, 64, 64, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long)
            seeds = torch.arange(2) if seeded else None
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
        with OneDevice():
            outputs = model(images, labels=labels, image_classes=image_classes, point_seeds=seeds)
            assert outputs.loss.dtype == torch.float32
            with torch.no_grad():
                assert model.eval()(images).logits.dtype == dtype
