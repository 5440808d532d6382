# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
import base64
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.nn import functional as F
from transformers import pipeline
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, load_image

from modeling_mtaclip import MTAClipImageProcessor, MTAClipImageProcessorPil, postprocessing_mtaclip
from modeling_mtaclip.inference import Segmenter
from tests.tiny import assert_same_labels, label_map, varied_model


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
AS_IT_IS = {"do_resize": False, "do_pad": False}


@pytest.fixture(params=[MTAClipImageProcessor, MTAClipImageProcessorPil])
def kind(request):
    return request.param


def random_image(height=60, width=90):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_map(height, width):
    return np.random.default_rng(1).integers(0, 5, (height, width), dtype=np.uint8)


def normalized(values):
    """What becomes of values `(height, width, 3)` that are scaled already."""
    return ((values - MEAN) / STD).transpose(2, 0, 1)


def assert_near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_plain_normalization_and_padding():
    images, maps = ([make(*size) for size in ((60, 90), (33, 40))] for make in (random_image, random_map))
    batch = MTAClipImageProcessor(do_resize=False)(images, segmentation_maps=maps, return_tensors="pt")
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "pixel_values": ((2, 3, 64, 96), torch.float32),
        "labels": ((2, 64, 96), torch.int64),
    }
    for pixel_values, found, image, labels in zip(*batch.values(), images, maps, strict=True):
        height, width = labels.shape
        expected, expected_labels = np.zeros((3, 64, 96)), np.full((64, 96), 255)
        expected[:, :height, :width], expected_labels[:height, :width] = normalized(image / 255), labels
        assert_near(pixel_values, expected)
        assert np.array_equal(found, expected_labels)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((360, 480), (512, 683)), ((480, 360), (683, 512)), ((300, 2000), (307, 2048)), ((1024, 2048), (512, 1024))],
)
def test_resize_keeps_the_ratio(size, expected):
    processor = MTAClipImageProcessor(do_pad=False)
    assert processor(random_image(*size), return_tensors="pt").pixel_values.shape[-2:] == expected


def test_label_maps_are_resized_without_new_values_and_reduced():
    blocks, reduced = np.array([[0, 1, 7], [200, 255, 254]]), [[255, 0, 6], [199, 255, 253]]
    labels = np.kron(blocks, np.ones((30, 30), dtype=int))
    for do_reduce_labels, expected in ((False, blocks), (True, reduced)):
        processor = MTAClipImageProcessor(size={"height": 64, "width": 96}, do_reduce_labels=do_reduce_labels)
        resized = processor(random_image(), segmentation_maps=labels, return_tensors="pt").labels[0]
        assert np.array_equal(resized, np.kron(expected, np.ones((32, 32), dtype=int)))


@pytest.mark.parametrize("scale", [1, 255], ids=["0 to 1", "0 to 255"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, torch.bfloat16, np.int64, np.uint16, bool])
def test_options_of_the_call_win_over_guesses(kind, scale, dtype):
    """With `do_rescale` or `rescale_factor`, values are taken as they are, whatever their type and range."""
    values = np.rint(random_image() / 255) * scale
    image = torch.from_numpy(values).to(dtype) if isinstance(dtype, torch.dtype) else values.astype(dtype)
    values = values if dtype is not bool else values > 0
    for options, factor in [
        ({"do_rescale": False}, 1),
        ({"rescale_factor": 0.5}, 0.5),
        ({"do_rescale": True}, 1 / 255),
        ({"do_rescale": True, "rescale_factor": 2.0}, 2),
    ]:
        actual = kind(**AS_IT_IS)(image, return_tensors="pt", input_data_format="channels_last", **options)
        assert_near(actual.pixel_values[0], normalized(values * factor))
    of_settings = kind(**AS_IT_IS, do_rescale=False)(image, return_tensors="pt").pixel_values[0]
    assert_near(of_settings, normalized(values))


def test_values_are_not_rounded_by_resizing(kind):
    image = np.linspace(-3, 2, 3 * 40 * 60, dtype=np.float32).reshape(3, 40, 60)
    options = {"size": {"height": 20, "width": 30}, "do_pad": False, "do_normalize": False, "do_rescale": False}
    actual = kind(**options)(image, return_tensors="pt").pixel_values
    expected = F.interpolate(torch.from_numpy(image)[None], (20, 30), mode="bilinear", antialias=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(lambda image: image > 127, id="bool"),
        pytest.param(lambda image: (image > 127).astype(np.float16), id="half"),
        pytest.param(lambda image: (image > 127).astype(">f8") * 255, id="big-endian"),
        pytest.param(lambda image: (image > 127).astype(np.int32) * 255, id="int32"),
        pytest.param(lambda image: np.where(image > 127, 255, 0)[::-1].astype(np.uint8)[::-1], id="negative strides"),
        pytest.param(lambda image: [[torch.from_numpy(image > 127)]], id="nested lists"),
        pytest.param(lambda image: (image > 127)[None], id="batch"),
    ],
)
def test_values_of_all_types_are_right(kind, image):
    plain = random_image()
    assert_near(kind(**AS_IT_IS)(image(plain), return_tensors="pt").pixel_values[0], normalized(plain > 127))


