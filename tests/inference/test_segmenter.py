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


OWN_SIZE = MTAClipImageProcessor(do_resize=False)


@pytest.fixture(scope="module")
def model():
    return varied_model()


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


def plain_views(model, image, options, target):
    """Scores at the target size of the image at each scale, as it is and mirrored."""
    views = []
    for scale in options.scales:
        size = {"height": int(image.height * scale + 0.5), "width": int(image.width * scale + 0.5)}
        prepared = OWN_SIZE(image, do_resize=True, size=size, do_pad=False, return_tensors="pt").pixel_values
        for mirrored in (False, True)[: 1 + options.flip]:
            pixel_values = prepared.flip(-1) if mirrored else prepared
            if options.mode == "whole":
                scores = plain_scores(model, pixel_values)
            else:
                scores = plain_sliding_scores(model, pixel_values, options.window, options.stride)
            views.append(resized(scores.flip(-1) if mirrored else scores, target))
    return views


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((50, 90), {}),
        # Last windows are moved back to the border.
        ((100, 170), {"mode": "slide", "window": (64, 64), "stride": (43, 43)}),
        # Windows that fit exactly, and some without overlap.
        ((107, 128), {"mode": "slide", "window": (64, 64), "stride": (43, 64)}),
        # Rectangular windows, up to three over one row.
        ((160, 192), {"mode": "slide", "window": (64, 96), "stride": (25, 50), "batch_size": 3}),
        # Lower or smaller than a window, and windows that need padding.
        ((40, 150), {"mode": "slide", "window": (64, 64), "stride": (43, 43)}),
        ((40, 50), {"mode": "slide", "window": (64, 64), "stride": (43, 43)}),
        ((90, 100), {"mode": "slide", "window": (50, 70), "stride": (30, 35)}),
        # Test-time augmentation.
        ((70, 101), {"scales": (0.5, 1.0, 1.75), "flip": True, "batch_size": 2}),
        ((70, 101), {"mode": "slide", "window": (64, 64), "stride": (43, 43), "scales": (0.5, 1.75), "flip": True}),
    ],
)
@pytest.mark.parametrize(("scale", "band_elements"), [(1, 1), (1, 2**22), (0.63, 1), (1.7, 1)])
def test_predictions_are_those_of_plain_formulas(model, size, options, scale, band_elements, monkeypatch):
    monkeypatch.setattr(postprocessing_mtaclip, "BAND_ELEMENTS", band_elements)
    options, image = InferenceOptions(**options), random_image(*size)
    segmenter, target = Segmenter(model, OWN_SIZE, options), tuple(int(length * scale) for length in size)
    views = plain_views(model, image, options, target)
    expected = views[0] if len(views) == 1 else sum(view.softmax(0) for view in views) / len(views)
    torch.testing.assert_close(segmenter.scores(image, target), expected, rtol=0, atol=5e-5)
    (labels,) = segmenter([image], [target])
    best = expected.topk(2, dim=0)
    clear = best.values[0] - best.values[1] > 1e-5
    assert labels.dtype == torch.int64
    assert clear.float().mean() > 0.95
    assert torch.equal(labels[clear], best.indices[0][clear])
    if scale == 1:
        same, confidence = segmenter.predict_with_confidence(segmenter.prepare(image))
        assert torch.equal(same, labels)
        expected = sum(view.gather(0, labels[None])[0].clamp(max=1) for view in views) / len(views)
        torch.testing.assert_close(confidence, expected, rtol=0, atol=5e-5)


def test_whole_images_are_those_of_the_image_processor(model):
    processor, image = MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 200}), random_image(50, 90)
    outputs = model(**processor(image, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(outputs, [(50, 90)])
    assert torch.equal(Segmenter(model, processor)([image])[0], expected)


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
    segmenter = Segmenter(model, OWN_SIZE, InferenceOptions("slide", (64, 64), (43, 43)))
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
    segmenter = Segmenter(model, OWN_SIZE, options, forward)
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


def test_what_does_not_fit_is_refused(model):
    segmenter, image = Segmenter(model, OWN_SIZE), random_image(40, 60)
    with pytest.raises(ValueError, match="got 2 for 1"):
        segmenter([image], [(40, 60), (40, 60)])
    with pytest.raises(ValueError, match=r"target size \(60, 40\) would stretch .* \(40, 60\)"):
        segmenter([image], [(60, 40)])
    with pytest.raises(ValueError, match="Put it into a list"):
        segmenter(image)


def test_class_names_are_encoded_once(model, monkeypatch):
    calls, encode = [], type(model).encode_class_names
    monkeypatch.setattr(type(model), "encode_class_names", lambda self: calls.append(self) or encode(self))
    segmenter = Segmenter(model, OWN_SIZE)
    assert segmenter.model is not model
    assert segmenter.model.config.stored_text_embeddings
    for _ in range(2):
        segmenter([random_image(40, 60)])
    assert calls[0] is model
    assert model not in calls[1:]


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
