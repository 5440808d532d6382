# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole images, sliding windows and test-time augmentation against the plain formulas on whole score tensors."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from modeling_mtaclip import MTAClipImageProcessor, postprocessing_mtaclip
from modeling_mtaclip.inference import InferenceOptions, Segmenter
from modeling_mtaclip.inference.segmenter import window_starts
from tests.tiny import varied_model


@pytest.fixture(scope="module")
def model():
    return varied_model()


@pytest.fixture(params=[1, 2**22])
def band_elements(request, monkeypatch):
    monkeypatch.setattr(postprocessing_mtaclip, "BAND_ELEMENTS", request.param)


def random_image(height, width, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width])


@torch.no_grad()
def plain_scores(model, pixel_values):
    """Scores of `(1, 3, h, w)`, which is padded for the model, as one stack of masks at full size."""
    height, width = pixel_values.shape[-2:]
    padded = F.pad(pixel_values, (0, -width % 32, 0, -height % 32))
    outputs = model(padded)
    masks = F.interpolate(outputs.masks_queries_logits, padded.shape[-2:], mode="bilinear").sigmoid()
    classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", classes, masks)[..., :height, :width]


def plain_sliding_scores(model, pixel_values, window, stride):
    """Sums of padded windows divided by a count, over the grid that covers the image."""
    height, width = pixel_values.shape[-2:]
    sums, counts = 0, 0
    for row in range(max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(row * stride[0] + window[0], height), min(column * stride[1] + window[1], width)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            scores = plain_scores(model, pixel_values[..., top:bottom, left:right])
            place = (left, width - right, top, height - bottom)
            sums, counts = sums + F.pad(scores, place), counts + F.pad(torch.ones_like(scores[:, :1]), place)
    return sums / counts


def resized(scores, size):
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)[0]


def assert_same(labels, scores):
    """Equal wherever the best class is clear of the second."""
    best = scores.topk(2, dim=0)
    clear = best.values[0] - best.values[1] > 1e-4
    assert clear.float().mean() > 0.95
    assert torch.equal(labels[clear], best.indices[0][clear])


def test_whole_images(model, band_elements):
    processor = MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 200})
    image = random_image(50, 90)
    segmenter = Segmenter(model, processor)
    expected = resized(plain_scores(model, processor(image, do_pad=False, return_tensors="pt").pixel_values), (50, 90))
    torch.testing.assert_close(segmenter.scores(image), expected, rtol=0, atol=5e-5)
    (labels,) = segmenter([image])
    assert labels.dtype == torch.int64
    assert_same(labels, expected)
    assert torch.equal(
        labels,
        processor.post_process_semantic_segmentation(model(**processor(image, return_tensors="pt")), [(50, 90)])[0],
    )


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((100, 170), (64, 64), (43, 43)),  # last windows are moved back to the border
        ((107, 128), (64, 64), (43, 64)),  # windows that fit exactly, and some without overlap
        ((160, 192), (64, 96), (25, 50)),  # rectangular windows, up to three over one row
        ((40, 150), (64, 64), (43, 43)),  # lower than a window
        ((40, 50), (64, 64), (43, 43)),  # smaller than a window
        ((90, 100), (50, 70), (30, 35)),  # windows that need padding
    ],
)
@pytest.mark.parametrize("scale", [1, 0.63, 1.7])
def test_sliding_windows(model, size, window, stride, scale, band_elements):
    processor = MTAClipImageProcessor(do_resize=False)
    image = random_image(*size)
    segmenter = Segmenter(model, processor, InferenceOptions("slide", window, stride, batch_size=3))
    pixel_values = processor(image, do_pad=False, return_tensors="pt").pixel_values
    target = tuple(int(length * scale) for length in size)
    expected = resized(plain_sliding_scores(model, pixel_values, window, stride), target)
    torch.testing.assert_close(segmenter.scores(image, target), expected, rtol=0, atol=5e-5)
    assert_same(segmenter([image], [target])[0], expected)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_scales_and_mirrored_images(model, mode, band_elements):
    processor = MTAClipImageProcessor(do_resize=False)
    image, scales = random_image(70, 101), (0.5, 1.0, 1.75)
    options = InferenceOptions(mode, (64, 64), (43, 43), scales=scales, flip=True, batch_size=2)
    expected = 0
    for size in ((35, 51), (70, 101), (123, 177)):
        size = {"height": size[0], "width": size[1]}
        prepared = processor(image, do_resize=True, size=size, do_pad=False, return_tensors="pt").pixel_values
        for mirrored in (False, True):
            pixel_values = prepared.flip(-1) if mirrored else prepared
            if mode == "whole":
                scores = plain_scores(model, pixel_values)
            else:
                scores = plain_sliding_scores(model, pixel_values, (64, 64), (43, 43))
            scores = scores.flip(-1) if mirrored else scores
            expected = expected + resized(scores, (70, 101)).softmax(0) / 6
    segmenter = Segmenter(model, processor, options)
    torch.testing.assert_close(segmenter.scores(image), expected, rtol=0, atol=5e-5)
    best = expected.topk(2, dim=0)
    clear = best.values[0] - best.values[1] > 1e-5
    assert torch.equal(segmenter([image])[0][clear], best.indices[0][clear])


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_batch_of_mixed_sizes_gives_what_each_image_gives_alone(model, mode, batch_size):
    processor = MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 160})
    images = [random_image(50, 60, 0), random_image(90, 40, 1), random_image(50, 60, 2), random_image(30, 200, 3)]
    options = InferenceOptions(mode, (64, 64), (43, 43), scales=(1.0, 0.5), batch_size=batch_size)
    together = Segmenter(model, processor, options)(images)
    for image, labels in zip(images, together, strict=True):
        alone = Segmenter(model, processor, options)([image])[0]
        assert labels.shape == (image.height, image.width)
        assert (labels == alone).float().mean() > 0.999


