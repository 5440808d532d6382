# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from modeling_mtaclip import MTAClipImageProcessor, MTAClipImageProcessorPil, postprocessing_mtaclip


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def random_image(height=60, width=90):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_plain_normalisation_and_padding():
    image = random_image()
    labels = np.random.default_rng(1).integers(0, 5, (60, 90), dtype=np.uint8)
    batch = MTAClipImageProcessor(do_resize=False)(image, segmentation_maps=labels, return_tensors="pt")
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch.pixel_values.shape == (1, 3, 64, 96)
    expected = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(batch.pixel_values[0, :, :60, :90], expected, atol=1e-5)
    assert not batch.pixel_values[0, :, 60:].any()
    assert not batch.pixel_values[0, :, :, 90:].any()
    assert batch.labels.dtype == torch.int64
    assert np.array_equal(batch.labels[0, :60, :90], labels)
    assert (batch.labels[0, 60:] == 255).all()
    assert (batch.labels[0, :, 90:] == 255).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((360, 480), (512, 683)), ((480, 360), (683, 512)), ((300, 2000), (307, 2048)), ((1024, 2048), (512, 1024))],
)
def test_resize_keeps_the_ratio(size, expected):
    processor = MTAClipImageProcessor(do_pad=False)
    assert processor(random_image(*size), return_tensors="pt").pixel_values.shape[-2:] == expected


