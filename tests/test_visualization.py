# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures have exactly the colors that they should have, and what can't be drawn is refused."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from modeling_mtaclip.visualization import (
    VOID_COLOR,
    WRONG_COLOR,
    colorize,
    compare,
    confidence_map,
    error_map,
    highlight,
    legend,
    legend_entries,
    overlay,
    plot_alignment,
)


PALETTE = [(10, 20, 30), (200, 100, 0)]
LABELS = np.array([[0, 1], [255, 1]])
GRAY = Image.new("L", (2, 2), 100)


@pytest.mark.parametrize("labels", [LABELS, torch.from_numpy(LABELS), Image.fromarray(LABELS.astype(np.uint8))])
def test_colors_are_those_of_the_palette(labels):
    assert np.array(colorize(labels, PALETTE)).tolist() == [[[10, 20, 30], [200, 100, 0]], [[255] * 3, [200, 100, 0]]]


def test_any_label_can_be_the_ignored_one():
    assert colorize([[0, -1]], [(1, 2, 3)], ignore_index=-1).getpixel((1, 0)) == VOID_COLOR
    assert colorize([[0, 1]], PALETTE, ignore_index=0).getpixel((0, 0)) == VOID_COLOR
    assert colorize(np.full((2, 3), 255), []).getcolors() == [(6, VOID_COLOR)]


def test_overlay_mixes_image_and_colors():
    mixed, own, covered = (np.array(overlay(GRAY, LABELS, PALETTE, opacity)) for opacity in (0.5, 0, 1))
    assert mixed.tolist() == [[[55, 60, 65], [150, 100, 50]], [[177, 177, 177], [150, 100, 50]]]
    assert (own == 100).all()
    assert np.array_equal(covered, colorize(LABELS, PALETTE))


def test_what_is_highlighted_is_tinted_and_all_else_pale():
    for mask in ([[True, False]], [[1, 0]], torch.tensor([[1.0, 0.0]])):
        picture = highlight(GRAY.crop((0, 0, 2, 1)), mask, PALETTE[0], 0.5)
        assert np.array(picture).tolist() == [[[55, 60, 65], [140] * 3]]
    assert highlight(GRAY, np.full((2, 2), 0.5), PALETTE[0], 1).getpixel((0, 0)) == (75, 80, 85)


def test_errors_are_shown_on_gray_or_on_the_image():
    prediction = np.array([[0, 0], [1, 1]])
    for image, right in ((None, [200] * 3), (GRAY, [140] * 3)):
        picture = np.array(error_map(prediction, LABELS, image=image)).tolist()
        assert picture == [[right, list(WRONG_COLOR)], [list(VOID_COLOR), right]]


def test_confidences_go_from_dark_to_light():
    picture = np.array(confidence_map([[0.0, 0.125, 1.0, np.nan]])).tolist()
    assert picture == [[[68, 1, 84], [64, 42, 112], [253, 231, 37], list(VOID_COLOR)]]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: colorize([[0, 2]], PALETTE), r"ids \[2\], but there are 2 classes"),
        (lambda: colorize([[-1]], PALETTE), r"ids \[-1\]"),
        (lambda: colorize([[0]], []), "there are 0 classes"),
        (lambda: colorize(np.zeros((0, 4), int), PALETTE), r"at least one pixel, got int64 of shape \(0, 4\)"),
        (lambda: colorize([[0.5]], PALETTE), "float64"),
        (lambda: overlay(GRAY, [[0]], PALETTE), r"got \(2, 2\) and \(1, 1\)"),
        (lambda: overlay(GRAY, LABELS, PALETTE, 2), "`opacity`"),
        (lambda: error_map([[0]], LABELS), "same size"),
        (lambda: confidence_map([[1.5, np.nan]]), r"between 0 and 1, got the shape \(1, 2\) and values like \[1.5\]"),
        (lambda: confidence_map([]), r"got the shape \(0,\)"),
        (lambda: highlight(GRAY, [[2, 0], [0, 0]], PALETTE[0]), r"values in 0 … 1, got \(2, 2\)"),
        (lambda: highlight(GRAY, [[1, 0]], PALETTE[0]), r"same size, got \(2, 2\) and \(2, 1\)"),
        (lambda: legend([], []), "at least one name"),
        (lambda: legend(["a"], PALETTE), "1 names, 2 colors"),
        (lambda: compare([], ["a"], PALETTE[:1]), "at least one panel"),
        (lambda: compare([("", GRAY)], ["a"], PALETTE, [LABELS]), "got 1 names and 2 colors"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize("width", [16, 2048])
@pytest.mark.parametrize("names", [["道路", "дом", "بيت", "a\nb"], [f"class number {i}" for i in range(150)]])
def test_every_class_has_its_box_and_text_inside_the_legend(names, width):
    palette = [(i, 255 - i, 128) for i in range(len(names))]
    picture = legend(names, palette, [1 / len(names)] * len(names), width=width)
    assert picture.width == max(width, 320)
    counts = {color: count for count, color in picture.getcolors(1 << 24)}
    assert all(counts[color] >= 12 * 12 for color in palette)
    assert (np.array(picture)[:, -3:] == 255).all()


def test_long_names_end_with_dots(monkeypatch):
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **options: texts.append(text))
    legend(["x" * 500, "sky"], PALETTE, [0.25, 0.75], width=100)
    assert texts[0].endswith("xxx... 25.0 %")
    assert 300 < 14 + 4 * 7 + ImageFont.load_default(14).getlength(texts[0]) <= 320
    assert texts[1] == "sky 75.0 %"