def test_lists_may_mix_kinds(kind, tmp_path):
    image, processor = random_image(), kind(do_resize=False)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    rgba = np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1)
    gray = Image.fromarray(image).convert("L")
    of_color = [image, Image.fromarray(image), torch.from_numpy(image).movedim(-1, 0), str(path), path, rgba]
    of_color += [image.astype(np.float32), (image / 255).astype(np.float32), (rgba / 255).astype(np.float64)]
    of_gray = [gray, np.asarray(gray), torch.from_numpy(np.array(gray))[None]]
    pixel_values = processor([*of_color, of_gray], return_tensors="pt").pixel_values
    for images in pixel_values.split([len(of_color), len(of_gray)]):
        torch.testing.assert_close(images, images[:1].expand_as(images), rtol=0, atol=1e-5)
    palette = Image.fromarray(image).quantize(16)
    for options in ({}, {"do_convert_rgb": False}):
        batch = processor([palette, palette.convert("RGB")], return_tensors="pt", **options)
        assert torch.equal(*batch.pixel_values)


def test_transparent_pixels_are_white(kind):
    rgba = np.concatenate([random_image(), np.zeros((60, 90, 1), np.uint8)], axis=-1)
    rgba[:, :40, 3] = 255
    expected = np.where(rgba[..., 3:] == 255, rgba[..., :3], 255).transpose(2, 0, 1) / 255
    processor = kind(**AS_IT_IS, do_normalize=False)
    for image in (rgba, Image.fromarray(rgba), rgba / 255, rgba.astype(np.int64)):
        np.testing.assert_allclose(processor(image, return_tensors="pt").pixel_values[0], expected, atol=1e-6)


def test_addresses_and_missing_paths(kind, photo):
    address = "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()
    assert torch.equal(*kind()([photo, address], return_tensors="pt").pixel_values)
    with pytest.raises(ValueError, match="absent"):
        kind()(photo.with_name("absent.jpg"))


def test_other_numbers_of_channels(kind):
    processor = kind(do_convert_rgb=False, image_mean=[0.1, 0.2, 0.3, 0.4, 0.5], image_std=[1.0] * 5, do_pad=False)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 5), dtype=np.uint8)
    expected = (image / 255 - np.arange(1, 6) / 10).transpose(2, 0, 1)
    for given in (image, image.transpose(2, 0, 1)):
        assert_near(processor(given, do_resize=False, return_tensors="pt").pixel_values[0], expected)
    assert processor(image, size={"shortest_edge": 80}, return_tensors="pt").pixel_values.shape == (1, 5, 80, 100)