def test_resize_agrees_with_pil():
    image = Image.fromarray(np.asarray(Image.fromarray(random_image(12, 16)).resize((160, 120), Image.BICUBIC)))
    processor = MTAClipImageProcessor(size={"shortest_edge": 60}, do_pad=False, do_normalize=False, do_rescale=False)
    ours = processor(image, return_tensors="pt").pixel_values[0].numpy()
    theirs = np.asarray(image.resize((80, 60), Image.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(ours - theirs).max() <= 1


def test_label_maps_are_resized_without_new_values():
    labels = np.kron(np.array([[0, 200], [7, 255]]), np.ones((30, 45), dtype=int))
    processor = MTAClipImageProcessor(size={"height": 64, "width": 128})
    resized = processor(random_image(), segmentation_maps=labels, return_tensors="pt").labels[0]
    assert np.array_equal(resized, np.kron(np.array([[0, 200], [7, 255]]), np.ones((32, 64), dtype=int)))


def test_reduce_labels():
    labels = np.array([[0, 1, 2], [150, 255, 254]])
    processor = MTAClipImageProcessor(do_resize=False, do_pad=False, do_reduce_labels=True)
    reduced = processor(random_image(2, 3), segmentation_maps=labels, return_tensors="pt").labels[0]
    assert reduced.tolist() == [[255, 0, 1], [149, 255, 253]]


def test_batch_of_mixed_sizes():
    processor = MTAClipImageProcessor(do_resize=False)
    batch = processor([random_image(40, 70), random_image(33, 90)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 64, 96)


def test_image_kinds_agree():
    image = random_image()
    grey = Image.fromarray(image).convert("L")
    processor = MTAClipImageProcessor(do_resize=False)

    def process(value, **kwargs):
        return processor(value, return_tensors="pt", **kwargs).pixel_values

    expected = process(image)
    assert torch.equal(process(Image.fromarray(image)), expected)
    assert torch.equal(process(torch.from_numpy(image).permute(2, 0, 1)), expected)
    assert torch.equal(process(Image.fromarray(image).convert("RGBA")), expected)
    torch.testing.assert_close(process((image / 255).astype(np.float32)), expected)
    torch.testing.assert_close(process(image.astype(np.float32)), expected)
    torch.testing.assert_close(process(grey), process(np.asarray(grey.convert("RGB"))))
    palette = Image.fromarray(image).quantize(16)
    assert torch.equal(process(palette), process(palette.convert("RGB")))


def test_exif_orientation():
    image = Image.fromarray(random_image())
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = image.copy()
    turned.info["exif"] = exif.tobytes()
    processor = MTAClipImageProcessor(do_resize=False, do_pad=False)
    assert processor(turned, return_tensors="pt").pixel_values.shape[-2:] == (90, 60)


def test_json_round_trip(tmp_path):
    processor = MTAClipImageProcessor(
        size={"shortest_edge": 640}, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD, do_reduce_labels=True
    )
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, MTAClipImageProcessor)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.do_reduce_labels
    assert dict(loaded.size) == dict(processor.size)


@pytest.mark.parametrize(
    ("image", "maps", "message"),
    [
        (Image.new("I;16", (8, 8)), None, "8 bits per channel, got a PIL image of mode 'I;16'"),
        (np.full((8, 8, 3), 1000, dtype=np.uint16), None, "uint16 with values up to 1000"),
        (np.full((8, 8, 3), -0.5, dtype=np.float32), None, r"values in \[0, 1\] or \[0, 255\], got values from -0.5"),
        (np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((8, 9), dtype=np.uint8), r"size \(8, 9\) does not fit"),
        (np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((8, 8), dtype=np.float32), "integer labels"),
        (np.zeros((8, 8, 3), dtype=np.uint8), [np.zeros((8, 8), dtype=np.uint8)] * 2, "2 segmentation maps for 1"),
    ],
)
def test_errors(image, maps, message):
    with pytest.raises(ValueError, match=message):
        MTAClipImageProcessor()(image, segmentation_maps=maps, return_tensors="pt")


def random_outputs(batch_size, height, width, num_labels=5, queries=7):
    return SimpleNamespace(
        class_queries_logits=torch.randn(batch_size, queries, num_labels + 1),
        masks_queries_logits=3 * torch.randn(batch_size, queries, height, width),
    )


def plain_scores(outputs, image, input_size, valid_size, target_size):
    """The whole stack of masks and scores at once."""
    masks = F.interpolate(outputs.masks_queries_logits[image][None], input_size, mode="bilinear")[0].sigmoid()
    classes = outputs.class_queries_logits[image].softmax(-1)[:, :-1]
    scores = torch.einsum("qk,qhw->khw", classes, masks)[:, : valid_size[0], : valid_size[1]]
    return F.interpolate(scores[None], target_size, mode="bilinear")[0]


@pytest.mark.parametrize("band_elements", [1, 3000, 2**22])
@pytest.mark.parametrize("target", [(100, 140), (37, 52), (231, 324)])
def test_post_processing_is_exact(band_elements, target, monkeypatch):
    monkeypatch.setattr(postprocessing_mtaclip, "BAND_ELEMENTS", band_elements)
    processor = MTAClipImageProcessor(size={"shortest_edge": 50})
    valid = (50, int(target[1] * 50 / target[0] + 0.5))
    outputs = random_outputs(1, 16, 24 if valid[1] > 64 else 16)
    padded = (64, outputs.masks_queries_logits.shape[-1] * 4)
    expected = plain_scores(outputs, 0, padded, valid, target)
    (result,) = processor.post_process_semantic_segmentation(outputs, [target], return_segmentation_scores=True)
    torch.testing.assert_close(result["segmentation_scores"], expected, rtol=0, atol=1e-5)
    (labels,) = processor.post_process_semantic_segmentation(outputs, [target])
    assert labels.shape == target
    assert labels.dtype == torch.int64
    best = expected.topk(2, dim=0)
    clear = best.values[0] - best.values[1] > 1e-4
    assert torch.equal(labels[clear], best.indices[0][clear])


def test_padding_is_removed_in_a_batch_of_mixed_sizes():
    processor = MTAClipImageProcessor(do_resize=False)
    sizes = [(60, 90), (33, 96)]
    outputs = random_outputs(2, 16, 24)
    maps = processor.post_process_semantic_segmentation(outputs, sizes)
    for image, size in enumerate(sizes):
        expected = plain_scores(outputs, image, (64, 96), size, size).argmax(0)
        assert (maps[image] == expected).float().mean() > 0.999


@pytest.mark.parametrize(
    "overrides", [{"size": {"shortest_edge": 40}}, {"do_resize": False, "size_divisor": 16}, {"do_pad": False}]
)
def test_padding_of_images_prepared_with_overrides_is_removed(overrides):
    """Overrides of a call are given again, and lead to what a processor with these settings gives."""
    processor, sizes = MTAClipImageProcessor(size={"shortest_edge": 64}), [(40, 70), (50, 90)]
    sizes = sizes[:1] if "do_pad" in overrides else sizes
    images = [random_image(*size) for size in sizes]
    height, width = processor(images, return_tensors="pt", **overrides).pixel_values.shape[-2:]
    outputs = random_outputs(len(sizes), -(-height // 4), -(-width // 4))
    maps = processor.post_process_semantic_segmentation(outputs, sizes, **overrides)
    settings = {"size": {"shortest_edge": 64}} | overrides
    expected = MTAClipImageProcessor(**settings).post_process_semantic_segmentation(outputs, sizes)
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))
    if "do_pad" not in overrides:
        valid = [(40, 70), (40, 72)] if "size" in overrides else sizes
        for image, (inner, size) in enumerate(zip(valid, sizes, strict=True)):
            plain = plain_scores(outputs, image, (height, width), inner, size).argmax(0)
            assert (maps[image] == plain).float().mean() > 0.999
    with pytest.raises(TypeError, match="do_flip"):
        processor.post_process_semantic_segmentation(outputs, sizes, do_flip=True)


@pytest.mark.parametrize("kind", [MTAClipImageProcessor, MTAClipImageProcessorPil])
@pytest.mark.parametrize(
    "overrides",
    [
        {"size": {"height": 40, "width": 50}, "resample": 3},
        {"do_resize": False, "size_divisor": 16},
        {"do_pad": False, "do_rescale": False},
        {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD},
        {"do_normalize": False, "rescale_factor": 0.5},
        {"do_reduce_labels": True, "ignore_index": 254},
    ],
)
def test_options_of_one_call(kind, overrides):
    image, labels = random_image(), np.random.default_rng(1).integers(0, 5, (60, 90), dtype=np.uint8)
    settings = {"size": {"shortest_edge": 50}}
    processor = kind(**settings)
    before = processor.to_dict()
    actual = processor(image, segmentation_maps=labels, return_tensors="pt", **overrides)
    expected = kind(**(settings | overrides))(image, segmentation_maps=labels, return_tensors="pt")
    plain = processor(image, segmentation_maps=labels, return_tensors="pt")
    for name in ("pixel_values", "labels"):
        assert torch.equal(actual[name], expected[name])
    assert any(actual[name].shape != plain[name].shape or (actual[name] != plain[name]).any() for name in plain)
    assert processor.to_dict() == before


def test_images_prepared_otherwise_cover_the_whole_input():
    outputs = random_outputs(1, 16, 24)
    (labels,) = MTAClipImageProcessor().post_process_semantic_segmentation(outputs, [(64, 96)])
    expected = plain_scores(outputs, 0, (64, 96), (64, 96), (64, 96)).argmax(0)
    assert (labels == expected).float().mean() > 0.999


def test_post_processing_half_precision():
    outputs = random_outputs(1, 16, 24)
    expected = MTAClipImageProcessor().post_process_semantic_segmentation(outputs)[0]
    half = SimpleNamespace(**{name: value.bfloat16() for name, value in vars(outputs).items()})
    assert (MTAClipImageProcessor().post_process_semantic_segmentation(half)[0] == expected).float().mean() > 0.97


def test_post_processing_errors():
    processor, outputs = MTAClipImageProcessor(), random_outputs(2, 16, 24)
    with pytest.raises(ValueError, match="got 1 for 2"):
        processor.post_process_semantic_segmentation(outputs, [(64, 96)])
    del outputs.masks_queries_logits
    with pytest.raises(ValueError, match="no `masks_queries_logits`"):
        processor.post_process_semantic_segmentation(outputs)


def test_reference_scores(shared_dir):
    expected = load_file(shared_dir / "reference" / "mtaclip_tiny" / "io.safetensors")
    outputs = SimpleNamespace(
        class_queries_logits=expected["layer3.cls_pred"], masks_queries_logits=expected["layer3.mask_pred"]
    )
    results = MTAClipImageProcessor().post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
    scores = torch.stack([result["segmentation_scores"] for result in results])
    torch.testing.assert_close(scores, expected["seg_logits"], rtol=0, atol=1e-5)
