# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show; skipped without one. docs/gpu.md says how to run all of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.nn import functional as F

from modeling_mtaclip import loss_mtaclip
from modeling_mtaclip.deformable_attention_mtaclip import MultiScaleDeformableAttention
from modeling_mtaclip.loss_mtaclip import classes_of_images, loss_normalizers
from modeling_mtaclip.postprocessing_mtaclip import QueryScores, semantic_scores
from modeling_mtaclip.training.checkpoints import last_complete_checkpoint
from tests.test_reference import STAGES, expected, feature_maps, folder, model, original_config
from tests.tiny import tiny_model


NUM_GPUS = torch.cuda.device_count()
HALVES = [torch.bfloat16, torch.float16]

pytestmark = pytest.mark.skipif(NUM_GPUS == 0, reason="needs a GPU")
needs_two = pytest.mark.skipif(NUM_GPUS < 2, reason="needs two GPUs")
# Fixtures of the reference, used below by name.
__all__ = ["expected", "feature_maps", "folder", "model", "original_config"]


@pytest.fixture(autouse=True)
def plain_float32():
    """Without TensorFloat-32, whose products have 10 bits."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.cuda.set_sync_debug_mode("default")


def batch_of(size=64, number=2):
    """Inputs of a training step as the trainer gives them, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (number, 8, 8), generator=generator).repeat_interleave(size // 8, 1)
    labels = labels.repeat_interleave(size // 8, 2)
    labels[0, : size // 4] = 255
    return {
        "pixel_values": torch.randn(number, 3, size, size, generator=generator) + labels.clamp(max=3)[:, None],
        "labels": labels,
        "image_classes": classes_of_images(labels, 3, 255),
        "point_seeds": torch.arange(number),
    }


def to_gpu(batch):
    return {name: value.cuda() for name, value in batch.items()}


def step(model, batch, dtype=torch.float32):
    """Loss and gradients of one training step, in float32 on the CPU."""
    model.zero_grad()
    device = batch["pixel_values"].device.type
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        loss = model(**batch, output_logits=False).loss
    loss.backward()
    gradients = [weight.grad.float().cpu() for weight in model.parameters() if weight.grad is not None]
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


def relative_error(actual, wanted):
    return float((actual - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_reference(model, feature_maps, expected, dtype, tolerance):
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        outputs = model.cuda()(feature_maps=[maps.cuda() for maps in feature_maps], output_auxiliary_predictions=True)
    model.cpu()
    assert relative_error(outputs.text_embeddings.float().cpu(), expected["text_embeddings"]) < tolerance
    first = outputs.auxiliary_predictions[0]
    for prediction, stage in ((first, STAGES[0]), (outputs, STAGES[-1])):
        logits = prediction.class_queries_logits.float().cpu()
        masks = prediction.masks_queries_logits.float().cpu()
        assert relative_error(logits, expected[f"{stage}.cls_pred"]) < tolerance
        assert relative_error(masks, expected[f"{stage}.mask_pred"]) < tolerance


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.15), (torch.float16, 0.05)]
)
@pytest.mark.parametrize("point_sampling", ["random", "auto"])
def test_a_training_step_is_that_of_the_cpu(dtype, tolerance, point_sampling):
    model = tiny_model(point_sampling=point_sampling, train_num_points=512)
    # New models sample at whole pixels, where the slope of interpolation jumps and rounding chooses the side.
    for layer in model.model.pixel_decoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.bias)
    loss, gradient = step(model, batch_of())
    gpu_loss, gpu_gradient = step(model.cuda(), to_gpu(batch_of()), dtype)
    assert gpu_loss == pytest.approx(loss, rel=tolerance)
    assert relative_error(gpu_gradient, gradient) < 10 * tolerance


def test_a_training_step_waits_only_for_the_assignment(monkeypatch):
    model, batch = tiny_model().train().cuda(), to_gpu(batch_of())
    normalizers = loss_normalizers(batch["image_classes"], model.config)
    assign, waits = loss_mtaclip.assign_queries, []

    def allowed_to_wait(costs):
        torch.cuda.set_sync_debug_mode("default")
        waits.append(costs.shape)
        queries = assign(costs)
        torch.cuda.set_sync_debug_mode("error")
        return queries

    monkeypatch.setattr(loss_mtaclip, "assign_queries", allowed_to_wait)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for mode in ("default", "error"):  # the first step makes constants
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        model(**batch, loss_normalizers=normalizers, output_logits=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 2


@torch.no_grad()
def test_inference_never_waits():
    model, images = tiny_model().cuda(), torch.randn(2, 3, 64, 96, device="cuda")
    model(images)
    torch.cuda.set_sync_debug_mode("error")
    model(images)


@pytest.mark.parametrize("target_size", [(64, 96), (90, 70)])
def test_scores_of_pixels_are_those_of_the_plain_formula(target_size):
    class_logits, mask_logits = torch.randn(20, 8, device="cuda"), torch.randn(20, 16, 24, device="cuda")
    masks = F.interpolate(mask_logits[None], size=(64, 96), mode="bilinear", align_corners=False)[0].sigmoid()
    wanted = torch.einsum("qk,qhw->khw", class_logits.softmax(dim=-1)[:, :-1], masks)
    wanted = F.interpolate(wanted[None], size=target_size, mode="bilinear", align_corners=False)[0]
    source = QueryScores(class_logits, mask_logits, (64, 96))
    torch.testing.assert_close(semantic_scores(source, target_size), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend):
    torch.compiler.reset()
    model, batch = tiny_model().cuda(), to_gpu(batch_of())
    for layer in model.model.pixel_decoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.bias)
    loss, gradient = step(model, batch)
    compiled = torch.compile(model, backend=backend)
    compiled_loss, compiled_gradient = step(compiled, batch)
    assert compiled_loss == pytest.approx(loss, rel=1e-3)
    assert relative_error(compiled_gradient, gradient) < 0.01


def attention_inputs(dtype, num_images=2):
    shapes = ((4, 6), (8, 12), (16, 24))
    length = sum(height * width for height, width in shapes)
    value = torch.randn(num_images, length, 8, 32, device="cuda").to(dtype)
    positions = torch.rand(num_images, 50, 8, 3, 4, 2, device="cuda") * 24 - 2
    weights = torch.rand(num_images, 50, 8, 3, 4, device="cuda").to(dtype)
    return value, shapes, positions, weights


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("num_images", [1, 2])
def test_deformable_attention_is_that_of_the_cpu(dtype, num_images):
    value, shapes, positions, weights = attention_inputs(dtype, num_images)
    attend = MultiScaleDeformableAttention()
    wanted = attend(value.float().cpu(), shapes, positions.cpu(), weights.float().cpu())
    actual = attend(value, shapes, positions, weights)
    assert actual.dtype == dtype
    assert relative_error(actual.float().cpu(), wanted) < (1e-5 if dtype == torch.float32 else 0.01)


def test_the_kernel_of_the_hub_gives_the_same():
    kernels = pytest.importorskip("kernels")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        pytest.skip("the kernel is downloaded from the Hub: set HF_HUB_OFFLINE=0")
    layer = kernels.get_kernel("kernels-community/deformable-detr").layers.MultiScaleDeformableAttention()
    ours, theirs = MultiScaleDeformableAttention(), MultiScaleDeformableAttention()
    theirs.on_accelerators = layer
    inputs = attention_inputs(torch.float32)
    torch.testing.assert_close(theirs(*inputs), ours(*inputs), rtol=1e-4, atol=1e-5)


def run(repository_dir, output_dir, *options, num_processes=1):
    """Starts a run on synthetic scenes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [sys.executable, *(launcher if num_processes > 1 else []), repository_dir / "scripts" / "run_seg.py"]
    defaults = {
        "output_dir": output_dir,
        "max_steps": 40,
        "logging_steps": 1,
        "save_steps": 10,
        "eval_strategy": "no",
        "load_best_model_at_end": "false",
        "max_train_samples": 64,
        "max_eval_samples": 8,
        "total_train_batch_size": 8,
    }
    arguments = [part for name, value in defaults.items() for part in (f"--{name}", value)]
    command = [*command, repository_dir / "configs" / "toy.yaml", *arguments, *options]
    visible = ",".join(str(index) for index in range(num_processes))
    paths = os.pathsep.join([str(repository_dir), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": visible}
    return subprocess.Popen([str(part) for part in command], env=environment, start_new_session=True)


def losses_of(output_dir):
    state = json.loads((output_dir / "checkpoint-40" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def whole_run(repository_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("whole")
    assert run(repository_dir, output_dir).wait(timeout=600) == 0
    return output_dir


@pytest.mark.slow
def test_a_killed_run_is_resumed(repository_dir, whole_run, tmp_path):
    process = run(repository_dir, tmp_path)
    end = time.monotonic() + 300
    while last_complete_checkpoint(tmp_path) is None:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # As if it had been killed before it saved more.
    for later in tmp_path.glob("checkpoint-[234]0"):
        shutil.rmtree(later)
    assert run(repository_dir, tmp_path, "--resume_from_checkpoint", "last").wait(timeout=600) == 0
    # Sums by atomic additions differ in their last digits from run to run, and with them, later, the losses: by up to
    # 5 % after 30 steps on an H200.
    resumed, whole = losses_of(tmp_path), losses_of(whole_run)
    assert resumed[:20] == pytest.approx(whole[:20], rel=0.02)
    assert sum(resumed[-10:]) == pytest.approx(sum(whole[-10:]), rel=0.1)


@needs_two
@pytest.mark.slow
def test_two_gpus_train_as_one(repository_dir, whole_run, tmp_path):
    assert run(repository_dir, tmp_path, num_processes=2).wait(timeout=600) == 0
    assert losses_of(tmp_path)[:5] == pytest.approx(losses_of(whole_run)[:5], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_like_float32(repository_dir, whole_run, tmp_path, precision):
    assert run(repository_dir, tmp_path, f"--{precision}", "true").wait(timeout=600) == 0
    ends = [sum(losses_of(folder)[-10:]) / 10 for folder in (tmp_path, whole_run)]
    assert ends[0] == pytest.approx(ends[1], rel=0.1)