def save_turned(image, path, orientation=6):
    """Writes an image with an EXIF orientation: with 6, its left side is shown at the top."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif, quality=95)
    return path


@pytest.fixture
def photo(tmp_path):
    """A photograph whose file, 60 high and 90 wide, lies on its side."""
    pixels = np.kron(random_image(6, 9), np.ones((10, 10, 1), np.uint8))
    return save_turned(Image.fromarray(pixels), tmp_path / "photo.jpg")


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_photographs_and_maps_are_turned_upright(kind, orientation, photo, tmp_path):
    path = save_turned(Image.open(photo), tmp_path / "image.jpg", orientation)
    labels = np.arange(5400).astype(np.uint8).reshape(60, 90)
    maps = Image.open(save_turned(Image.fromarray(labels), tmp_path / "labels.png", orientation))
    turned = {3: np.rot90(labels, 2), 6: np.rot90(labels, -1), 7: np.rot90(labels, 2).T}[orientation]
    processor = kind(**AS_IT_IS, do_normalize=False)
    expected = np.asarray(load_image(str(path))).transpose(2, 0, 1) / np.float32(255)
    for image in (Image.open(path), str(path)):
        batch = processor(image, segmentation_maps=maps, return_tensors="pt")
        assert_near(batch.pixel_values[0], expected)
        assert np.array_equal(batch.labels[0], turned)


@torch.no_grad()
def test_a_turned_photograph_is_segmented_like_an_upright_one(photo):
    """As README.md says, by the pipeline and by `Segmenter`."""
    model, processor = varied_model(), MTAClipImageProcessor(size={"shortest_edge": 64})
    image, stored = load_image(str(photo)), Image.open(photo)
    model.class_predictor.bias.sub_(model(**processor(image, return_tensors="pt")).class_queries_logits.mean((0, 1)))
    outputs = [model(**processor(each, return_tensors="pt")) for each in (image, stored)]
    expected, of_file = (processor.post_process_semantic_segmentation(each, [(90, 60)])[0] for each in outputs)
    assert_same_labels(of_file, expected)
    assert len(expected.unique()) > 1
    with pytest.raises(ValueError, match="upright image"):
        processor.post_process_semantic_segmentation(outputs[1], target_sizes=[(60, 90)])
    segment, segmenter = (
        pipeline("image-segmentation", model=model, image_processor=processor),
        Segmenter(model, processor),
    )
    for source in (image, stored, str(photo)):
        assert_same_labels(segmenter([source])[0], expected)
        assert_same_labels(label_map(segment(source)), expected)


def plain(dtype=np.uint8, value=0, shape=(8, 8, 3)):
    return np.full(shape, value, dtype=dtype)


@pytest.mark.parametrize(
    ("image", "maps", "message"),
    [
        (Image.new("I;16", (8, 8)), None, "8 bits per channel, got a PIL image of mode 'I;16'"),
        (plain(np.uint16, 1000), None, "uint16 with values up to 1000"),
        (plain(np.float32, -0.5), None, r"values in \[0, 1\] or \[0, 255\], got values from -0.5"),
        (plain(np.uint16, 100), None, "8 bits per channel, got uint16"),
        (torch.full((3, 8, 8), -5), None, "8 bits per channel, got int64 .*-5"),
        (plain(float, np.nan), None, "NaN"),
        (plain(np.float16, np.inf), None, "infinite"),
        (plain(complex), None, "must hold numbers, got an array of complex128"),
        (plain(shape=(0, 8, 3)), None, "no pixels"),
        ([], None, "No images"),
        ([[1, 2], [3, 4]], None, "got int"),
        (plain(shape=(8, 8, 2)), None, r"\(8, 8, 2\) it isn't clear .* 1 or 3 or 4 channels"),
        (plain(shape=(3, 8, 3)), None, "pass `input_data_format`"),
        (plain(), plain(shape=(8, 9)), r"size \(8, 9\) does not fit"),
        (plain(), plain(np.float32, shape=(8, 8)), "integer labels"),
        (plain(), [plain(shape=(8, 8))] * 2, "2 segmentation maps for 1"),
    ],
)
def test_errors(image, maps, message):
    with pytest.raises(ValueError, match=message):
        MTAClipImageProcessor()(image, segmentation_maps=maps, return_tensors="pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_center_crop": True}, "`do_center_crop=True` is not supported: crop"),
        ({"crop_size": {"height": 8, "width": 8}}, "`crop_size=.*` is not supported"),
        ({"pad_size": {"height": 64, "width": 64}}, "`pad_size=.*` is not supported"),
        ({"data_format": "channels_last"}, "results are channels first"),
        ({"size_divisor": 0}, "`size_divisor` must be positive, got 0"),
        ({"input_data_format": "channels_first"}, "has 8 channels"),
        ({"input_data_format": "channels_first", "do_normalize": False}, "has 8 channels"),
        ({"image_mean": [0.5] * 4, "image_std": [1.0] * 4}, "has 3 channels, expected 4"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 2}, "for each channel"),
        ({"image_std": [0.0, 0.2, 0.2]}, "must be positive"),
        ({"rescale_factor": 0.0}, "must be positive"),
        ({"size": {"shortest_edge": -5}}, "shortest_edge"),
        ({"size": {"height": -5, "width": 4}}, "height"),
    ],
)
def test_options_that_have_no_effect_or_give_no_image_are_refused(kind, options, message):
    for of_settings, of_call in (({}, options), (options, {})):
        with pytest.raises(ValueError, match=message):
            kind(**of_settings)(plain(shape=(8, 9, 3)), **of_call)


def write_png(path, color_type, bits, row):
    """A PNG file of four equal rows, which Pillow can't write with other bits."""
    header = struct.pack(">IIBBBBB", 4, 4, bits, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(4 * (b"\0" + row))), (b"IEND", b"")]
    file = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + file)
    return path


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_files_of_16_bits_are_refused(color_type, channels, tmp_path):
    """Pillow decodes them to 8 bits."""
    path = write_png(tmp_path / "wide.png", color_type, 16, np.full(4 * channels, 1000, ">u2").tobytes())
    for image in (Image.open(path), str(path)):
        with pytest.raises(ValueError, match="must have 8 bits per channel"):
            MTAClipImageProcessor()(image)