def test_panels_stand_side_by_side_above_the_classes_that_occur():
    panels = [("left", Image.new("RGB", (300, 20), "red")), ("right", Image.new("L", (90, 30), 0))]
    picture = compare(panels, ["a", "b", "c"], [*PALETTE, (1, 2, 3)], label_maps=[LABELS])
    assert picture.width == 300 + 7 + 90
    for (_, panel), box in zip(panels, ((0, 28, 300, 48), (307, 28, 397, 58)), strict=True):
        assert np.array_equal(picture.crop(box), panel.convert("RGB"))
    colors = {color for _, color in picture.crop((0, 58, *picture.size)).getcolors(1 << 16)}
    assert colors & {*PALETTE, (1, 2, 3)} == set(PALETTE)


@pytest.mark.parametrize(
    ("title", "width", "height"), [("", 500, 28), ("title", 500, 56), ("title", 900, 80), ("title", 4000, 160)]
)
def test_text_grows_with_the_pictures(title, width, height):
    picture = compare([(title, Image.new("RGB", (width, 10)))], ["road"], PALETTE[:1])
    assert picture.size == (width, height + 10)


def test_a_legend_has_the_shares_of_the_classes_that_occur():
    names, colors, shares = legend_entries([LABELS], ["a", "b", "c"], [*PALETTE, (1, 2, 3)])
    assert (names, shares) == (["b", "a", "not annotated"], [0.5, 0.25, 0.25])
    assert colors == [PALETTE[1], PALETTE[0], VOID_COLOR]
    shown, hidden = (compare([("", GRAY)], ["a", "b"], PALETTE, [LABELS], show_shares=show) for show in (True, False))
    assert shown != hidden


def test_masks_and_texts_stand_on_the_principal_axes_of_their_covariance():
    points = np.random.default_rng(0).normal(size=(20, 5)) * [1, 4, 2, 0.5, 3]
    texts = {1: points[18], 0: points[19]}
    axis = plot_alignment(points[:18], [0, 1] * 9, texts, ["$sky", "sea"], PALETTE).axes[0]
    masks, stars = (each.get_offsets() for each in axis.collections)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    expected = (points - points.mean(axis=0)) @ vectors[:, :-3:-1]
    np.testing.assert_allclose(np.abs(np.concatenate((masks, stars))), np.abs(expected), atol=1e-10)
    found = {text.get_text(): tuple(text.xy) for text in axis.texts}
    assert found == {"sea": tuple(stars[0]), "$sky": tuple(stars[1])}
    assert axis.get_xlabel() == f"{values[-1] / values.sum():.0%} of the variance"
    assert len(plot_alignment(points[:1, :1], [0], {0: points[0, :1]}, ["sky"], PALETTE).axes) == 1