def test_only_two_rows_of_windows_are_kept(model):
    """Windows are predicted when their rows are reached, and dropped when they are passed."""
    processor = MTAClipImageProcessor(do_resize=False)
    segmenter = Segmenter(model, processor, InferenceOptions("slide", (64, 64), (43, 43)))
    prepared = segmenter.prepare(random_image(279, 64))
    ((view,),) = segmenter._views([prepared])
    kept = []
    for row in range(279):
        view.read(row, row + 1)
        kept.append(len(view.rows))
        assert all(top <= row < top + 64 for top in view.rows)
    assert set(kept) == {1, 2}
    assert not view.waiting_tops


def test_windows_of_several_images_share_forward_passes(model):
    sizes = []

    def forward(pixel_values):
        sizes.append(tuple(pixel_values.shape))
        return model(pixel_values)

    options = InferenceOptions("slide", (64, 64), (43, 43), batch_size=4)
    segmenter = Segmenter(model, MTAClipImageProcessor(do_resize=False), options, forward)
    segmenter([random_image(64, 96), random_image(64, 100)])
    assert sizes == [(4, 3, 64, 64)]


def test_turned_images_arrays_and_scaled_processors(model):
    processor = MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 100})
    image = random_image(50, 70)
    segmenter = Segmenter(model, processor, InferenceOptions(scales=(0.75, 1.0)))
    prepared = segmenter.prepare(image)
    assert [tuple(each.shape[-2:]) for each in prepared.pixel_values] == [(48, 67), (64, 90)]
    (expected,) = segmenter([image])
    assert torch.equal(segmenter([np.asarray(image)])[0], expected)
    assert torch.equal(segmenter([torch.from_numpy(np.array(image)).permute(2, 0, 1)])[0], expected)
    opaque = np.dstack([np.asarray(image), np.full((50, 70), 255, np.uint8)])
    assert torch.equal(segmenter([opaque.transpose(2, 0, 1)])[0], segmenter([opaque])[0])
    assert torch.equal(segmenter([opaque])[0], expected)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 270 degrees, upright then
    assert torch.equal(segmenter([turned])[0], expected)