def test_label_maps_that_pillow_stretches_are_refused(tmp_path):
    labels = Image.open(write_png(tmp_path / "labels.png", 0, 4, b"\x12\x34"))
    with pytest.raises(ValueError, match="2 or 4 bits: write it with 8 bits"):
        MTAClipImageProcessor()(random_image(4, 4), segmentation_maps=labels, input_data_format="channels_last")


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
@pytest.mark.parametrize(
    ("overrides", "targets", "valid", "whole"),
    [
        ({}, [(100, 140)], [(50, 70)], (64, 96)),
        ({}, [(37, 52)], [(50, 70)], (64, 96)),
        ({}, [(231, 324)], [(50, 70)], (64, 96)),
        ({"size": {"shortest_edge": 40}}, [(40, 70), (50, 90)], [(40, 70), (40, 72)], (64, 96)),
        ({"do_resize": False, "size_divisor": 16}, [(40, 70), (50, 90)], [(40, 70), (50, 90)], (64, 96)),
        ({"do_pad": False}, [(40, 70)], [(50, 88)], (50, 88)),
        ({"size": {"shortest_edge": 512}}, [(64, 96)], [(64, 96)], (64, 96)),
    ],
)
def test_post_processing_is_exact(overrides, targets, valid, whole, band_elements, monkeypatch):
    """Overrides with which images were prepared are given again; the last image was not prepared by the processor."""
    monkeypatch.setattr(postprocessing_mtaclip, "BAND_ELEMENTS", band_elements)
    post_process = MTAClipImageProcessor(size={"shortest_edge": 50}).post_process_semantic_segmentation
    outputs = random_outputs(len(targets), *(-(-length // 4) for length in whole))
    maps = post_process(outputs, targets, **overrides)
    results = post_process(outputs, targets, return_segmentation_scores=True, **overrides)
    for image, (labels, result, target) in enumerate(zip(maps, results, targets, strict=True)):
        expected = plain_scores(outputs, image, whole, valid[image], target)
        torch.testing.assert_close(result["segmentation_scores"], expected, rtol=0, atol=1e-5)
        assert (labels.shape, labels.dtype) == (target, torch.int64)
        best = expected.topk(2, dim=0)
        clear = best.values[0] - best.values[1] > 1e-4
        assert torch.equal(labels[clear], best.indices[0][clear])


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
    settings, given = (
        {"size": {"shortest_edge": 50}},
        {"segmentation_maps": random_map(60, 90), "return_tensors": "pt"},
    )
    processor = kind(**settings)
    before = processor.to_dict()
    actual = processor(random_image(), **given, **overrides)
    expected = kind(**(settings | overrides))(random_image(), **given)
    without = processor(random_image(), **given)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not all(torch.equal(actual[name], without[name]) for name in without)
    assert processor.to_dict() == before


@pytest.mark.parametrize(
    ("prepared", "overrides", "target"),
    [
        pytest.param({}, {}, (90, 60), id="on its side"),
        pytest.param({}, {}, (60, 120), id="another aspect"),
        pytest.param({"size": {"shortest_edge": 64}}, {}, (60, 90), id="overrides are missing"),
        pytest.param(*[{"size": {"shortest_edge": 64}}] * 2, (90, 60), id="on its side, with overrides"),
        pytest.param(*[{"do_resize": False, "do_pad": False}] * 2, (90, 60), id="on its side, as it is"),
        pytest.param({}, {"size": {"shortest_edge": 64}}, (60, 90), id="other overrides"),
    ],
)
def test_target_sizes_that_can_not_be_those_of_the_images_are_refused(kind, prepared, overrides, target):
    processor = kind(size={"shortest_edge": 80})
    height, width = processor(random_image(), return_tensors="pt", **prepared).pixel_values.shape[-2:]
    outputs = random_outputs(1, -(-height // 4), -(-width // 4))
    with pytest.raises(ValueError, match=r"upright image .*`size`, `do_resize`, `do_pad` and `size_divisor`"):
        processor.post_process_semantic_segmentation(outputs, [target], **overrides)
    assert processor.post_process_semantic_segmentation(outputs, [(60, 90)], **prepared)[0].shape == (60, 90)


def test_outputs_in_half_precision_without_target_sizes_cover_the_whole_input():
    outputs = random_outputs(1, 16, 24)
    halves = SimpleNamespace(**{name: value.bfloat16() for name, value in vars(outputs).items()})
    (labels,) = MTAClipImageProcessor().post_process_semantic_segmentation(halves)
    expected = plain_scores(outputs, 0, (64, 96), (64, 96), (64, 96)).argmax(0)
    assert (labels == expected).float().mean() > 0.97


def test_post_processing_errors():
    outputs = random_outputs(2, 16, 24)
    post_process = MTAClipImageProcessor().post_process_semantic_segmentation
    with pytest.raises(ValueError, match="got 1 for 2"):
        post_process(outputs, [(64, 96)])
    with pytest.raises(TypeError, match="do_flip"):
        post_process(outputs, [(64, 96)] * 2, do_flip=True)
    del outputs.masks_queries_logits
    with pytest.raises(ValueError, match="no `masks_queries_logits`"):
        post_process(outputs)