def test_window_starts():
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(300, 512, 341) == [0]
    assert window_starts(513, 512, 341) == [0, 1]
    assert window_starts(853, 512, 341) == [0, 341]
    assert window_starts(854, 512, 341) == [0, 341, 342]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sliding"}, r"one of \('whole', 'slide'\), got 'sliding'"),
        ({"window": (512,)}, r"`window` must be a positive height and width, got \(512,\)"),
        ({"stride": (0, 1)}, r"`stride` must be a positive"),
        ({"window": (64, 512)}, r"`stride` \(341, 341\) must not exceed `window` \(64, 512\)"),
        ({"scales": (1.0, 0.0)}, "`scales` must be positive"),
        ({"batch_size": 0}, "`batch_size` must be positive, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        InferenceOptions(**options)


def test_options_from_arguments():
    options = InferenceOptions.from_arguments("slide", [256, 352], [170], tta=True, batch_size=2)
    assert (options.window, options.stride, options.batch_size) == ((256, 352), (170, 170), 2)
    assert options.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert options.flip


def test_target_sizes_must_fit(model):
    segmenter, image = Segmenter(model, MTAClipImageProcessor(do_resize=False)), random_image(40, 60)
    with pytest.raises(ValueError, match="got 2 for 1"):
        segmenter([image], [(40, 60), (40, 60)])
    with pytest.raises(ValueError, match=r"target size \(60, 40\) would stretch .* \(40, 60\)"):
        segmenter([image], [(60, 40)])


def test_one_image_is_no_list(model):
    with pytest.raises(ValueError, match="Put it into a list"):
        Segmenter(model, MTAClipImageProcessor())(random_image(40, 60))


def test_class_names_are_encoded_once(model, monkeypatch):
    calls, encode = [], type(model).encode_class_names
    monkeypatch.setattr(type(model), "encode_class_names", lambda self: calls.append(self) or encode(self))
    segmenter = Segmenter(model, MTAClipImageProcessor(do_resize=False))
    assert segmenter.model is not model
    assert segmenter.model.config.stored_text_embeddings
    for _ in range(2):
        segmenter([random_image(40, 60)])
    assert calls[0] is model
    assert model not in calls[1:]


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_confidence_is_the_score_of_the_pixels_class(model, scales):
    processor, image = MTAClipImageProcessor(do_resize=False), random_image(50, 90)
    segmenter = Segmenter(model, processor, InferenceOptions(scales=scales, flip=len(scales) > 1))
    prepared = segmenter.prepare(image)
    labels, confidence = segmenter.predict_with_confidence(prepared)
    assert torch.equal(labels, segmenter.predict([prepared])[0])
    views = []
    for pixel_values in prepared.pixel_values:
        views.append(resized(plain_scores(model, pixel_values[None]), (50, 90)))
        if len(scales) > 1:
            views.append(resized(plain_scores(model, pixel_values[None].flip(-1)).flip(-1), (50, 90)))
    expected = sum(view.gather(0, labels[None])[0].clamp(max=1) for view in views) / len(views)
    torch.testing.assert_close(confidence, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("text_branch", "do_resize", "tolerance"), [(True, False, 1e-5), (False, True, 0.1)])
def test_masks_of_an_image(text_branch, do_resize, tolerance):
    model, image = varied_model(text_branch=text_branch), random_image(50, 90)
    processor = MTAClipImageProcessor(do_resize=do_resize, size={"shortest_edge": 64, "longest_edge": 200})
    masks = Segmenter(model, processor).masks(image)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    torch.testing.assert_close(masks.probabilities, outputs.class_queries_logits[0].softmax(-1), rtol=0, atol=1e-5)
    assert (masks.similarity is not None) == text_branch
    if text_branch:
        torch.testing.assert_close(masks.similarity, outputs.mask_text_similarity[0], rtol=0, atol=1e-5)
    height, width = processor(image, do_pad=False, return_tensors="pt").pixel_values.shape[-2:]
    logits = F.interpolate(outputs.masks_queries_logits, scale_factor=4, mode="bilinear")[..., :height, :width]
    expected = resized(logits, (50, 90)).sigmoid()
    best = (expected * masks.probabilities[:, :-1].amax(1)[:, None, None]).argmax(0)
    torch.testing.assert_close(masks.mask(best[0, 0]), expected[best[0, 0]], rtol=0, atol=tolerance)
    agree = [masks.mask_at(x, y) == best[y, x] for y in range(0, 50, 7) for x in range(0, 90, 7)]
    assert len(best.unique()) > 1
    assert sum(agree) >= len(agree) - 2
    with pytest.raises(ValueError, match=r"pixel \(90, 0\) lies outside the image of 90 x 50"):
        masks.mask_at(90, 0)
